import { embedding, linear, reshape, transpose, type Tensor } from "../tensor/index.ts";
import { costOf, type LinearOperator } from "./operator.ts";

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
  const parts = { weight };
  return {
    kind: "dense",
    out: transposed ? cols : rows,
    in: transposed ? rows : cols,
    parts,
    options: { transposed },
    apply: (x) => linear(x, matrix()),
    applyTransposed: (x) => linear(x, transpose(matrix())),
    withBias: (x, bias) => linear(x, matrix(), bias),
    rows: (ids) => embedding(matrix(), ids),
    toDense: matrix,
    cost: () => costOf(parts, 2 * weight.size),
  };
}
