import { signature, span } from "./signature.ts";

/** Panels and solvers of the linear algebra. */
export const linalg = {
  // factorisations
  /**
   * `width` Householder reflectors of a panel whose columns are rows here: H₁·H₂⋯ = I − V·T·Vᵀ. Row j of w keeps R's column j, then zeros;
   * v gets the vectors with their ones and zeros, t (width×width) is upper triangular. Entries are about 1 at most: what is below 1e-140 counts as zero.
   * w v t | length width wRow vRow
   */
  householder_panel: signature(["f64*", "f64*", "f64*", "i32", "i32", "i32", "i32"], (length, width, wRow, vRow) => [
    width! <= length! ? span([width!, wRow!], [length!, 1]) : NaN,
    span([width!, vRow!], [length!, 1]),
    width! * width!,
  ]),
  /** a = L·Lᵀ in place, with zeros above L; info: 0, or 1 + the first row without a finite pivot above 0, where it ended: a info | batch n aBatch aRow */
  cholesky: signature(
    ["real*", "i32*", "i32", "i32", "i32", "i32"],
    (batch, n, aBatch, aRow) => [span([batch!, aBatch!], [n!, aRow!], [n!, 1]), batch!],
    "wide",
  ),
  /** b becomes A⁻¹·b, A lower or upper triangular, n ≤ 128, all with any strides: a b | batch n rhs | aBatch aRow aCol | bBatch bRow bCol | upper unit */
  triangular_solve: signature(
    ["real*", "real*", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
    (batch, n, rhs, aB, aR, aC, bB, bR, bC) => [n! <= 128 ? span([batch!, aB!], [n!, aR!], [n!, aC!]) : NaN, span([batch!, bB!], [n!, bR!], [rhs!, bC!])],
    "wide",
  ),
  /**
   * The rows of a (m×n) in the given order are L·U, in place: the largest entry of a column is its pivot. info: 0, or 1 + the
   * first column without a finite pivot other than 0, where nothing was eliminated: a order info | batch m n aBatch aRow
   */
  lu: signature(
    ["real*", "i32*", "i32*", "i32", "i32", "i32", "i32", "i32"],
    (batch, m, n, aBatch, aRow) => [span([batch!, aBatch!], [m!, aRow!], [n!, 1]), batch! * m!, batch!],
    "wide",
  ),
  /** As lu, in f64, with rook pivoting: pivots are the largest of their row and column, zeros come last: a rows columns | m n aRow */
  lu_rook: signature(["f64*", "i32*", "i32*", "i32", "i32", "i32"], (m, n, aRow) => [span([m!, aRow!], [n!, 1]), m!, n!]),
  /**
   * The order in which QR with column pivoting takes the rows of w, each a column of the matrix, and the squares of the diagonal of
   * its R; w is used up. Ends at what is below 1e-140: w order norms | n m wRow
   */
  pivot_order: signature(["f64*", "i32*", "f64*", "i32", "i32", "i32"], (n, m, wRow) => [span([n!, wRow!], [m!, 1]), n!, n!]),
} as const;
