import type { Parameter } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";

export type Prox = "soft" | "official";

/**
 * The proximal step of the L1 norm, in place: sign(g)·max(|g| − ξ, 0); SoRA's released code also zeroes what is below ξ afterwards,
 * and so everything below 2ξ but ±ξ itself.
 */
export function shrink(parameter: Parameter, threshold: number, prox: Prox = "soft"): void {
  const values = hostView(parameter) as Float32Array;
  for (let i = 0; i < values.length; i++) {
    const g = values[i]!;
    if (prox === "soft") values[i] = Math.sign(g) * Math.max(Math.abs(g) - threshold, 0);
    else {
      const moved = g > threshold ? g - threshold : g < -threshold ? g + threshold : g;
      values[i] = Math.abs(moved) < threshold ? 0 : moved;
    }
  }
}
