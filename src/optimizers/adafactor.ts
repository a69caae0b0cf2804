import { z } from "zod";
import type { ParameterLink, Transform } from "../nn/contracts.ts";
import { affine, div, mean, mul, rsqrt, square, sumSquares, zeros, type Parameter, type Tensor } from "../tensor/index.ts";
import { accumulate, overwrite, scaleInPlace } from "./in-place.ts";
import { scaleByLearningRate } from "./links.ts";
import { chain, optimizer } from "./optimizer.ts";

interface Settings {
  eps: readonly [number, number];
  clipThreshold: number;
  decayRate: number;
  beta1?: number | undefined;
  scaleParameter: boolean;
  relativeStep: boolean;
  warmupInit: boolean;
}

const rms = (x: Tensor): number => Math.sqrt(sumSquares([x]) / x.size);

/** Adafactor's own factor of the learning rate, at step t from 1. */
function rateOf(o: Settings, t: number, w: Parameter): number {
  const relative = o.relativeStep ? Math.min(o.warmupInit ? 1e-6 * t : 1e-2, 1 / Math.sqrt(t)) : 1;
  return o.scaleParameter ? relative * Math.max(o.eps[1], rms(w)) : relative;
}

/** g/√v, v kept as its means over rows and over columns where g is a matrix; no longer than clipThreshold in the root mean square. */
const factored = (o: Settings): ParameterLink => ({
  scope: "parameter",
  init: ({ shape, dtype }) =>
    shape.length < 2
      ? { t: 0, v: zeros(shape, dtype) }
      : { t: 0, row: zeros([...shape.slice(0, -1), 1], dtype), col: zeros([...shape.slice(0, -2), 1, shape.at(-1)!], dtype) },
  update(g, s, w) {
    const t = (s["t"] = (s["t"] as number) + 1);
    const beta2 = 1 - t ** o.decayRate;
    const squares = affine(square(g), 1, o.eps[0]);
    const { v, row, col } = s as { v?: Tensor; row?: Tensor; col?: Tensor };
    let u: Tensor;
    if (v) {
      accumulate(v, 1 - beta2, squares, beta2);
      u = mul(g, rsqrt(v));
    } else {
      accumulate(row!, 1 - beta2, mean(squares, { axes: [-1], keepAxes: true }), beta2);
      accumulate(col!, 1 - beta2, mean(squares, { axes: [-2], keepAxes: true }), beta2);
      u = mul(mul(g, rsqrt(div(row!, mean(row!, { axes: [-2], keepAxes: true })))), rsqrt(col!));
    }
    scaleInPlace(u, rateOf(o, t, w) / Math.max(1, rms(u) / o.clipThreshold));
    return u;
  },
});

/** m ← βm + (1 − β)u is the direction; without β, u is. */
const averaged = (beta: number | undefined): Transform =>
  beta === undefined
    ? chain()
    : {
        scope: "parameter",
        init: (w) => ({ m: zeros(w.shape, w.dtype) }),
        update(u, s) {
          accumulate(s["m"] as Tensor, 1 - beta, u, beta);
          overwrite(u, s["m"] as Tensor);
          return u;
        },
      };

/** Adds decay·w times the rate that Adafactor gives this parameter. */
const decayAtItsRate = (o: Settings): ParameterLink => ({
  scope: "parameter",
  init: () => ({ t: 0 }),
  update(u, s, w, t) {
    const step = (s["t"] = (s["t"] as number) + 1);
    const decay = t.weightDecay(w);
    if (decay !== 0) accumulate(u, decay * t.learningRate(w) * rateOf(o, step, w), w);
    return u;
  },
});

/**
 * Adafactor as transformers has it: of a matrix's second moments only the means over rows and columns are kept, m + n numbers.
 * u = g·(row/mean(row))^−½ ⊗ col^−½ / max(1, RMS(u)/clipThreshold), w ← w − rate·(u + weightDecay·w), where the rate is
 * min(10⁻², 1/√t) with relativeStep and times max(eps₂, RMS(w)) with scaleParameter. The run's learning rate is a factor of that.
 * Shazeer & Stern 2018, arXiv:1804.04235.
 *
 * @example
 * const optimizer = { method: adafactor, options: { lr: 1e-3, relativeStep: false, scaleParameter: false } }; // for train()
 */
export const adafactor = optimizer({
  id: "adafactor",
  title: "Adafactor",
  paper: "arXiv:1804.04235",
  options: z.object({
    lr: z.number().nonnegative().optional().describe("learning rate; defaults to 1 with relativeStep, whose factor it is, and to 1e-3 without"),
    eps: z
      .tuple([z.number().positive(), z.number().positive()])
      .default([1e-30, 1e-3])
      .describe("added to squared gradients, and the least size of a parameter that scales its steps; defaults to [1e-30, 1e-3]"),
    clipThreshold: z.number().positive().default(1).describe("largest root mean square of a direction; defaults to 1"),
    decayRate: z.number().negative().default(-0.8).describe("the average of squares at step t has the decay 1 − t^decayRate; defaults to -0.8"),
    beta1: z.number().min(0).lt(1).optional().describe("decay of an average of the updates; defaults to none"),
    weightDecay: z.number().nonnegative().default(0).describe("pull of the weights towards 0, times the rate; defaults to 0"),
    scaleParameter: z.boolean().default(true).describe("steps in proportion to the size of the parameter; defaults to true"),
    relativeStep: z.boolean().default(true).describe("a rate of min(0.01, 1/√t); defaults to true"),
    warmupInit: z.boolean().default(false).describe("with relativeStep, a rate of min(t·1e-6, 1/√t); defaults to false"),
  }),
  core: (o) => chain(factored(o), averaged(o.beta1)),
  build: (o, inner = factored(o)) => chain(inner, scaleByLearningRate(), averaged(o.beta1), decayAtItsRate(o)),
  rates: (o) => ({ learningRate: o.lr ?? (o.relativeStep ? 1 : 1e-3), weightDecay: o.weightDecay }),
});
