import { z } from "zod";
import type { Transform } from "../nn/contracts.ts";
import { addDecayedWeights, momentum, scaleByLearningRate } from "./links.ts";
import { chain, optimizer } from "./optimizer.ts";

const core = (o: { momentum: number; nesterov: boolean }): Transform => (o.momentum > 0 ? momentum(o.momentum, o.nesterov) : chain());

/**
 * Stochastic gradient descent with momentum, as torch has it: decay is added to the gradient, before momentum.
 *
 * @example
 * const optimizer = { method: sgd, options: { lr: 0.1, momentum: 0.9 } }; // for train()
 */
export const sgd = optimizer({
  id: "sgd",
  title: "SGD with momentum",
  paper: "Polyak 1964; Sutskever et al. 2013",
  options: z.object({
    lr: z.number().nonnegative().default(1e-3).describe("learning rate; defaults to 1e-3"),
    momentum: z.number().min(0).lt(1).default(0).describe("share of the last step that is kept; defaults to 0"),
    nesterov: z.boolean().default(false).describe("look one step ahead; defaults to false"),
    weightDecay: z.number().nonnegative().default(0).describe("pull of the weights towards 0; defaults to 0"),
  }),
  core,
  build: (o, inner = core(o)) => chain(addDecayedWeights(), inner, scaleByLearningRate()),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
