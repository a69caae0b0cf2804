import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Regime, Training, View } from "../nn/contracts.ts";
import { coredLowRank } from "../operators/index.ts";
import { abs, add, hostNumbers, indexSelect, Parameter, reshape, scale, sum, tensor, type Tensor } from "../tensor/index.ts";
import { adapter, addAt } from "./adapter.ts";
import { dropInput, initLora, loraOptions, loraPeftOptions } from "./lora.ts";
import { shrink } from "./proximal.ts";

const options = loraOptions.omit({ loraBias: true, useRslora: true }).extend({
  r: z.int().positive().default(8).describe("rank at the start; gates that become zero lower it; defaults to 8"),
  alpha: z.number().default(16).describe("the update is scaled by alpha / r, with the rank at the start; defaults to 16"),
  sparseLambda: z.number().nonnegative().default(0).describe("weight of the mean |gate| over all gates in the loss; defaults to 0"),
  sparseLambda2: z.number().nonnegative().default(3e-4).describe("ξ: threshold of the proximal step, not scaled by the learning rate; defaults to 3e-4"),
  sparseLearningRateFactor: z.number().positive().default(1).describe("the gates' learning rate over the run's; defaults to 1"),
  prox: z.enum(["soft", "official"]).default("soft").describe("soft threshold, or the released code, which zeroes up to 2ξ; defaults to soft"),
  scaleByLr: z.boolean().default(false).describe("threshold ξ·learning rate; defaults to false"),
  lambdaSchedule: z
    .enum(["none", "linear", "log_linear", "exp_linear"])
    .default("none")
    .describe("how ξ grows from sparseLambda2 to maxLambda over lambdaNum stages; defaults to none"),
  maxLambda: z.number().positive().default(7e-4).describe("last ξ of the schedule; defaults to 7e-4"),
  lambdaNum: z.int().positive().default(7).describe("values of ξ in the schedule; defaults to 7"),
  stageSteps: z.int().positive().default(100).describe("steps of each ξ but the first, which has the rest; defaults to 100"),
  prune: z.boolean().default(true).describe("take ranks whose gate is zero out when a stage of the schedule ends; defaults to true"),
});
type Options = z.output<typeof options>;
/** gate: 1×r */
type Params = { A: Tensor; B: Tensor; gate: Tensor };

const updateOf = ({ A, B, gate }: Params, o: Options): ReturnType<typeof coredLowRank> => coredLowRank(B, reshape(gate, [gate.size]), A, o.alpha / o.r);

/** The thresholds of the stages (Algorithm 1). */
export function thresholds({ lambdaSchedule, sparseLambda2: first, maxLambda: last, lambdaNum: n }: Options): number[] {
  if (lambdaSchedule === "none") return [first];
  const between = (from: number, to: number): number[] => Array.from({ length: n }, (_, i) => (n === 1 ? from : from + ((to - from) * i) / (n - 1)));
  if (lambdaSchedule === "linear") return between(first, last);
  if (lambdaSchedule === "log_linear") return between(Math.exp(first), Math.exp(last)).map(Math.log);
  if (first > 0) return between(Math.log(first), Math.log(last)).map(Math.exp);
  throw new StrutError("option", "sora: exp_linear needs sparseLambda2 above 0, since it takes its logarithm", { path: "sparseLambda2" });
}

/** The ranks whose gate is not zero. */
const open = ({ gate }: Params): Int32Array => {
  const gates = hostNumbers(gate) as Float32Array;
  return Int32Array.from([...gates.keys()].filter((i) => gates[i] !== 0));
};

/** Takes out ranks whose gate is zero; the optimiser's state follows. */
function prune({ params, resize }: View<Params>): void {
  const kept = open(params);
  if (kept.length === params.gate.size) return;
  resize("A", 0, kept, "gather");
  resize("B", 1, kept, "gather");
  resize("gate", 1, kept, "gather");
}

function regime(o: Options): Regime<Params> {
  const stages = thresholds(o);
  const gatesOf = ({ views }: Training<Params>): Parameter[] => views.map(({ params }) => params.gate as Parameter);
  const stageAt = ({ step, steps }: Training<Params>): number => Math.max(0, stages.length - 1 - Math.floor((steps - 1 - step) / o.stageSteps));
  return {
    groups: (t) => [{ parameters: gatesOf(t), weightDecay: 0, learningRateFactor: o.sparseLearningRateFactor }],
    beforeForward({ step, steps }) {
      if (step === 0 && (stages.length - 1) * o.stageSteps >= steps)
        throw new StrutError("option", `sora: ${stages.length} thresholds of ${o.stageSteps} steps do not fit into a run of ${steps}`, {
          path: "stageSteps",
          hint: "Train longer, or choose fewer or shorter stages.",
        });
    },
    ...(o.sparseLambda > 0
      ? {
          loss(t: Training<Params>) {
            const gates = gatesOf(t);
            const count = gates.reduce((total, { size }) => total + size, 0);
            return scale(gates.map((gate) => sum(abs(gate))).reduce(add), o.sparseLambda / Math.max(1, count));
          },
        }
      : {}),
    afterStep(t) {
      const stage = stageAt(t);
      for (const gate of gatesOf(t)) shrink(gate, stages[stage]! * (o.scaleByLr ? t.learningRate : 1), o.prox);
      const ends = stages.length > 1 && (stageAt({ ...t, step: t.step + 1 } as Training<Params>) !== stage || t.step === t.steps - 1);
      if (ends && o.prune) for (const view of t.views) prune(view);
    },
  };
}

/**
 * SoRA: ΔW = (α/r)·B·diag(g)·A with gates g that a proximal step makes exactly zero, so that each site finds its rank.
 * Ding et al. 2023, arXiv:2311.11696. `toLora` without a rank gives the plain LoRA to ship: gates folded into B, alpha·(what is left)/r.
 *
 * @example
 * const tuned = await adapt(model, sora, { r: 8, sparseLambda2: 1e-3 });
 */
export const sora = adapter({
  id: "sora",
  title: "SoRA",
  paper: "arXiv:2311.11696",
  kinds: ["linear"],
  options,
  begins: "factors",
  init(site, o, context): Params {
    const { A, B } = initLora(site, o, context) as { A: Tensor; B: Tensor };
    return { A, B, gate: context.rng.fork("gate").normal([1, o.r], 1, context.dtype) };
  },
  update: (p: Params, _site, o) => updateOf(p, o),
  forward: (x, y, p, site, o, live) => addAt(site, updateOf(p, o), y, dropInput(x, o, site, live)),
  regime,
  finish(p) {
    const kept = open(p);
    const index = tensor(kept, [kept.length], "i32");
    return { params: kept.length === p.gate.size ? p : { A: indexSelect(p.A, 0, index), B: indexSelect(p.B, 1, index), gate: indexSelect(p.gate, 1, index) } };
  },
  layout: { options: loraPeftOptions, tensors: { linear: { A: "lora_A.weight", B: "lora_B.weight", gate: "lora_gate" } } },
});
