import { signature, span } from "./signature.ts";

/** Panels and solvers of the linear algebra. */
export const linalg = {
  /** out[0,c] = Σ_r x[r,c], out[1,c] = Σ_r |x[r,c]|, out[2,c] = Σ_r x[r,c]², rows added in order, in f64 */
  column_moments: signature(["f64*", "real*", "i32", "i32"], (rows, cols) => [3 * cols!, rows! * cols!]),
  /** y[r,c] = x[r,c], or += if add; y is f64 with a row stride, x f32 and contiguous: y x | rows cols stride add */
  widen_rows: signature(["f64*", "f32*", "i32", "i32", "i32", "i32"], (rows, cols, stride) => [span([rows!, stride!], [cols!, 1]), rows! * cols!]),
} as const;
