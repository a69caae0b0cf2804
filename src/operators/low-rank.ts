import { addLinear, embedding, linear, matmul, mul, scale as scaled, transpose, type Tensor } from "../tensor/index.ts";
import { costOf, fits, type LinearOperator } from "./operator.ts";

/**
 * scale·B·A with B out×r and A r×in; r may be 0.
 *
 * @example
 * const update = lowRank(zeros([64, 8]), ones([8, 32]), 2);
 */
export function lowRank(B: Tensor, A: Tensor, scale = 1): LinearOperator & { readonly B: Tensor; readonly A: Tensor; readonly scale: number } {
  fits(B.shape.length === 2 && A.shape.length === 2 && B.shape[1] === A.shape[0], "low-rank", "B out×r and A r×in", B, A);
  const parts = { B, A };
  return {
    kind: "low-rank",
    out: B.shape[0]!,
    in: A.shape[1]!,
    B,
    A,
    scale,
    parts,
    options: { scale },
    apply: (x) => addLinear(null, linear(x, A), B, scale),
    applyTransposed: (x) => addLinear(null, linear(x, transpose(B)), transpose(A), scale),
    addTo: (y, x) => addLinear(y, linear(x, A), B, scale),
    rows: (ids) => addLinear(null, embedding(B, ids), transpose(A), scale),
    toDense: () => scaled(matmul(B, A), scale),
    cost: () => costOf(parts, 2 * (B.size + A.size)),
  };
}

/**
 * scale·B·core·A with B out×p, A q×in and a core p×q, or a vector of r numbers (a diagonal core or gates, p = q = r).
 *
 * @example
 * const gated = coredLowRank(ones([4, 2]), tensor([1, 0]), ones([2, 3]));
 */
export function coredLowRank(B: Tensor, core: Tensor, A: Tensor, scale = 1): LinearOperator {
  const vector = core.shape.length === 1;
  fits(B.shape[1] === core.shape[0] && A.shape[0] === core.shape.at(-1), "cored-low-rank", "B out×p, core p×q (or r numbers) and A q×in", B, core, A);
  const through = (h: Tensor): Tensor => (vector ? mul(h, core) : linear(h, core));
  const back = (h: Tensor): Tensor => (vector ? mul(h, core) : linear(h, transpose(core)));
  const parts = { B, core, A };
  return {
    kind: "cored-low-rank",
    out: B.shape[0]!,
    in: A.shape[1]!,
    parts,
    options: { scale },
    apply: (x) => addLinear(null, through(linear(x, A)), B, scale),
    applyTransposed: (x) => addLinear(null, back(linear(x, transpose(B))), transpose(A), scale),
    addTo: (y, x) => addLinear(y, through(linear(x, A)), B, scale),
    rows: (ids) => addLinear(null, back(embedding(B, ids)), transpose(A), scale),
    toDense: () => scaled(matmul(back(B), A), scale),
    cost: () => costOf(parts, 2 * (B.size + A.size) + (vector ? 1 : 2) * core.size),
  };
}
