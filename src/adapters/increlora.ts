import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Regime, State, Training } from "../nn/contracts.ts";
import { coredLowRank } from "../operators/index.ts";
import {
  abs,
  add,
  copyOf,
  customGradient,
  full,
  hostNumbers,
  indexSelect,
  linear,
  matmul,
  mul,
  noGrad,
  Parameter,
  scale,
  scope,
  sum,
  tensor,
  zeros,
  type Tensor,
} from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { adapter, addAt } from "./adapter.ts";
import { append, birthOf, clear, componentOf, fromLists, growSite, reshapeTo, trained, trains, usedOf, type Components as Params } from "./components.ts";
import { countsByElement } from "./counts.ts";
import { dropInput, loraOptions, loraPeftOptions } from "./lora.ts";
import { orthogonalityLoss, smooth, type Smoothed } from "./sensitivity.ts";

const beta = z.number().min(0).lt(1);
const options = z.object({
  r: z.int().positive().default(1).describe("components of every site at the start; defaults to 1"),
  targetRank: z.int().positive().default(2).describe("mean number of components at the end; defaults to 2"),
  targetTotalRank: z.int().positive().optional().describe("number of components of all sites together at the end, in place of targetRank"),
  increRankNum: z.int().positive().optional().describe("components that a chosen site grows by; defaults to half of a targetRank of 2, 4, 6 or 8, else to 1"),
  allocation: z
    .enum(["importance", "random", "round-robin"])
    .default("importance")
    .describe("grow the most important sites, random ones, or all in turn; the last two are baselines; defaults to importance"),
  topH: z.int().positive().default(2).describe("sites that grow at a time; defaults to 2"),
  increInterval: z.int().positive().optional().describe("steps between two growths; defaults to what ends them after two fifths of the run"),
  initWarmup: z.int().nonnegative().default(0).describe("steps before the first growth; defaults to 0"),
  alpha: loraOptions.shape.alpha.default(16).describe("the update is scaled by alpha / (number of components + 1e-5); defaults to 16"),
  dropout: loraOptions.shape.dropout,
  beta1: beta.default(0.85).describe("decay of the averaged importance; defaults to 0.85"),
  beta2: beta.default(0.85).describe("decay of its averaged change; defaults to 0.85"),
  regOrthCoef: z.number().nonnegative().default(0.1).describe("weight of the mean ‖AAᵀ − I‖ and ‖BᵀB − I‖ in the loss; defaults to 0.1"),
  advanceLearn: z.boolean().default(true).describe("train the next components before they are used; defaults to true"),
  scoreNorm: z.enum(["sqrt", "mean"]).default("sqrt").describe("importance over √(out·in), as in the code, or over out·in, as in the paper; defaults to sqrt"),
  multiLr: z.boolean().default(true).describe("components warm up and decay from their own birth; defaults to true"),
  warmupSteps: z.int().nonnegative().default(0).describe("steps of that warm-up; defaults to 0"),
});
type Options = z.output<typeof options>;
const numbers = (x: Tensor): Float32Array => hostView(x) as Float32Array;
const scaleOf = (p: Params, o: Options): number => o.alpha / (usedOf(p) + 1e-5);
const updateOf = (p: Params, o: Options): ReturnType<typeof coredLowRank> => coredLowRank(p.B, p.E, p.A, scaleOf(p, o));
const growthOf = (o: Options): number => o.increRankNum ?? ({ 2: 1, 4: 2, 6: 3, 8: 4 } as Record<number, number>)[o.targetRank] ?? 1;

/** y + x·ΔWᵀ with ΔW on the tape, whose backward pass adds to its slope. */
function scored(x: Tensor, y: Tensor, p: Params, slope: Tensor, o: Options): Tensor {
  const update = scale(matmul(mul(p.B, p.E), p.A), scaleOf(p, o));
  const seen = customGradient(
    [update],
    (W) => copyOf(W),
    (g) => {
      const [total, own] = [numbers(slope), hostNumbers(g) as Float32Array];
      for (let i = 0; i < total.length; i++) total[i]! += own[i]!;
      return [g];
    },
  );
  return add(y, linear(x, seen));
}

