import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Regime, Site, State, Training, View } from "../nn/contracts.ts";
import { coredLowRank } from "../operators/index.ts";
import { hostNumbers, indexSelect, keep, Parameter, reshape, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { adapter, addAt } from "./adapter.ts";
import type { AttachedAdapter } from "./attach.ts";
import { dropInput, loraOptions, loraPeftOptions } from "./lora.ts";
import { cubic, orthogonalityLoss } from "./sensitivity.ts";

const options = z.object({
  initR: z.int().positive().default(12).describe("rank of every site at the start; defaults to 12"),
  targetR: z.int().nonnegative().optional().describe("mean rank at the end; defaults to two thirds of initR"),
  alpha: loraOptions.shape.alpha,
  dropout: loraOptions.shape.dropout,
  tinit: z.int().nonnegative().default(0).describe("steps before pruning begins; defaults to 0, which prunes on noise: use more"),
  tfinal: z.int().nonnegative().default(0).describe("steps at the end with the final ranks; defaults to 0"),
  deltaT: z.int().positive().default(1).describe("steps between two prunings; defaults to 1"),
  beta1: z.number().min(0).lt(1).default(0.85).describe("decay of the averaged sensitivity; defaults to 0.85"),
  beta2: z.number().min(0).lt(1).default(0.85).describe("decay of its averaged change; defaults to 0.85"),
  importance: z
    .enum(["smoothed", "sensitivity", "magnitude"])
    .default("smoothed")
    .describe(
      "score of a triplet: averaged sensitivity times its averaged change, this step's sensitivity, or |E|, which the paper compares; defaults to smoothed",
    ),
  orthRegWeight: z.number().nonnegative().default(0.5).describe("weight of the mean ‖AAᵀ − I‖ and ‖BᵀB − I‖ in the loss; defaults to 0.5"),
  totalStep: z.int().positive().nullable().default(null).describe("steps of the schedule, which must be those of the run; defaults to them"),
});
type Options = z.output<typeof options>;
type Params = { A: Tensor; B: Tensor; E: Tensor };

const targetOf = (o: Options): number => o.targetR ?? Math.round((o.initR * 2) / 3);

/** α / (initR + 1e-5), whatever rank is left; initR over it where α is not positive. */
const scaleOf = (o: Options): number => (o.alpha > 0 ? o.alpha : o.initR) / (o.initR + 1e-5);
const updateOf = ({ A, B, E }: Params, o: Options): ReturnType<typeof coredLowRank> => coredLowRank(B, reshape(E, [E.size]), A, scaleOf(o));

/** The budget Σr after step t (from 1), and whether triplets are masked then. */
export function budgetAt(t: number, total: number, sites: number, o: Options): { budget: number; masks: boolean } {
  const { tinit, tfinal, deltaT, initR } = o;
  const [start, end] = [initR * sites, targetOf(o) * sites];
  if (t <= tinit) return { budget: start, masks: false };
  if (t > total - tfinal) return { budget: end, masks: true };
  return { budget: Math.trunc(cubic(t, tinit, total - tfinal, start, end)), masks: t % deltaT === 0 };
}

function check(o: Options, { steps, views }: Training<Params>): void {
  const wrong = (message: string, path: string, hint: string): never => {
    throw new StrutError("option", `adalora: ${message}`, { path, hint });
  };
  // the file of a trained adapter has the steps of the run that trained it
  const fresh = views.every(({ params }) => numbers(params.E).every((e) => e === 0));
  if (fresh && o.totalStep !== null && o.totalStep !== steps)
    wrong(`its schedule has ${o.totalStep} steps and the run ${steps}`, "totalStep", "Leave totalStep out: the schedule takes the steps of the run.");
  if (o.tinit >= steps - o.tfinal)
    wrong(`tinit ${o.tinit} and tfinal ${o.tfinal} leave no step of the ${steps} for pruning`, "tinit", "Train longer, or shorten them.");
}

const numbers = (x: Tensor): Float32Array => hostView(x) as Float32Array;

/** Averages of |w·∂w| by element, and of their change, for one parameter. */
function average(state: State, w: Parameter, g: Tensor | undefined, o: Options): void {
  const { beta1, beta2 } = o.importance === "smoothed" ? o : { beta1: 0, beta2: 0 };
  const [mean, change] = ["mean", "change"].map((key) => numbers((state[key] ??= keep(zeros(w.shape, w.dtype as "f32"))) as Tensor));
  const [value, gradient] = [numbers(w), g ? (hostNumbers(g) as Float32Array) : undefined];
  for (let i = 0; i < value.length; i++) {
    const sensitivity = gradient ? Math.abs(value[i]! * gradient[i]!) : 0;
    mean![i] = beta1 * mean![i]! + (1 - beta1) * sensitivity;
    change![i] = beta2 * change![i]! + (1 - beta2) * Math.abs(sensitivity - mean![i]!);
  }
}

/** S_i of each triplet: E's score, and the means of A's row and of B's column; or |E_i| alone. */
function scores({ params }: View<Params>, state: State, { importance }: Options): number[] {
  if (importance === "magnitude") return Array.from(numbers(params.E), Math.abs);
  const of = (name: keyof Params): Float32Array => {
    const { mean, change } = state[name] as Record<string, Tensor>;
    const spread = numbers(change!);
    return importance === "sensitivity" ? numbers(mean!) : numbers(mean!).map((x, i) => x * spread[i]!);
  };
  const [A, B, E] = [of("A"), of("B"), of("E")];
  const r = E.length;
  const [inner, out] = [params.A.shape[1]!, params.B.shape[0]!];
  return Array.from(E, (e, i) => {
    let [row, column] = [0, 0];
    for (let j = 0; j < inner; j++) row += A[i * inner + j]!;
    for (let j = 0; j < out; j++) column += B[j * r + i]!;
    return e + row / inner + column / out;
  });
}

/** Zeroes E where the mask is 0. */
function hold({ params }: View<Params>, kept: Tensor): void {
  const [E, mask] = [numbers(params.E), numbers(kept)];
  for (let i = 0; i < E.length; i++) if (mask[i] === 0) E[i] = 0;
}

/** Keeps the triplets with the largest scores of all sites, `budget` of them; fewer where scores tie. */
function allocate(t: Training<Params>, state: State, budget: number, o: Options): void {
  const all = t.views.map((view) => scores(view, (state[view.site.path] ??= {}) as State, o));
  const sorted = all.flat().sort((a, b) => a - b);
  const pruned = sorted.length - budget;
  const threshold = pruned > 0 ? sorted[pruned - 1]! : -Infinity;
  t.views.forEach((view, i) => {
    const kept = tensor(
      all[i]!.map((score) => (score <= threshold ? 0 : 1)),
      [all[i]!.length],
      view.params.E.dtype as "f32",
    );
    (state[view.site.path] as State)["kept"] = kept;
    hold(view, kept);
  });
}

function regime(o: Options): Regime<Params> {
  const state: State = {};
  return {
    state,
    beforeForward(t) {
      if (t.step === 0) check(o, t);
      state["steps"] = t.steps;
    },
    ...(o.orthRegWeight > 0 ? { loss: ({ views }: Training<Params>) => orthogonalityLoss(views, o.orthRegWeight) } : {}),
    afterStep(t) {
      const [now, total] = [t.step + 1, t.steps];
      if (now < total - o.tfinal && o.importance !== "magnitude")
        for (const { site, params } of t.views)
          for (const name of ["A", "B", "E"] as const) {
            const own = (state[site.path] ??= {}) as State;
            average((own[name] ??= {}) as State, params[name] as Parameter, t.gradient(params[name] as Parameter), o);
          }
      const { budget, masks } = budgetAt(now, total, t.views.length, o);
      if (now > total - o.tfinal) for (const view of t.views) hold(view, (state[view.site.path] as State)["kept"] as Tensor);
      else if (masks || now === total - o.tfinal) allocate(t, state, now === total - o.tfinal ? targetOf(o) * t.views.length : budget, o);
    },
  };
}

const names = { A: "lora_A", B: "lora_B", E: "lora_E" } as const;

/** Which triplets of a site are left. */
const left = ({ E }: Params): boolean[] => Array.from(hostNumbers(E) as Float32Array, (e) => e !== 0);

function rankPattern(set: AttachedAdapter, held: AttachedAdapter): Record<string, boolean[]> {
  const before = (set.raw?.["rank_pattern"] ?? {}) as Record<string, boolean[]>;
  return Object.fromEntries(
    [...held.entries].map(([path, params]) => {
      const [now, known] = [left(params as Params), before[`${path}.lora_E`]];
      return [`${path}.lora_E`, known?.filter(Boolean).length === now.length && now.every(Boolean) ? known : now];
    }),
  );
}

/**
 * AdaLoRA: ΔW = s·B·diag(E)·A with nearly orthogonal factors; triplets with the least sensitivity are zeroed on a cubic schedule until
 * the mean rank is targetR. Zhang et al. 2023, arXiv:2303.10512. Its schedule is the run's: train() does the rest.
 *
 * @example
 * const tuned = await adapt(model, adalora, { initR: 6, targetR: 4, tinit: 20, tfinal: 50 });
 */
export const adalora = adapter({
  id: "adalora",
  title: "AdaLoRA",
  paper: "arXiv:2303.10512",
  kinds: ["linear", "conv2d"],
  options,
  size: "initR",
  init(site: Site, o, { rng, dtype }): Params {
    if (targetOf(o) > o.initR)
      throw new StrutError("option", `adalora: targetR ${targetOf(o)} is above initR ${o.initR}, from which ranks only fall`, { path: "targetR" });
    if (o.initR > Math.min(site.out, site.in))
      throw new StrutError("option", `rank ${o.initR} is above what ${site.path} can have: its matrix is ${site.out}×${site.in}`, { path: "initR" });
    const draw = (name: string, shape: readonly number[]): Tensor => rng.fork(name).normal(shape, 0.02, dtype);
    return { A: draw("A", [o.initR, site.in]), B: draw("B", [site.out, o.initR]), E: zeros([o.initR, 1], dtype) };
  },
  update: (p: Params, _site, o) => updateOf(p, o),
  forward: (x, y, p, site, o, live) => addAt(site, updateOf(p, o), y, dropInput(x, o, site, live)),
  regime,
  finish(p) {
    const kept = left(p).flatMap((is, i) => (is ? [i] : []));
    const index = tensor(kept, [kept.length], "i32");
    return { params: kept.length === p.E.size ? p : { A: indexSelect(p.A, 0, index), B: indexSelect(p.B, 1, index), E: indexSelect(p.E, 0, index) } };
  },
  layout: {
    type: "ADALORA",
    options: { ...loraPeftOptions, deltaT: "deltaT" },
    tensors: { linear: names, conv2d: names },
    config(set, held) {
      const o = set.options as Options;
      // PEFT opens no folder whose total_step is not above tinit + tfinal
      const steps = o.totalStep ?? set.regime?.state?.["steps"] ?? o.tinit + o.tfinal + 1;
      return { rank_pattern: rankPattern(set, held), target_r: targetOf(o), total_step: steps };
    },
  },
});
