import { signature, span } from "./signature.ts";

/** Threads the pool may have; some scratch is one row for each. */
const MOST_THREADS = 32;

/** Panels and solvers of the linear algebra. */
export const linalg = {
  // eigh
  /**
   * Columns from … from+width−1 of the tridiagonal reduction of a symmetric n×n matrix, of which the upper triangle is read.
   * Row j of a becomes reflector j: zeros, then 1 at j+1, then the rest. vw gets V, W and V again as rows: the trailing
   * matrix is A − Vᵀ·W − Wᵀ·V. Entries are taken to be about 1 at most: what is below 1e-140 counts as zero.
   * a vw d e tau | n from width | scratch
   */
  tridiagonal_panel: signature(["f64*", "f64*", "f64*", "f64*", "f64*", "i32", "i32", "i32", "f32*"], (n, from, width) => [
    Math.max(n!, from! + width!) * n!,
    3 * width! * n!,
    Math.max(n!, from! + width!),
    Math.max(n!, from! + width!),
    Math.max(n!, from! + width!),
    2 * 16 * n!,
  ]),
  /** Eigenvalues d and vectors (rows of q) of each diagonal block of a symmetric tridiagonal matrix: d e q? | n block qRow. NaN where it did not converge. */
  tridiagonal_ql: signature(["f64*", "f64*", "f64*?", "i32", "i32", "i32"], (n, block, qRow) => [block! > 0 ? n! : NaN, n!, span([n!, qRow!], [n!, 1])]),
  /**
   * Eigenvalues and vectors (rows of q, columns in the order `place`) of diag(d) + z·zᵀ, d ascending, z without zeros.
   * values q | d z place | k qRow | scratch
   */
  secular: signature(["f64*", "f64*", "f64*", "f64*", "i32*", "i32", "i32", "f32*"], (k, qRow) => [
    k!,
    span([k!, qRow!], [k!, 1]),
    k!,
    k!,
    k!,
    2 * (MOST_THREADS + 1) * k!,
  ]),
  /**
   * One sweep of one-sided Jacobi: every pair of rows of g (n×m) is made orthogonal, v (n×n) follows; rows of norm below 1e-140 stay.
   * off: the largest cosine that each place of the tournament met. g v off | n m tolerance
   */
  jacobi_sweep: signature(["f64*", "f64*", "f64*", "i32", "i32", "f64"], (n, m) => [n! * m!, n! * n!, Math.ceil(n! / 2)]),
  // sums over rows
  /** out[0,c] = Σ_r x[r,c], out[1,c] = Σ_r |x[r,c]|, out[2,c] = Σ_r x[r,c]², rows added in order, in f64 */
  column_moments: signature(["f64*", "real*", "i32", "i32"], (rows, cols) => [3 * cols!, rows! * cols!]),
  /** y[r,c] = x[r,c], or += if add; y is f64 with a row stride, x f32 and contiguous: y x | rows cols stride add */
  widen_rows: signature(["f64*", "f32*", "i32", "i32", "i32", "i32"], (rows, cols, stride) => [span([rows!, stride!], [cols!, 1]), rows! * cols!]),
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