/** Σ|ΔW ⊙ ∂L/∂ΔW| of the step, over √(out·in) or out·in. */
export function scoreOf(p: Params, o: Options): number {
  const total = noGrad(() => scope(() => Number(hostNumbers(sum(abs(mul(updateOf(p, o).toDense(), p.slope!))))[0])));
  return total / (o.scoreNorm === "sqrt" ? Math.sqrt(p.slope!.size) : p.slope!.size);
}

/** The factor of the learning rate of a component: warm-up from its birth, then a straight line to 0. */
const ownFactor = (born: number, { step, steps }: Training<Params>, warmup: number): number => {
  const age = step - born;
  return age < warmup ? (age + 1) / (warmup + 1) : Math.max(0, (steps - step) / Math.max(1, steps - born - warmup));
};

function regime(o: Options): Regime<Params> {
  const state: State = {};
  const q = growthOf(o);
  let before: Map<Tensor, Tensor> | undefined;
  const target = (t: Training<Params>): number => o.targetTotalRank ?? o.targetRank * t.views.length;
  const rounds = (t: Training<Params>): number => Math.ceil((target(t) - o.r * t.views.length) / (o.topH * q));
  const interval = (t: Training<Params>): number => o.increInterval ?? Math.max(1, Math.floor((0.4 * t.steps - o.initWarmup) / Math.max(1, rounds(t))));
  const total = (t: Training<Params>): number => t.views.reduce((all, { params }) => all + usedOf(params), 0);

  function check(t: Training<Params>): void {
    const first = o.r * t.views.length;
    if (target(t) < first)
      throw new StrutError("option", `increlora: the target of ${target(t)} components is below the ${first} at the start, from which they only grow`, {
        path: o.targetTotalRank === undefined ? "targetRank" : "targetTotalRank",
      });
    const last = (Math.floor(o.initWarmup / interval(t)) + rounds(t)) * interval(t);
    if (total(t) < target(t) && last >= t.steps)
      throw new StrutError("option", `increlora: growing to ${target(t)} components takes until step ${last}, the run has ${t.steps}`, {
        path: "increInterval",
        hint: "Train longer, or grow more sites at a time or more often.",
      });
  }

  /** Which sites come first: Ī·Ū, a random number, or the turn. */
  function priorities(t: Training<Params>): number[] {
    const rng = t.rng.fork("allocation");
    const turn = Math.floor((total(t) - o.r * t.views.length) / q);
    return t.views.map(({ site }, i) => {
      if (o.allocation === "random") return rng.random();
      if (o.allocation === "round-robin") return -((((i - turn) % t.views.length) + t.views.length) % t.views.length);
      const { mean, change } = state[site.path] as unknown as Smoothed;
      return mean * change;
    });
  }

  function grow(t: Training<Params>): void {
    const values = priorities(t);
    const wanted = Math.min(o.topH, target(t) - total(t));
    const edge = values.toSorted((a, b) => b - a)[wanted - 1]!;
    t.views.forEach((view, i) => {
      if (values[i]! >= edge && total(t) < target(t)) growSite(view, q, t, o);
    });
    if (total(t) >= target(t))
      for (const view of t.views)
        reshapeTo(
          view,
          Int32Array.from({ length: usedOf(view.params) }, (_, i) => i),
          t,
        );
  }

  return {
    state,
    beforeForward(t) {
      if (t.step === 0) {
        check(t);
        for (const { params } of t.views) numbers(params.born).fill(0);
        if (total(t) < target(t)) for (const view of t.views) append(view, q, 0, t, o);
      }
      if (o.allocation === "importance" && total(t) < target(t))
        for (const { site, params } of t.views) params.slope = zeros([site.out, site.in], params.A.dtype as "f32");
    },
    ...(o.regOrthCoef > 0 ? { loss: ({ views }: Training<Params>) => orthogonalityLoss(views, o.regOrthCoef) } : {}),
    beforeStep(t) {
      for (const { site, params } of t.views) {
        if (params.slope) smooth((state[site.path] ??= { mean: 0, change: 0 }) as unknown as Smoothed, scoreOf(params, o), o.beta1, o.beta2);
        delete params.slope;
      }
      if (total(t) < target(t) && t.step > o.initWarmup && t.step % interval(t) === 0) grow(t);
      for (const { params } of t.views)
        for (const name of trained) {
          const gradient = t.gradient(params[name] as Parameter);
          if (gradient) clear(params, name, gradient, (i) => !trains(params, name, i, t.step, o));
        }
      before = new Map(t.views.flatMap(({ params }) => trained.map((name) => [params[name], copyOf(params[name])] as const)));
    },
    afterStep(t) {
      for (const { params } of t.views) {
        const grew = numbers(params.born).some((step) => step > t.step);
        for (const name of trained) {
          const factor = (i: number): number => {
            if (!trains(params, name, i, t.step, o)) return 0;
            return o.multiLr && t.learningRate > 0 ? (ownFactor(birthOf(params, name, i), t, o.warmupSteps) * t.peakLearningRate) / t.learningRate : 1;
          };
          const factors = Float64Array.from({ length: params.E.size }, (_, i) => factor(i));
          const [now, old] = [numbers(params[name]), numbers(before!.get(params[name])!)];
          for (let at = 0; at < now.length; at++) now[at] = old[at]! + factors[componentOf(params, name, at)]! * (now[at]! - old[at]!);
          for (const counts of grew ? countsByElement(t, params[name] as Parameter) : []) clear(params, name, counts, (i) => birthOf(params, name, i) > t.step);
        }
      }
      before = undefined;
    },
  };
}

