import { z } from "zod";
import type { ParameterLink } from "../nn/contracts.ts";
import { sumSquares, type Tensor } from "../tensor/index.ts";
import { adamCoreOf, adamOptions } from "./adam-core.ts";
import { clipByGlobalNorm } from "./clip.ts";
import { scaleInPlace } from "./in-place.ts";
import { addDecayedWeights, scaleByLearningRate } from "./links.ts";
import { chain, optimizer } from "./optimizer.ts";

const norm = (x: Tensor): number => Math.sqrt(sumSquares([x]));

/** Multiplies by ratio(‖w‖, ‖u‖), where neither is 0; with `whenDecayed` only parameters whose group decays. */
const scaleByTrust = (ratio: (weight: number, update: number) => number, whenDecayed = false): ParameterLink => ({
  scope: "parameter",
  init: () => ({}),
  update(u, _s, w, t) {
    if (whenDecayed && t.weightDecay(w) === 0) return u;
    const [weight, update] = [norm(w), norm(u)];
    if (weight > 0 && update > 0) scaleInPlace(u, ratio(weight, update));
    return u;
  },
});

type Options = Parameters<typeof adamCoreOf>[0] & { variant: "apex" | "mkor" | "bitsandbytes" };

const core = ({ variant, ...o }: Options): ParameterLink => adamCoreOf({ ...o, form: variant === "mkor" ? "uncorrected" : "torch" });

/**
 * LAMB: a layer's update u = m/(√v + eps) + weightDecay·w is as long as its weights: w ← w − lr·(‖w‖/‖u‖)·u. You et al. 2019,
 * arXiv:1904.00962. "apex" corrects the averages' bias, clips the gradients' global norm first, and trusts only parameters that
 * decay, unless `nvlamb`; "mkor" does none of these and takes ‖w‖ as 10 at most; "bitsandbytes" is Adam with ‖u‖ at most
 * maxUnorm·‖w‖. Where w or u is 0 the ratio is 1. Inside another optimiser it is its Adam, without the ratio.
 *
 * @example
 * const optimizer = { method: lamb, options: { lr: 1e-3, variant: "mkor" } }; // for train()
 */
export const lamb = optimizer({
  id: "lamb",
  title: "LAMB",
  paper: "arXiv:1904.00962",
  options: z.object({
    lr: z.number().nonnegative().default(1e-3).describe("learning rate; defaults to 1e-3"),
    variant: z.enum(["apex", "mkor", "bitsandbytes"]).default("apex").describe("whose LAMB: apex, mkor or bitsandbytes; defaults to apex"),
    ...adamOptions({ eps: 1e-6 }),
    weightDecay: z.number().nonnegative().default(0.01).describe("pull of the weights towards 0, part of the update; defaults to 0.01"),
    maxGradNorm: z.number().nonnegative().default(1).describe("of apex: largest norm of all gradients together, 0 for any; defaults to 1"),
    nvlamb: z.boolean().default(false).describe("of apex: the ratio for parameters without decay too; defaults to false"),
    maxUnorm: z.number().positive().default(1).describe("of bitsandbytes: largest length of an update, in lengths of its weights; defaults to 1"),
  }),
  core,
  build(o, inner = core(o)) {
    const [decay, rate] = [addDecayedWeights(), scaleByLearningRate()];
    if (o.variant === "bitsandbytes")
      return chain(
        inner,
        scaleByTrust((w, u) => Math.min(1, (o.maxUnorm * w) / u)),
        decay,
        rate,
      );
    if (o.variant === "mkor")
      return chain(
        inner,
        decay,
        scaleByTrust((w, u) => Math.min(w, 10) / u),
        rate,
      );
    const clip = o.maxGradNorm > 0 ? [clipByGlobalNorm(o.maxGradNorm)] : [];
    return chain(
      ...clip,
      inner,
      decay,
      scaleByTrust((w, u) => w / u, !o.nvlamb),
      rate,
    );
  },
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
