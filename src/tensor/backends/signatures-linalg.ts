import { signature } from "./signature.ts";

/** Panels and solvers of the linear algebra. */
export const linalg = {
  /** out[0,c] = Σ_r x[r,c], out[1,c] = Σ_r |x[r,c]|, out[2,c] = Σ_r x[r,c]², rows added in order, in f64 */
  column_moments: signature(["f64*", "real*", "i32", "i32"], (rows, cols) => [3 * cols!, rows! * cols!]),
} as const;
