import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Live, Regime, Site, State, Training, View } from "../nn/contracts.ts";
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
  Parameter,
  scale,
  sum,
  tensor,
  zeros,
  type Tensor,
} from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { adapter, addAt } from "./adapter.ts";
import { dropInput, loraOptions } from "./lora.ts";
import { orthogonalityLoss, smooth, type Smoothed } from "./sensitivity.ts";

const beta = z.number().min(0).lt(1);
const options = z.object({
  r: z.int().positive().default(1).describe("components of every site at the start; defaults to 1"),
  targetRank: z.int().positive().default(2).describe("mean number of components at the end; defaults to 2"),
  increRankNum: z.int().positive().default(1).describe("components that a chosen site grows by; defaults to 1"),
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
/** Components by row of A, column of B and entry of E; `used` of them count, what is behind is the reserve. `born`: the step of each. */
type Params = { A: Tensor; B: Tensor; E: Tensor; used: Tensor; born: Tensor };

const RESERVE = 1e-5;
const numbers = (x: Tensor): Float32Array => hostView(x) as Float32Array;
const usedOf = ({ used }: Params): number => numbers(used)[0]!;
const scaleOf = (p: Params, o: Options): number => o.alpha / (usedOf(p) + 1e-5);
const updateOf = (p: Params, o: Options): ReturnType<typeof coredLowRank> => coredLowRank(p.B, p.E, p.A, scaleOf(p, o));

/** What a step adds up at a site: Σ|ΔW ⊙ ∂L/∂ΔW|. */
const scoreKey = (site: Site): string => `increlora/${site.path}`;

/** y + x·ΔWᵀ with ΔW on the tape, whose backward pass takes the score. */
function scored(x: Tensor, y: Tensor, p: Params, site: Site, o: Options, live: Live): Tensor {
  const update = scale(matmul(mul(p.B, p.E), p.A), scaleOf(p, o));
  const seen = customGradient(
    [update],
    (W) => copyOf(W),
    (g) => {
      const total = Number(hostNumbers(sum(abs(mul(update, g))))[0]);
      live.values[scoreKey(site)] = (live.values[scoreKey(site)] ?? 0) + total;
      return [g];
    },
  );
  return add(y, linear(x, seen));
}

/** New components behind those there are, from the random numbers of a step; the optimiser's state of the new ones is zero. */
function append({ site, params, resize }: View<Params>, q: number, t: Training<Params>, o: Options): void {
  const index = Int32Array.from({ length: params.E.size + q }, (_, i) => (i < params.E.size ? i : -1));
  const first = params.E.size;
  resize("A", 0, index, "gather");
  resize("B", 1, index, "gather");
  resize("E", 0, index, "gather", o.advanceLearn ? RESERVE : 0);
  resize("born", 0, index, "gather", t.step);
  const rng = t.rng.fork(site.path);
  const [A, B] = [numbers(params.A), numbers(params.B)];
  const [inner, rows] = [params.A.shape[1]!, first + q];
  A.set(hostNumbers(rng.fork("A").normal([q, inner], 0.02, params.A.dtype as "f32")) as Float32Array, first * inner);
  const drawn = hostNumbers(rng.fork("B").normal([params.B.shape[0]!, q], 0.02, params.B.dtype as "f32")) as Float32Array;
  for (let i = 0; i < params.B.shape[0]!; i++) for (let j = 0; j < q; j++) B[i * rows + first + j] = drawn[i * q + j]!;
}

/** Takes the reserve out. */
function dropReserve({ params, resize }: View<Params>): void {
  const kept = Int32Array.from({ length: usedOf(params) }, (_, i) => i);
  for (const [name, axis] of [
    ["A", 0],
    ["B", 1],
    ["E", 0],
    ["born", 0],
  ] as const)
    resize(name, axis, kept, "gather");
}

/** The factor of the learning rate of a component: warm-up from its birth, then a straight line to 0. */
const ownFactor = (born: number, { step, steps }: Training<Params>, warmup: number): number => {
  const age = step - born;
  return age < warmup ? (age + 1) / (warmup + 1) : Math.max(0, (steps - step) / Math.max(1, steps - born - warmup));
};

function regime(o: Options): Regime<Params> {
  const state: State = { grown: 0 };
  let before: Map<Tensor, Float32Array> | undefined;
  const importance = (path: string): Smoothed => (state[path] ??= { mean: 0, change: 0 }) as unknown as Smoothed;
  const target = (t: Training<Params>): number => o.targetRank * t.views.length;
  const rounds = (t: Training<Params>): number => Math.ceil((target(t) - o.r * t.views.length) / (o.topH * o.increRankNum));
  const interval = (t: Training<Params>): number => o.increInterval ?? Math.max(1, Math.floor((0.4 * t.steps - o.initWarmup) / Math.max(1, rounds(t))));
  const total = (t: Training<Params>): number => t.views.reduce((all, { params }) => all + usedOf(params), 0);
  return {
    state,
    beforeForward(t) {
      if (t.step === 0) {
        if (o.targetRank < o.r)
          throw new StrutError("option", `increlora: targetRank ${o.targetRank} is below r ${o.r}, from which ranks only grow`, { path: "targetRank" });
        const last = o.initWarmup + rounds(t) * interval(t);
        if (rounds(t) > 0 && last >= t.steps)
          throw new StrutError("option", `increlora: growing to a mean rank of ${o.targetRank} takes until step ${last}, the run has ${t.steps}`, {
            path: "increInterval",
            hint: "Train longer, or grow more sites at a time or more often.",
          });
        if (total(t) < target(t)) for (const view of t.views) append(view, o.increRankNum, t, o);
      }
      for (const { site } of t.views) t.live.values[scoreKey(site)] = 0;
      t.live.values["increlora/growing"] = Number(total(t) < target(t));
    },
    ...(o.regOrthCoef > 0 ? { loss: ({ views }: Training<Params>) => orthogonalityLoss(views, o.regOrthCoef) } : {}),
    beforeStep(t) {
      if (t.live.values["increlora/growing"] === 1) grow(t);
      // the reserve's E does not train, nor without advance learning its A and B
      for (const { params } of t.views) {
        const used = usedOf(params);
        const gradient = t.gradient(params.E as Parameter);
        if (gradient) numbers(gradient).fill(0, used);
      }
      before = new Map(t.views.flatMap(({ params: { A, B, E } }) => [A, B, E].map((w) => [w, numbers(w).slice()] as const)));
    },
    afterStep(t) {
      for (const { params } of t.views) {
        const [born, used] = [numbers(params.born), usedOf(params)];
        const factors = Float64Array.from(born, (birth, i) => {
          if (i >= used && !o.advanceLearn) return 0;
          return o.multiLr && t.learningRate > 0 ? (ownFactor(birth, t, o.warmupSteps) * t.peakLearningRate) / t.learningRate : 1;
        });
        const blend = (w: Tensor, component: (at: number) => number): void => {
          const [now, old] = [numbers(w), before!.get(w)!];
          for (let i = 0; i < now.length; i++) now[i] = old[i]! + factors[component(i)]! * (now[i]! - old[i]!);
        };
        blend(params.A, (at) => Math.floor(at / params.A.shape[1]!));
        blend(params.B, (at) => at % params.B.shape[1]!);
        blend(params.E, (at) => at);
        for (let i = used; i < born.length; i++) numbers(params.E)[i] = before!.get(params.E)![i]!;
      }
      before = undefined;
    },
  };

  function grow(t: Training<Params>): void {
    const values = t.views.map(({ site }) => {
      const score = (t.live.values[scoreKey(site)] ?? 0) / (o.scoreNorm === "sqrt" ? Math.sqrt(site.out * site.in) : site.out * site.in);
      const own = importance(site.path);
      smooth(own, score, o.beta1, o.beta2);
      return own.mean * own.change;
    });
    if (!(t.step > o.initWarmup && t.step % interval(t) === 0)) return;
    const wanted = Math.min(o.topH, target(t) - total(t));
    const edge = values.toSorted((a, b) => b - a)[wanted - 1]!;
    t.views.forEach((view, i) => {
      if (values[i]! < edge || total(t) >= target(t)) return;
      const { used, E } = view.params;
      numbers(E).fill(RESERVE, numbers(used)[0]!);
      numbers(used)[0]! += o.increRankNum;
      numbers(view.params.born).fill(t.step, numbers(used)[0]! - o.increRankNum);
      append(view, o.increRankNum, t, o);
    });
    if (total(t) >= target(t)) for (const view of t.views) dropReserve(view);
  }
}

/**
 * IncreLoRA: ΔW = (α/n)·Σⱼ eⱼ·bⱼ·aⱼᵀ; sites start with one component and get more where Σ|ΔW ⊙ ∂L/∂ΔW| says so, until the mean is targetRank.
 * Zhang et al. 2023, arXiv:2308.12043. Growth is a matter of the run; Adam's bias correction counts new components as old.
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
      born: zeros([o.r], dtype),
    };
  },
  update: (p: Params, _site, o) => updateOf(p, o),
  forward(x, y, p, site, o, live) {
    const input = dropInput(x, o, site, live);
    return live.training && live.values["increlora/growing"] === 1 ? scored(input, y, p, site, o, live) : addAt(site, updateOf(p, o), y, input);
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
    return { params: { ...p, A: indexSelect(p.A, 0, kept), B: indexSelect(p.B, 1, kept), E: indexSelect(p.E, 0, kept), born: indexSelect(p.born, 0, kept) } };
  },
  layout: { tensors: { linear: { A: "lora_A", B: "lora_B", E: "lora_E", used: "ranknum", born: "lora_born" } }, frozen: ["used", "born"] },
});
