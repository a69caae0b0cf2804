import { StrutError } from "../errors.ts";
import { embedding, hostNumbers, inverseOrder, reshape, tensor, transpose, type Real, type Tensor } from "../tensor/index.ts";
import { costOf, oneHot, rowsOf, type LinearOperator } from "./operator.ts";

/**
 * The n×n matrix with W[i, index[i]] = 1, so that y[i] = x[index[i]]: P·W reorders rows of W, W·P its columns. `dtype` is that of its dense form.
 *
 * @example
 * const y = permutation(tensor([2, 0, 1], [3], "i32")).apply(tensor([5, 6, 7], [1, 3]));
 */
export function permutation(index: Tensor, dtype: Real = "f32"): LinearOperator {
  const n = index.size;
  const forward = hostNumbers(index) as Int32Array;
  const inverse = inverseOrder(forward);
  if (index.dtype !== "i32" || inverse.some((i) => i < 0))
    throw new StrutError(
      "range",
      `permutation: expected each of 0…${n - 1} once as i32, found ${index.dtype}[${[...forward.slice(0, 8)]}${n > 8 ? ", …" : ""}]`,
    );
  const back = tensor(inverse, [n], "i32");
  const parts = { index };
  const gather = (x: Tensor, ids: Tensor): Tensor => reshape(transpose(embedding(transpose(reshape(x, [rowsOf(x), n])), ids)), x.shape);
  const toDense = (): Tensor => oneHot(forward, dtype);
  return {
    kind: "permutation",
    out: n,
    in: n,
    parts,
    options: { dtype },
    apply: (x) => gather(x, index),
    applyTransposed: (x) => gather(x, back),
    toDense,
    cost: () => costOf(parts, 0),
  };
}
