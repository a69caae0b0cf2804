import { z } from "zod";
import type { Regime, Site, Training } from "../nn/contracts.ts";
import { coredLowRank } from "../operators/index.ts";
import { abs, add, hostNumbers, Parameter, scale, square, sum, zeros, type Tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { adapter, addAt } from "./adapter.ts";
import { dropInput, loraOptions } from "./lora.ts";
import { shrink } from "./proximal.ts";
import { orthogonalityGap } from "./sensitivity.ts";

const options = z.object({
  r: z.int().positive().default(32).describe("rank of the shared factors; defaults to 32"),
  gamma: z.number().default(1).describe("factor on the update; defaults to 1"),
  lambda1: z.number().nonnegative().default(1e-3).describe("weight of Σ‖s‖₁; defaults to 1e-3"),
  sparsity: z
    .enum(["proximal", "penalty"])
    .default("proximal")
    .describe("soft-threshold s by learning rate·lambda1 after each step, or add the penalty to the loss; defaults to proximal"),
  targetSparsity: z.number().min(0).lt(1).optional().describe("share of zeros in s that lambda1 is steered to in training"),
  lambdaOrthogonal: z.number().nonnegative().default(0).describe("weight of ‖AAᵀ − I‖² + ‖BᵀB − I‖²; defaults to 0"),
  normalize: z.boolean().default(true).describe("keep rows of A and columns of B at norm 1, which gives ‖s‖₁ its meaning; defaults to true"),
  sharedLearningRateFactor: z.number().positive().default(1).describe("learning rate of A and B over the run's; defaults to 1"),
  dropout: loraOptions.shape.dropout,
});
type Options = z.output<typeof options>;
type Params = { s: Tensor };
/** A_n r×n for sites of n inputs, B_m m×r for sites of m outputs. */
type Shared = Record<string, Tensor>;

const factorsOf = (site: Site, shared: Shared): { A: Tensor; B: Tensor } => ({ A: shared[`A_${site.in}`]!, B: shared[`B_${site.out}`]! });

const updateOf = ({ s }: Params, site: Site, o: Options, shared: Shared): ReturnType<typeof coredLowRank> => {
  const { A, B } = factorsOf(site, shared);
  return coredLowRank(B, s, A, o.gamma);
};

/** Norms of the slices along an axis; what they are divided by. */
function normalise(x: Tensor, axis: 0 | 1): number[] {
  const view = hostView(x) as Float32Array;
  const [rows, cols] = x.shape as [number, number];
  const of = (i: number): number => (axis === 0 ? Math.floor(i / cols) : i % cols);
  const squares = new Float64Array(axis === 0 ? rows : cols);
  view.forEach((value, i) => (squares[of(i)]! += value * value));
  const norms = Array.from(squares, (value) => Math.sqrt(value) || 1);
  view.forEach((value, i) => (view[i] = value / norms[of(i)]!));
  return norms;
}

function regime(o: Options): Regime<Params> {
  const state = { lambda: o.lambda1 };
  const shared = (t: Training<Params>): [string, Parameter][] =>
    [...t.parameters].flatMap(([name, w]) => {
      const key = /\/shared\/([AB]_\d+)$/.exec(name)?.[1];
      return key ? [[key, w] as [string, Parameter]] : [];
    });
  return {
    state,
    groups: (t) => [
      { parameters: shared(t).map(([, w]) => w), weightDecay: 0, learningRateFactor: o.sharedLearningRateFactor },
      { parameters: t.views.map(({ params }) => params.s as Parameter), weightDecay: 0 },
    ],
    ...(o.sparsity === "penalty" || o.lambdaOrthogonal > 0
      ? {
          loss(t: Training<Params>) {
            const terms: Tensor[] = [];
            if (o.sparsity === "penalty") terms.push(...t.views.map(({ params }) => scale(sum(abs(params.s)), state.lambda)));
            if (o.lambdaOrthogonal > 0)
              terms.push(...shared(t).map(([key, w]) => scale(square(orthogonalityGap(w, key.startsWith("A") ? "rows" : "columns")), o.lambdaOrthogonal)));
            return terms.reduce(add);
          },
        }
      : {}),
    afterStep(t) {
      if (o.normalize) {
        const norms = new Map(shared(t).map(([key, w]) => [key, normalise(w, key.startsWith("A") ? 0 : 1)]));
        for (const { site, params } of t.views) {
          const [a, b] = [norms.get(`A_${site.in}`)!, norms.get(`B_${site.out}`)!];
          const s = hostView(params.s) as Float32Array;
          s.forEach((value, j) => (s[j] = value * a[j]! * b[j]!));
        }
      }
      if (o.sparsity === "proximal") for (const { params } of t.views) shrink(params.s as Parameter, t.learningRate * state.lambda);
      if (o.targetSparsity === undefined) return;
      const values = t.views.flatMap(({ params }) => Array.from(hostNumbers(params.s) as Float32Array));
      const zeroShare = values.filter((value) => value === 0).length / values.length;
      state.lambda *= zeroShare < o.targetSparsity ? 1.05 : 1 / 1.05;
    },
  };
}

/**
 * S2-LoRA: ΔW_i = γ·B·diag(s_i)·A with one A and B for the whole model (one for each width) and a sparse vector s_i for each site.
 * Liu et al. 2024, arXiv:2309.11756. No code was published: penalty, start and sharing between widths are our reading of the abstract.
 *
 * @example
 * const tuned = await adapt(model, s2lora, { r: 16 }, { targets: ["q_proj", "v_proj"] });
 */
export const s2lora = adapter({
  id: "s2lora",
  title: "S2-LoRA",
  paper: "arXiv:2309.11756",
  kinds: ["linear"],
  anyRank: true,
  options,
  shared(sites, o, { rng, dtype }): Shared {
    const made: Shared = {};
    for (const { in: inner, out } of sites) {
      made[`A_${inner}`] ??= rng.fork(`A_${inner}`).uniform([o.r, inner], 1 / Math.sqrt(inner), dtype);
      made[`B_${out}`] ??= rng.fork(`B_${out}`).normal([out, o.r], 1 / Math.sqrt(out), dtype);
    }
    if (o.normalize) for (const [key, x] of Object.entries(made)) normalise(x, key.startsWith("A") ? 0 : 1);
    return made;
  },
  init: (_site, o, { dtype }): Params => ({ s: zeros([o.r], dtype) }),
  update: (p, site, o, _live, shared) => updateOf(p, site, o, shared),
  forward: (x, y, p, site, o, live, shared) => addAt(site, updateOf(p, site, o, shared), y, dropInput(x, o, site, live)),
  regime,
  layout: { tensors: { linear: { s: "s2lora_s" } }, sharedPrefix: "s2lora." },
});
