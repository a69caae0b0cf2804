import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Model } from "../models/model.ts";
import type { Regime, Site, Training } from "../nn/contracts.ts";
import { coredLowRank } from "../operators/index.ts";
import { abs, add, full, hostNumbers, indexSelect, noGrad, Parameter, scale, square, sum, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { adapter, addAt } from "./adapter.ts";
import { attachedTo, withAdapters } from "./attach.ts";
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
  shareClasses: z
    .boolean()
    .default(true)
    .describe(
      "matrices of other shapes share A where they have as many inputs, and B where they have as many outputs; else each shape has a pair; defaults to true",
    ),
  zeroInit: z.enum(["s", "B"]).default("s").describe("what is zero at the start: s, or B with all of s at 1; defaults to s"),
  proxStep: z.number().positive().optional().describe("step of the soft threshold, in place of the learning rate"),
  dropout: loraOptions.shape.dropout,
});
type Options = z.output<typeof options>;
type Params = { s: Tensor };
/** `class.A` r×in and `class.B` out×r. */
type Shared = Record<string, Tensor>;

/** The names of the factors of a site: those of its width, or of its shape. */
const keysOf = ({ in: inner, out }: Pick<Site, "in" | "out">, o: Options): { A: string; B: string } =>
  o.shareClasses ? { A: `in${inner}.A`, B: `out${out}.B` } : { A: `${out}x${inner}.A`, B: `${out}x${inner}.B` };
const isA = (key: string): boolean => key.endsWith(".A");

function updateOf({ s }: Params, site: Site, o: Options, shared: Shared): ReturnType<typeof coredLowRank> {
  const { A, B } = keysOf(site, o);
  return coredLowRank(shared[B]!, s, shared[A]!, o.gamma);
}

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
      const key = /\/shared\/(.+\.[AB])$/.exec(name)?.[1];
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
              terms.push(...shared(t).map(([key, w]) => scale(square(orthogonalityGap(w, isA(key) ? "rows" : "columns")), o.lambdaOrthogonal)));
            return terms.reduce(add);
          },
        }
      : {}),
    afterStep(t) {
      if (o.normalize) {
        const norms = new Map(shared(t).map(([key, w]) => [key, normalise(w, isA(key) ? 0 : 1)]));
        for (const { site, params } of t.views) {
          const { A, B } = keysOf(site, o);
          const [a, b] = [norms.get(A)!, norms.get(B)!];
          const s = hostView(params.s) as Float32Array;
          s.forEach((value, j) => (s[j] = value * a[j]! * b[j]!));
        }
      }
      if (o.sparsity === "proximal") for (const { params } of t.views) shrink(params.s as Parameter, (o.proxStep ?? t.learningRate) * state.lambda);
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
 * `toLora` without a rank gives a LoRA whose ranks are the numbers of non-zero coefficients.
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
    for (const site of sites) {
      const { A, B } = keysOf(site, o);
      made[A] ??= rng.fork(A).uniform([o.r, site.in], 1 / Math.sqrt(site.in), dtype);
      made[B] ??= o.zeroInit === "B" ? zeros([site.out, o.r], dtype) : rng.fork(B).normal([site.out, o.r], 1 / Math.sqrt(site.out), dtype);
    }
    if (o.normalize) for (const [key, x] of Object.entries(made)) normalise(x, isA(key) ? 0 : 1);
    return made;
  },
  init: (_site, o, { dtype }): Params => ({ s: full([o.r], o.zeroInit === "B" ? 1 : 0, dtype) }),
  update: (p, site, o, _live, shared) => updateOf(p, site, o, shared),
  forward: (x, y, p, site, o, live, shared) => addAt(site, updateOf(p, site, o, shared), y, dropInput(x, o, site, live)),
  regime,
  layout: { options: { dropout: "lora_dropout" }, tensors: { linear: { s: "s2lora_s" } }, sharedPrefix: "s2lora." },
});

/** Which of the shared ranks sites use: s of each, and how many of its numbers are not zero. A row of the map of layers by ranks. */
export interface SharedRanks {
  readonly path: string;
  readonly rank: number;
  readonly s: readonly number[];
}

/**
 * An S2-LoRA with coefficients up to a threshold set to 0 and without the ranks that no site then uses, and what each site is left with.
 *
 * @example
 * const tuned = await adapt(model, s2lora, { r: 16, zeroInit: "B" });
 * const { model: smaller, ranks } = pruneShared(tuned, { threshold: 1e-3 });
 */
export function pruneShared(
  model: Model,
  { threshold = 0, name = model.active[0] ?? "default" }: { threshold?: number; name?: string } = {},
): { model: Model; ranks: readonly SharedRanks[] } {
  const set = attachedTo(model, name);
  if (set?.method !== s2lora.id)
    throw new StrutError("adapter", `${name} is no S2-LoRA, so it has no shared ranks`, { hint: "Name an adapter of this method." });
  const own = [...set.entries].map(([path, { s }]) => ({ path, s: Array.from(hostNumbers(s!) as Float32Array, (x) => (Math.abs(x) > threshold ? x : 0)) }));
  const ranks = own.map(({ path, s }) => ({ path, s, rank: s.filter((x) => x !== 0).length }));
  const kept = own[0]!.s.flatMap((_, j) => (own.some(({ s }) => s[j] !== 0) ? [j] : []));
  if (kept.length === 0)
    throw new StrutError("adapter", `no coefficient of ${name} is above ${threshold}`, { path: "threshold", hint: "Lower it, or use the base model." });
  const index = tensor(kept, [kept.length], "i32");
  const like = (old: Tensor, value: Tensor): Parameter => new Parameter(value, (old as Parameter).name);
  const shared = noGrad(() => Object.fromEntries(Object.entries(set.shared).map(([key, x]) => [key, like(x, indexSelect(x, isA(key) ? 0 : 1, index))])));
  const entries = new Map(
    own.map(({ path, s }) => {
      const old = set.entries.get(path)!["s"]!;
      return [
        path,
        {
          s: like(
            old,
            tensor(
              kept.map((j) => s[j]!),
              [kept.length],
              old.dtype as "f32",
            ),
          ),
        },
      ];
    }),
  );
  const pruned = { ...set, options: { ...set.options, r: kept.length }, shared, entries };
  return { model: withAdapters(model, new Map([...model.adapters, [name, pruned]]), model.active), ranks };
}
