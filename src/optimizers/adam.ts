import { z } from "zod";
import { adamCoreOf, adamOptions } from "./adam-core.ts";
import { addDecayedWeights, decayAfterUpdate, scaleByLearningRate } from "./links.ts";
import { chain, optimizer } from "./optimizer.ts";

/**
 * Adam as torch has it: weightDecay·w is added to the gradient, so the averages see it. Kingma & Ba 2014, arXiv:1412.6980.
 *
 * @example
 * const optimizer = { method: adam, options: { lr: 1e-3 } }; // for train()
 */
export const adam = optimizer({
  id: "adam",
  title: "Adam",
  paper: "arXiv:1412.6980",
  options: z.object({
    lr: z.number().nonnegative().default(1e-3).describe("learning rate; defaults to 1e-3"),
    ...adamOptions({ eps: 1e-8 }),
    weightDecay: z.number().nonnegative().default(0).describe("pull of the weights towards 0, as part of the gradient; defaults to 0"),
  }),
  core: adamCoreOf,
  build: (o, inner = adamCoreOf(o)) => chain(addDecayedWeights(), inner, scaleByLearningRate()),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});

const hfCore = ({ correctBias, ...o }: Parameters<typeof adamCoreOf>[0] & { correctBias: boolean }) =>
  adamCoreOf({ ...o, form: correctBias ? "hf" : "uncorrected" });

/**
 * AdamW as transformers first had it, and GaLore and Fira after it: eps is added to the uncorrected √v, and the decay follows
 * the update. w ← w − lr·(√c₂/c₁)·m/(√v + eps), then w ← w − lr·weightDecay·w, with c = 1 − beta^t.
 *
 * @example
 * const optimizer = { method: adamwHf, options: { lr: 1e-3, correctBias: false } }; // for train()
 */
export const adamwHf = optimizer({
  id: "adamw-hf",
  title: "AdamW of the first transformers",
  paper: "arXiv:1711.05101",
  options: z.object({
    lr: z.number().nonnegative().default(1e-3).describe("learning rate; defaults to 1e-3"),
    ...adamOptions({ eps: 1e-6 }),
    correctBias: z.boolean().default(true).describe("make up for averages that start at 0; BERT's Adam does not; defaults to true"),
    weightDecay: z.number().nonnegative().default(0).describe("pull of the weights towards 0, times the learning rate, after the update; defaults to 0"),
  }),
  core: hfCore,
  build: (o, inner = hfCore(o)) => chain(inner, scaleByLearningRate(), decayAfterUpdate()),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
