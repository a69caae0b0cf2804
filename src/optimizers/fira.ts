import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { ParameterLink, State, Transform } from "../nn/contracts.ts";
import { add, affine, div, full, minimum, mul, norm, sqrt, square, sub, sumSquares, zeros, type Tensor } from "../tensor/index.ts";
import { adamCore, betas } from "./adam-core.ts";
import { composed } from "./composed.ts";
import { projection } from "./galore.ts";
import { accumulate, scaleInPlace } from "./in-place.ts";
import { correctBias, decayAfterUpdate, scaleByLearningRate } from "./links.ts";
import { chain, optimizer } from "./optimizer.ts";
import { directions, inSubspace, type SubspaceStep } from "./subspace.ts";

const options = z.object({
  lr: z.number().nonnegative().default(0.01).describe("learning rate; defaults to 0.01"),
  alpha: z.number().optional().describe("factor of projected updates; defaults to 0.25"),
  scale: z.number().optional().describe("another name of alpha, GaLore's"),
  ...projection,
  residual: z
    .enum(["official", "paper"])
    .default("official")
    .describe("what is added outside the subspace: φ·(G − alpha·QG) as in the official code, or alpha·φ·(G − QG) as in the paper; defaults to official"),
  scaling: z
    .enum(["column", "matrix", "none"])
    .default("column")
    .describe("φ for each vector along the projected side, one for the matrix, or 1; defaults to column"),
  maxScaling: z.number().positive().optional().describe("largest φ; defaults to no bound"),
  gamma: z
    .union([z.number().min(1), z.literal(false)])
    .default(1.01)
    .describe("how many times larger than at the last step the residual may be; false sets no bound; defaults to 1.01"),
  strict: z
    .boolean()
    .default(false)
    .describe("as the official code, let one zero gradient hold the residual near 0 for the rest of the run; defaults to false"),
  variant: z
    .enum(["adamw", "rmsprop"])
    .default("adamw")
    .describe("optimiser inside: adamw, or rmsprop without momentum and bias correction; defaults to adamw"),
  betas,
  beta: z.number().min(0).lt(1).default(0.9).describe("decay of rmsprop's average of squares; defaults to 0.9"),
  eps: z.number().positive().default(1e-6).describe("added to √v; defaults to 1e-6"),
  weightDecay: z.number().nonnegative().default(0).describe("pull of the weights towards 0, times the learning rate, after the update; defaults to 0"),
});
type Options = z.output<typeof options>;

/** g / (√v + eps) with v ← beta·v + (1 − beta)·g². */
const rmsprop = (decay: number, eps: number): ParameterLink => ({
  scope: "parameter",
  init: (w) => ({ v: zeros(w.shape, w.dtype) }),
  update(g, s) {
    const v = s["v"] as Tensor;
    accumulate(v, 1 - decay, square(g), decay);
    return div(g, affine(sqrt(v), 1, eps));
  },
});

/** φ: how much longer the inner optimiser made what it was given, by vector along the projected side or as a whole. */
function factors({ scaling, maxScaling }: Options, { r, direction, chosen }: SubspaceStep): Tensor {
  const length = (x: Tensor): Tensor => norm(x, { axes: scaling === "matrix" ? [0, 1] : chosen["left"] ? [0] : [1], keepAxes: true });
  const phi = scaling === "none" ? full([1, 1], 1, r.dtype) : div(length(direction), affine(length(r), 1, 1e-8));
  return maxScaling === undefined ? phi : minimum(phi, full([1, 1], maxScaling, r.dtype));
}

/** Norm-growth limiter: the factor that keeps a residual of this norm within gamma times the last one; s remembers what came out. */
function limit(norm: number, s: State, { gamma, strict }: Options): number {
  const last = s["norm"] as number;
  const factor = last < 0 || gamma === false ? 1 : gamma / Math.max(norm / (last + 1e-8), gamma);
  if (strict || (norm > 0 && Number.isFinite(norm))) s["norm"] = norm * factor;
  return factor;
}

function link(o: Options, inner: Transform): ParameterLink {
  if (o.alpha !== undefined && o.scale !== undefined)
    throw new StrutError("option", "fira: alpha and scale are two names of one factor, and both were given", { path: "scale", hint: "Keep one of them." });
  if (o.projType === "full" && o.scaling === "column")
    throw new StrutError("option", "fira: with projType full no column of the gradient has a column of its projection to take φ from", {
      path: "scaling",
      hint: "Choose scaling: matrix or none, or another projType.",
    });
  const alpha = o.alpha ?? o.scale ?? 0.25;
  const [inside, outside] = o.residual === "official" ? [alpha, 1] : [1, alpha];
  return inSubspace(
    { targetModules: o.targetModules, gap: o.updateProjGap },
    directions(o.projType, o.rank, o.svd),
    composed(inner, "fira"),
    (step, s) => {
      const { g, r, direction, back } = step;
      const residual = mul(sub(g, back(r, inside)), factors(o, step));
      scaleInPlace(residual, outside * limit(Math.sqrt(sumSquares([residual])), s, o));
      return add(back(direction, alpha), residual);
    },
    { norm: -1 },
  );
}

/**
 * Fira: GaLore, with the gradient outside the subspace too, scaled as the inner optimiser scaled what lies inside. For R = G·Pᵀ,
 * N = Adam(R), Q = PᵀP and φ = ‖N‖/‖R‖ of each row (column, where G is projected from the left):
 * W ← W − lr·(alpha·N·P + S), S = φ·(G − alpha·QG), whose norm grows by at most gamma a step. Chen et al. 2024, arXiv:2410.01623.
 * Defaults are those of the official code; a zero gradient does not freeze the limiter as there, unless `strict`.
 *
 * @example
 * const optimizer = { method: fira, options: { rank: 16, lr: 0.01 } }; // for train(), with `consume: true` or unfreeze(model)
 */
export const fira = optimizer({
  id: "fira",
  title: "Fira",
  paper: "arXiv:2410.01623",
  options,
  build(o, inner) {
    const after = [scaleByLearningRate(), decayAfterUpdate()];
    if (inner) return chain(link(o, inner), ...after);
    if (o.variant === "rmsprop") return chain(link(o, rmsprop(o.beta, o.eps)), ...after);
    const [beta1, beta2] = o.betas;
    // φ and the limiter see the uncorrected direction, and the correction comes to all of it
    return chain(link(o, adamCore({ beta1, beta2, eps: o.eps, form: "uncorrected" })), correctBias(beta1, beta2), ...after);
  },
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
