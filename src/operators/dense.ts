import { embedding, linear, transpose, type Tensor } from "../tensor/index.ts";
import { costOf, type LinearOperator } from "./operator.ts";

/**
 * A matrix that is stored whole. `transposed` says that the tensor is in×out, as GPT-2's Conv1D keeps it.
 *
 * @example
 * const y = dense(tensor([1, 2, 3, 4], [2, 2])).apply(tensor([1, 1], [1, 2]));
 */
export function dense(weight: Tensor, transposed = false): LinearOperator {
  const [rows, cols] = weight.shape as [number, number];
  const matrix = (): Tensor => (transposed ? transpose(weight) : weight);
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
