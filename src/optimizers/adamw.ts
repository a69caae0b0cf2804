import { z } from "zod";
import { adamCoreOf, adamOptions } from "./adam-core.ts";
import { addDecayedWeights, scaleByLearningRate } from "./links.ts";
import { chain, optimizer } from "./optimizer.ts";

/**
 * AdamW: Adam's direction plus weightDecay·w, times the learning rate. Loshchilov & Hutter 2017, arXiv:1711.05101; defaults
 * and order of operations are torch's. With `state: "8bit"` it is bitsandbytes' AdamW8bit (`adamw_bnb_8bit` in transformers),
 * with the decay before the update as on its CPU.
 *
 * @example
 * const optimizer = { method: adamw, options: { lr: 2e-4, weightDecay: 0 } }; // for train()
 */
export const adamw = optimizer({
  id: "adamw",
  title: "AdamW",
  paper: "arXiv:1711.05101",
  options: z.object({
    lr: z.number().nonnegative().default(1e-3).describe("learning rate; defaults to 1e-3"),
    ...adamOptions({ eps: 1e-8 }),
    weightDecay: z.number().nonnegative().default(0.01).describe("pull of the weights towards 0, times the learning rate; defaults to 0.01"),
  }),
  core: adamCoreOf,
  build: (o, inner = adamCoreOf(o)) => chain(inner, addDecayedWeights(), scaleByLearningRate()),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
