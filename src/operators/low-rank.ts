import { addLinear, bytesOf, embedding, linear, matmul, scale as scaled, transpose, type Tensor } from "../tensor/index.ts";
import type { LinearOperator } from "./operator.ts";

/**
 * scale·B·A with B out×r and A r×in; r may be 0.
 *
 * @example
 * const update = lowRank(zeros([64, 8]), ones([8, 32]), 2);
 */
export function lowRank(B: Tensor, A: Tensor, scale = 1): LinearOperator & { readonly B: Tensor; readonly A: Tensor; readonly scale: number } {
  return {
    kind: "low-rank",
    out: B.shape[0]!,
    in: A.shape[1]!,
    B,
    A,
    scale,
    parts: { B, A },
    apply: (x) => addLinear(null, linear(x, A), B, scale),
    addTo: (y, x) => addLinear(y, linear(x, A), B, scale),
    rows: (ids) => addLinear(null, embedding(B, ids), transpose(A), scale),
    toDense: () => scaled(matmul(B, A), scale),
    cost: () => ({ params: B.size + A.size, bytes: B.size * bytesOf(B.dtype) + A.size * bytesOf(A.dtype), flops: 2 * (B.size + A.size) }),
  };
}