/**
 * IncreLoRA: ΔW = (α/n)·Σⱼ eⱼ·bⱼ·aⱼᵀ; sites start with one component and get more where Σ|ΔW ⊙ ∂L/∂ΔW| says so, until the mean is targetRank.
 * Zhang et al. 2023, arXiv:2308.12043. New components have a warm-up and Adam's counts of their own. The official code's tensors
 * are read where a strut.json beside them gives the options; the reserve is left out.
 *
 * @example
 * const tuned = await adapt(model, increlora, { targetRank: 2, increInterval: 50 });
 */
export const increlora = adapter({
  id: "increlora",
  title: "IncreLoRA",
  paper: "arXiv:2308.12043",
  kinds: ["linear"],
  options,
  size: "targetRank",
  grown: (o) => ({ ...o, r: Math.max(o.r, o.targetRank) }),
  init(site, o, { rng, dtype }): Params {
    return {
      A: rng.fork("A").normal([o.r, site.in], 0.02, dtype),
      B: rng.fork("B").normal([site.out, o.r], 0.02, dtype),
      E: zeros([o.r], dtype),
      used: full([1], o.r, dtype),
      born: zeros([2, o.r], dtype),
    };
  },
  update: (p: Params, _site, o) => updateOf(p, o),
  forward(x, y, p, site, o, live) {
    const input = dropInput(x, o, site, live);
    return p.slope ? scored(input, y, p, p.slope, o) : addAt(site, updateOf(p, o), y, input);
  },
  regime,
  finish(p) {
    const used = usedOf(p);
    if (used === p.E.size) return { params: p };
    const kept = tensor(
      Int32Array.from({ length: used }, (_, i) => i),
      [used],
      "i32",
    );
    return { params: { ...p, A: indexSelect(p.A, 0, kept), B: indexSelect(p.B, 1, kept), E: indexSelect(p.E, 0, kept), born: indexSelect(p.born, 1, kept) } };
  },
  layout: {
    published(key) {
      const [, module, part] = /^(.+)\.lora_([ABE])\.\d+$/.exec(key) ?? [];
      return part && `${module}.lora_${part}`;
    },
    assemble: fromLists,
    options: loraPeftOptions,
    tensors: { linear: { A: "lora_A", B: "lora_B", E: "lora_E", used: "ranknum", born: "lora_born" } },
    frozen: ["used", "born"],
  },
});
