import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { ParameterLink, State, Transform } from "../nn/contracts.ts";
import { div, full, maximum, mul, norm, Parameter, sub, sum, type Tensor } from "../tensor/index.ts";
import { copyOf } from "../tensor/tensor.ts";
import { adamCore } from "./adam-core.ts";
import { composed } from "./composed.ts";
import { galore, galoreLink, projection } from "./galore.ts";
import { accumulate } from "./in-place.ts";
import { decayAfterUpdate, scaleByLearningRate } from "./links.ts";
import { chain, optimizer } from "./optimizer.ts";
import { isTarget } from "./targets.ts";

const options = z.object({
  ...galore.options.shape,
  rank: projection.rank.default(4).describe("directions kept of a gradient; below the adapter's rank to save memory; defaults to 4"),
  updateProjGap: projection.updateProjGap.default(250).describe("steps of a matrix between two projectors; defaults to 250"),
  projType: projection.projType
    .default("full")
    .describe("side that is projected: both (full), the shorter one (std), the longer (reverse_std), left or right; defaults to full"),
  mode: z
    .enum(["dora-proj", "wn-optimizer"])
    .default("dora-proj")
    .describe(
      "dora-proj projects the gradients of a DoRA adapter's matrices; wn-optimizer trains length and direction of each row of full weights; defaults to dora-proj",
    ),
  strict: z
    .literal("official")
    .optional()
    .describe("in wn-optimizer what the official class does: lengths start anew at each step and directions keep their radial part; defaults to neither"),
});
type Options = z.output<typeof options>;

/** Projected gradients, with a warning where that saves nothing. */
function adapterLink(o: Options, inner: Transform): ParameterLink {
  const link = galoreLink(o, inner);
  let told = false;
  return {
    ...link,
    init(w, t) {
      const side = Math.min(...w.shape);
      if (!told && o.rank >= side && isTarget(o.targetModules, w, t)) {
        told = true;
        t.warn(`gradnormlorp: rank ${o.rank} is no smaller than the shorter side of ${w.name}, ${side}: its gradient is only turned, and no memory is saved`);
      }
      return link.init(w, t);
    },
  };
}

/** Of rows; never 0, so that a row of zeros stays one. */
const lengths = (x: Tensor): Tensor => maximum(norm(x, { axes: [1], keepAxes: true }), full([1, 1], 1e-12, x.dtype));
const unit = (x: Tensor): Tensor => div(x, lengths(x));

/** W = g·v/‖v‖ by row: v by projected gradients, g by the inner optimiser, each with the rate and decay of W. The whole chain. */
function weightNormalized(o: Options, inner: Transform): ParameterLink {
  const [plain, direction, length] = [
    composed(chain(inner, scaleByLearningRate(), decayAfterUpdate()), "gradnormlorp"),
    galoreLink(o, inner),
    composed(inner, "gradnormlorp"),
  ];
  const official = o.strict === "official";
  return {
    scope: "parameter",
    init(w, t) {
      if (w.shape.length !== 2 || !isTarget(o.targetModules, w, t)) return { plain: plain.init(w, t) };
      const v = copyOf(w);
      const g = lengths(v);
      return { v, ...(official ? {} : { g }), direction: direction.init(w, t), length: length.init(new Parameter(g, w.name), t) };
    },
    async update(u, s, w, t) {
      if (!s["v"]) return plain.update(u, s["plain"] as State, w, t);
      const v = s["v"] as Tensor;
      const g = official ? lengths(v) : (s["g"] as Tensor);
      const toward = unit(v);
      const along = sum(mul(u, toward), { axes: [1], keepAxes: true });
      const dv = official ? u : mul(div(g, lengths(v)), sub(u, mul(along, toward)));
      const [rate, decay] = [t.learningRate(w), t.weightDecay(w)];
      for (const [x, moved] of [
        [v, await direction.update(dv, s["direction"] as State, w, t)],
        [g, await length.update(along, s["length"] as State, w, t)],
      ] as const)
        accumulate(x, -rate * (1 - rate * decay), moved, 1 - rate * decay);
      return sub(w, mul(g, unit(v)));
    },
  };
}

/**
 * GradNormLoRP. dora-proj, for a DoRA adapter: gradients D of its two matrices are projected on both sides, U·Adam(UᵀDV)·Vᵀ
 * with q×q averages; lengths move by plain Adam. wn-optimizer, for full weights W = g·v/‖v‖ by row: v moves by projected
 * gradients, g by Adam; it keeps a copy of W and so saves no memory. Huang et al. 2025, arXiv:2412.19616. The official programs
 * ask for rank 128 on an adapter of rank 8, which saves nothing: here the rank defaults to 4. Their class for full weights
 * forgets g at every step; that only with strict: "official".
 *
 * @example
 * const optimizer = { method: gradNormLorp, options: { rank: 4 } }; // for train(), on a model with a dora adapter of r above 4
 */
export const gradNormLorp = optimizer({
  id: "gradnormlorp",
  title: "GradNormLoRP",
  paper: "arXiv:2412.19616",
  options,
  build(o, inner = adamCore({ beta1: o.betas[0], beta2: o.betas[1], eps: o.eps, form: "hf" })) {
    if (o.mode === "wn-optimizer") return weightNormalized(o, inner);
    if (o.strict)
      throw new StrutError("option", "gradnormlorp: strict is about mode wn-optimizer, and this is dora-proj", { path: "strict", hint: "Leave it out." });
    return chain(adapterLink(o, inner), scaleByLearningRate(), decayAfterUpdate());
  },
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
