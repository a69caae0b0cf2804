import { z } from "zod";
import type { ParameterLink } from "../nn/contracts.ts";
import { adamCore } from "./adam-core.ts";
import { addDecayedWeights, scaleByLearningRate } from "./links.ts";
import { chain, optimizer } from "./optimizer.ts";

const beta = z.number().min(0).lt(1);

const core = (o: { betas: readonly [number, number]; eps: number }): ParameterLink => adamCore({ beta1: o.betas[0], beta2: o.betas[1], eps: o.eps });

/**
 * AdamW: Adam's direction plus weightDecay·w, times the learning rate. Loshchilov & Hutter 2017, arXiv:1711.05101; defaults
 * and order of operations are torch's.
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
    betas: z.tuple([beta, beta]).default([0.9, 0.999]).describe("decay of the averages of gradients and of their squares; defaults to [0.9, 0.999]"),
    eps: z.number().positive().default(1e-8).describe("added to the denominator; defaults to 1e-8"),
    weightDecay: z.number().nonnegative().default(0.01).describe("pull of the weights towards 0, times the learning rate; defaults to 0.01"),
  }),
  core,
  build: (o, inner = core(o)) => chain(inner, addDecayedWeights(), scaleByLearningRate()),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
