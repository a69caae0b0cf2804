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
} as const;
