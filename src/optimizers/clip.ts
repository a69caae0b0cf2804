import { StrutError } from "../errors.ts";
import type { ListLink, ParameterLink } from "../nn/contracts.ts";
import { full, maximum, minimum, sumSquares, type Tensor } from "../tensor/index.ts";
import { scaleInPlace } from "./in-place.ts";

/** torch's clip_grad_norm_: at most 1, with 1e-6 in the denominator. */
export const clipFactor = (norm: number, maxNorm: number): number => Math.min(1, maxNorm / (norm + 1e-6));

/** Scales all gradients together so that their common 2-norm (in f64) is at most `maxNorm`. */
export function clipByGlobalNorm(maxNorm: number): ListLink {
  if (!(maxNorm > 0))
    throw new StrutError("option", `clip is ${maxNorm}; it must be a norm above 0`, { path: "clip", hint: "Leave it out to train without clipping." });
  return {
    scope: "model",
    fused: { kind: "clip", maxNorm },
    init: () => ({}),
    update(updates) {
      const factor = clipFactor(Math.sqrt(sumSquares(updates)), maxNorm);
      if (factor < 1) for (const u of updates) scaleInPlace(u, factor);
      return updates;
    },
  };
}

export const clampTo = (x: Tensor, bound: number): Tensor => minimum(maximum(x, full([], -bound, x.dtype)), full([], bound, x.dtype));

/** Limits every element to [−bound, bound]. */
export function clipByValue(bound: number): ParameterLink {
  if (!(bound > 0)) throw new StrutError("option", `clipByValue is ${bound}; it must be above 0`, { path: "clip" });
  return {
    scope: "parameter",
    init: () => ({}),
    update: (u) => clampTo(u, bound),
  };
}
