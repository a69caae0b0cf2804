import { addLinear, embedding, linear, matmul, mul, scale as scaled, transpose, type Tensor } from "../tensor/index.ts";
import { costOf, fits, rowsOf, type LinearOperator } from "./operator.ts";

/** Whether W itself, out×in, is the cheaper way for x than the rank between: of a rank above what the matrix has, and many rows. */
const shorter = (x: Tensor, out: number, rank: number, inner: number): boolean => rowsOf(x) * (rank * (out + inner) - out * inner) > out * rank * inner;

/**
 * scale·B·A with B out×r and A r×in; r may be 0.
 *
 * @example
 * const update = lowRank(zeros([64, 8]), ones([8, 32]), 2);
 */
export function lowRank(B: Tensor, A: Tensor, scale = 1): LinearOperator & { readonly B: Tensor; readonly A: Tensor; readonly scale: number } {
  fits(B.shape.length === 2 && A.shape.length === 2 && B.shape[1] === A.shape[0], "low-rank", "B out×r and A r×in", B, A);
  const parts = { B, A };
  const [out, inner] = [B.shape[0]!, A.shape[1]!];
  const onto = (y: Tensor | null, x: Tensor): Tensor =>
    shorter(x, out, B.shape[1]!, inner) ? addLinear(y, x, matmul(B, A), scale) : addLinear(y, linear(x, A), B, scale);
  return {
    kind: "low-rank",
    out,
    in: inner,
    B,
    A,
    scale,
    parts,
    options: { scale },
    apply: (x) => onto(null, x),
    applyTransposed: (x) => addLinear(null, linear(x, transpose(B)), transpose(A), scale),
    addTo: onto,
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
  const [out, inner] = [B.shape[0]!, A.shape[1]!];
  const product = (): Tensor => matmul(back(B), A);
  const onto = (y: Tensor | null, x: Tensor): Tensor =>
    shorter(x, out, B.shape[1]!, inner) ? addLinear(y, x, product(), scale) : addLinear(y, through(linear(x, A)), B, scale);
  return {
    kind: "cored-low-rank",
    out,
    in: inner,
    parts,
    options: { scale },
    apply: (x) => onto(null, x),
    applyTransposed: (x) => addLinear(null, back(linear(x, transpose(B))), transpose(A), scale),
    addTo: onto,
    rows: (ids) => addLinear(null, back(embedding(B, ids)), transpose(A), scale),
    toDense: () => scaled(product(), scale),
    cost: () => costOf(parts, 2 * (B.size + A.size) + (vector ? 1 : 2) * core.size),
  };
}
