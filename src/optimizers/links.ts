import type { ParameterLink } from "../nn/contracts.ts";
import { zeros, type Tensor } from "../tensor/index.ts";
import { accumulate, overwrite, scaleInPlace } from "./in-place.ts";

/** Adds decay·w, the decay being that of the parameter's group (Loshchilov & Hutter 2017, arXiv:1711.05101). */
export const addDecayedWeights = (): ParameterLink => ({
  scope: "parameter",
  fused: { kind: "decay" },
  init: () => ({}),
  update(u, _s, w, t) {
    const decay = t.weightDecay(w);
    if (decay !== 0) accumulate(u, decay, w);
    return u;
  },
});

/** Multiplies by the learning rate of the parameter's group at this step. */
export const scaleByLearningRate = (): ParameterLink => ({
  scope: "parameter",
  fused: { kind: "learningRate" },
  init: () => ({}),
  update(u, _s, w, t) {
    scaleInPlace(u, t.learningRate(w));
    return u;
  },
});

/** Decay of the weights as the update leaves them, outside the chain's directions: w ← (w − u)·(1 − lr·decay). Stands last. */
export const decayAfterUpdate = (): ParameterLink => ({
  scope: "parameter",
  fused: { kind: "decayAfter" },
  init: () => ({}),
  update(u, _s, w, t) {
    const pull = t.learningRate(w) * t.weightDecay(w);
    if (pull !== 0) accumulate(u, pull, w, 1 - pull);
    return u;
  },
});

/** √(1 − beta2^t)/(1 − beta1^t): Adam's bias correction for a direction that went without, in transformers' first form. */
export const correctBias = (beta1: number, beta2: number): ParameterLink => ({
  scope: "parameter",
  init: () => ({ t: 0 }),
  update(u, s) {
    const t = (s["t"] = (s["t"] as number) + 1);
    scaleInPlace(u, Math.sqrt(1 - beta2 ** t) / (1 - beta1 ** t));
    return u;
  },
});

/** torch's momentum: the first step takes the gradient itself; `nesterov` looks one step ahead. */
export const momentum = (factor: number, nesterov = false): ParameterLink => ({
  scope: "parameter",
  init: (w) => ({ t: 0, trace: zeros(w.shape, w.dtype) }),
  update(u, s) {
    const trace = s["trace"] as Tensor;
    accumulate(trace, 1, u, s["t"] === 0 ? 0 : factor);
    s["t"] = (s["t"] as number) + 1;
    if (nesterov) accumulate(u, factor, trace);
    else overwrite(u, trace);
    return u;
  },
});
