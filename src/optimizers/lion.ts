import { z } from "zod";
import type { ParameterLink } from "../nn/contracts.ts";
import { UNARY } from "../tensor/backends/signatures-core.ts";
import { kernels } from "../tensor/engine.ts";
import { empty, zeros, type Tensor } from "../tensor/index.ts";
import { accumulate } from "./in-place.ts";
import { addDecayedWeights, scaleByLearningRate } from "./links.ts";
import { chain, optimizer } from "./optimizer.ts";

/** u ← sign(u) */
export const takeSign = (): ParameterLink => ({
  scope: "parameter",
  init: () => ({}),
  update(u) {
    kernels().unary(UNARY.sign, u, u, u.size);
    return u;
  },
});

/** β₁m + (1 − β₁)g, and then m ← β₂m + (1 − β₂)g. */
const lookAhead = (beta1: number, beta2: number): ParameterLink => ({
  scope: "parameter",
  init: (w) => ({ m: zeros(w.shape, w.dtype) }),
  update(g, s) {
    const m = s["m"] as Tensor;
    const ahead = empty(g.shape, g.dtype);
    accumulate(ahead, beta1, m, 0);
    accumulate(ahead, 1 - beta1, g);
    accumulate(m, 1 - beta2, g, beta2);
    return ahead;
  },
});

const core = (o: { betas: readonly [number, number] }) => chain(lookAhead(...o.betas), takeSign());

const beta = z.number().min(0).lt(1);

/**
 * Lion: the sign of a momentum that looks one step ahead, u = sign(β₁m + (1 − β₁)g), then m ← β₂m + (1 − β₂)g;
 * w ← w − lr·(u + weightDecay·w). One average, half of Adam's state. Chen et al. 2023, arXiv:2302.06675.
 *
 * @example
 * const optimizer = { method: lion, options: { lr: 1e-4, weightDecay: 0.1 } }; // for train()
 */
export const lion = optimizer({
  id: "lion",
  title: "Lion",
  paper: "arXiv:2302.06675",
  options: z.object({
    lr: z.number().nonnegative().default(1e-4).describe("learning rate, a third to a tenth of Adam's; defaults to 1e-4"),
    betas: z.tuple([beta, beta]).default([0.9, 0.99]).describe("share of the average in the direction, and its decay; defaults to [0.9, 0.99]"),
    weightDecay: z.number().nonnegative().default(0).describe("pull of the weights towards 0, times the learning rate; defaults to 0"),
  }),
  core,
  build: (o, inner = core(o)) => chain(inner, addDecayedWeights(), scaleByLearningRate()),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});

/**
 * signSGD: w ← w − lr·(sign(g) + weightDecay·w), with no state at all. Bernstein et al. 2018, arXiv:1802.04434.
 *
 * @example
 * const optimizer = { method: signsgd, options: { lr: 1e-3 } }; // for train()
 */
export const signsgd = optimizer({
  id: "signsgd",
  title: "signSGD",
  paper: "arXiv:1802.04434",
  options: z.object({
    lr: z.number().nonnegative().default(1e-3).describe("learning rate: how far every number moves; defaults to 1e-3"),
    weightDecay: z.number().nonnegative().default(0).describe("pull of the weights towards 0, times the learning rate; defaults to 0"),
  }),
  core: takeSign,
  build: (_o, inner = takeSign()) => chain(inner, addDecayedWeights(), scaleByLearningRate()),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
