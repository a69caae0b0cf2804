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
} as const;
