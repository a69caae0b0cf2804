import { StrutError } from "../errors.ts";
import type { Rng } from "../tensor/rng.ts";

/**
 * k different numbers 0 … n−1 in the order in which they are drawn, each next one with probability wᵢ / Σ of the weights left:
 * the k smallest of Eᵢ/wᵢ for exponential Eᵢ (Efraimidis & Spirakis 2006). What has weight 0 is never drawn.
 *
 * @example
 * const chosen = sampleWithoutReplacement([0.5, 0, 3, 1], 2, new Rng(7)); // two of 0, 2 and 3
 */
export function sampleWithoutReplacement(weights: ArrayLike<number>, k: number, rng: Rng): Int32Array {
  const keys = Float64Array.from(weights, (w, i) => {
    if (!(w >= 0 && w < Infinity)) throw new StrutError("value", `sampleWithoutReplacement: weight ${i} is ${w}; weights are finite and not negative`);
    return -Math.log1p(-rng.random()) / w;
  });
  const order = Int32Array.from(keys.keys()).filter((i) => weights[i]! > 0);
  if (!Number.isInteger(k) || k < 0 || k > order.length)
    throw new StrutError("range", `sampleWithoutReplacement: k = ${k} is not a whole number between 0 and ${order.length}, the number of positive weights`);
  return order.sort((a, b) => keys[a]! - keys[b]! || a - b).slice(0, k);
}
