import { add, embedding, linear, reshape, transpose, type Tensor } from "../tensor/index.ts";
import { bytesOf } from "../tensor/index.ts";
import { prefixed, type LinearOperator } from "./operator.ts";

/**
 * A matrix that is stored whole; the later axes of a tensor with more than two are its columns. `transposed` says that the tensor is in×out, as GPT-2's Conv1D keeps it.
 *
 * @example
 * const y = dense(tensor([1, 2, 3, 4], [2, 2])).apply(tensor([1, 1], [1, 2]));
 */
export function dense(weight: Tensor, transposed = false): LinearOperator {
  const rows = weight.shape[0]!;
  const cols = weight.shape.slice(1).reduce((product, n) => product * n, 1);
  const matrix = (): Tensor => (transposed ? transpose(weight) : weight.shape.length === 2 ? weight : reshape(weight, [rows, cols]));
  return {
    kind: "dense",
    out: transposed ? cols : rows,
    in: transposed ? rows : cols,
    parts: { weight },
    apply: (x) => linear(x, matrix()),
    withBias: (x, bias) => linear(x, matrix(), bias),
    rows: (ids) => embedding(matrix(), ids),
    toDense: matrix,
    cost: () => ({ params: weight.size, bytes: weight.size * bytesOf(weight.dtype), flops: 2 * weight.size }),
  };
}

/** A + B of two operators of one shape. */
export function sumOf(first: LinearOperator, second: LinearOperator): LinearOperator & { readonly terms: readonly [LinearOperator, LinearOperator] } {
  return {
    kind: "sum",
    terms: [first, second],
    out: first.out,
    in: first.in,
    parts: { ...prefixed("0.", first.parts), ...prefixed("1.", second.parts) },
    apply: (x) => (second.addTo ? second.addTo(first.apply(x), x) : add(first.apply(x), second.apply(x))),
    ...(first.rows && second.rows ? { rows: (ids: Tensor) => add(first.rows!(ids), second.rows!(ids)) } : {}),
    toDense: () => add(first.toDense(), second.toDense()),
    cost: () => {
      const [a, b] = [first.cost(), second.cost()];
      return { params: a.params + b.params, bytes: a.bytes + b.bytes, flops: a.flops + b.flops + first.out };
    },
  };
}
