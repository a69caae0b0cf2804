import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Live, Regime, Site, State, Training } from "../nn/contracts.ts";
import { lowRank, scaledRows, seeded, type LinearOperator } from "../operators/index.ts";
import {
  add,
  concat,
  copyOf,
  isReal,
  mul,
  noGrad,
  Parameter,
  Rng,
  scope,
  square,
  stopGradient,
  sum,
  Tensor,
  transpose,
  zeros,
  type Real,
} from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { adapter, addAt, applyAt } from "./adapter.ts";
import { initLora, loraOptions, loraPeftOptions, rowSquares } from "./lora.ts";

const options = loraOptions.omit({ dropout: true, loraBias: true, useRslora: true }).extend({
  mode: z
    .enum(["ggpo", "sd", "mgpo"])
    .default("ggpo")
    .describe("noise on the weights by row, the same as sd-scripts has it, or a step along Adam's momentum in A and B; defaults to ggpo"),
  sigma: z.number().nonnegative().default(0.03).describe("size of the noise against the norm of a row; defaults to 0.03"),
  beta: z.number().nonnegative().default(0.01).describe("share of the gradient's norm in it; defaults to 0.01"),
  normDim: z
    .enum(["in", "out"])
    .default("in")
    .describe("what a variance is divided by, out in mode sd; defaults to in, so that a row's noise has sigma of its norm"),
  firstStep: z.enum(["none", "weights"]).default("none").describe("noise of the first step, which knows no gradient; defaults to none"),
  rho: z.number().nonnegative().default(0.05).describe("mgpo: length of the step, over the averaged gradient norm; defaults to 0.05"),
  most: z.number().positive().default(1).describe("mgpo: the step is never longer than this; defaults to 1"),
});
type Options = z.output<typeof options>;
/** tau: standard deviation of each row's noise in the next step. */
type Params = { A: Tensor; B: Tensor; tau?: Tensor };

const updateOf = ({ A, B }: Params, o: Options): ReturnType<typeof lowRank> => lowRank(B, A, o.alpha / o.r);

/** Rows of a base that its mean norm is estimated from. */
const SAMPLED = 1000;
const numbers = (x: Tensor): Float32Array => hostView(x) as Float32Array;

const baseSquares = new WeakMap<LinearOperator, Float64Array>();

/** ‖Wᵢ‖² of the rows of a base, computed once while it does not train. */
function squaresOf({ weight }: Site): Float64Array {
  const fixed = Object.values(weight.parts).every((part) => !(part instanceof Parameter && part.trainable));
  const squares = (fixed ? baseSquares.get(weight) : undefined) ?? Float64Array.from(numbers(sum(square(weight.toDense()), { axes: [1] })));
  if (fixed) baseSquares.set(weight, squares);
  return squares;
}

/** The mean norm of a base's rows: of 1000 of them, drawn by the site's path, where there are more. */
function meanNorm(site: Site): number {
  const squares = squaresOf(site);
  const rows = squares.length > SAMPLED ? [...new Rng(0).fork(site.path).permutation(squares.length)].slice(0, SAMPLED) : [...squares.keys()];
  return rows.reduce((total, i) => total + Math.sqrt(squares[i]!), 0) / rows.length;
}

/**
 * τᵢ² = (σ²/d)·(‖W'ᵢ‖² + β·‖∇̂W'ᵢ‖²), with W' = W + s·BA and ∇̂W' = s·(B·∇A + ∇B·A), all of it by way of small matrices. In mode sd
 * τᵢ = (σ·√(w² + ‖s(BA)ᵢ‖²) + β·‖∇̂W'ᵢ‖²)/√out with w the mean norm of W's rows; sd-scripts leaves s out of ‖s(BA)ᵢ‖ by mistake.
 */
export function rowNoise(site: Site, p: Params, o: Options, gradients?: { A: Tensor; B: Tensor }): Float64Array {
  const s = o.alpha / o.r;
  const d = o.normDim === "in" ? site.in : site.out;
  return noGrad(() =>
    scope(() => {
      const own = numbers(rowSquares(p.B, p.A));
      const slope = gradients && numbers(rowSquares(concat([gradients.B, p.B], 1), concat([p.A, gradients.A], 0)));
      const steep = (i: number): number => s * s * (slope?.[i] ?? 0);
      if (o.mode === "sd") {
        const mean = meanNorm(site);
        return Float64Array.from(own, (update, i) => (o.sigma * Math.sqrt(mean ** 2 + s * s * update) + o.beta * steep(i)) / Math.sqrt(site.out));
      }
      const cross = numbers(sum(mul(transpose(site.weight.apply(p.A)), p.B), { axes: [1] })); // ⟨Wᵢ, (BA)ᵢ⟩ = (W·Aᵀ)ᵢ·Bᵢ
      return squaresOf(site).map((square, i) => {
        const weight = Math.max(0, square + 2 * s * cross[i]! + s * s * own[i]!);
        return o.sigma * Math.sqrt((weight + o.beta * steep(i)) / d);
      });
    }),
  );
}

function ggpo(o: Options): Regime<Params> {
  const set = (t: Training<Params>, gradients: boolean): void => {
    for (const { site, params } of t.views) {
      const [A, B] = gradients ? [t.gradient(params.A as Parameter), t.gradient(params.B as Parameter)] : [];
      numbers(params.tau!).set(rowNoise(site, params, o, A && B ? { A, B } : undefined));
    }
  };
  return {
    beforeForward(t) {
      if (t.step === 0 && o.firstStep === "weights") set(t, false);
    },
    beforeStep: (t) => set(t, true),
  };
}

/** Along Adam's momentum before the forward pass, and back before the step. */
function mgpo(o: Options): Regime<Params> {
  const state: State = { norm: 0 };
  let before: Map<Parameter, Tensor> | undefined;
  const weights = ({ views }: Training<Params>): Parameter[] => views.flatMap(({ params }) => [params.A, params.B] as Parameter[]);
  return {
    state,
    beforeForward(t) {
      if (t.step === 0 || o.rho === 0) return;
      const found = weights(t).map((w) => t.moments(w).find((link) => "m" in link)?.["m"]);
      const moments = found.filter((m) => m instanceof Tensor && isReal(m.dtype)) as Tensor[];
      if (moments.length < found.length)
        throw new StrutError("option", "mgpo needs an optimiser with a first moment in f32, such as adamw", { path: "mode", hint: "Use mode ggpo, or adamw." });
      const length = Math.sqrt(moments.reduce((total, m) => total + numbers(m).reduce((squares, x) => squares + x * x, 0), 0));
      if (length === 0 || state["norm"] === 0) return;
      const step = Math.min(o.most, o.rho / (state["norm"] as number)) / length;
      before = new Map(weights(t).map((w) => [w, copyOf(w)]));
      weights(t).forEach((w, i) => accumulateInto(w, step, moments[i]!));
    },
    afterBackward(t) {
      for (const [w, value] of before ?? []) w.assign(value);
      before = undefined;
      const squares = weights(t).reduce((total, w) => total + (t.gradient(w) ? numbers(t.gradient(w)!).reduce((sums, x) => sums + x * x, 0) : 0), 0);
      const norm = Math.sqrt(squares);
      state["norm"] = state["norm"] === 0 ? norm : 0.9 * (state["norm"] as number) + 0.1 * norm;
    },
  };
}

const accumulateInto = (w: Parameter, factor: number, x: Tensor): void => {
  const [to, from] = [numbers(w), numbers(x)];
  for (let i = 0; i < to.length; i++) to[i]! += factor * from[i]!;
};

/** x·(ΔW + diag(τ)·N)ᵀ in training, N normal, drawn again in backward; in mode sd x has no gradient through the noise. */
function forward(x: Tensor, y: Tensor, p: Params, site: Site, o: Options, live: Live): Tensor {
  const out = addAt(site, updateOf(p, o), y, x);
  if (!live.training || !p.tau) return out;
  const noise = scaledRows(stopGradient(p.tau), seeded(live.rng.fork(`ggpo/${site.path}`), [site.out, site.in], { dtype: p.A.dtype as Real }));
  return add(out, applyAt(site, noise, o.mode === "sd" ? stopGradient(x) : x));
}

/**
 * LoRA-GGPO: LoRA trained at randomly perturbed weights, each row's noise as large as its weights' and gradients' norms say, which ends in
 * flatter minima. Chang et al. 2025, arXiv:2502.14538; `mode: "mgpo"` is its later momentum-guided form. To PEFT its folder is a LoRA.
 *
 * @example
 * const tuned = await adapt(model, loraGgpo, { r: 8, sigma: 0.03 });
 */
export const loraGgpo = adapter({
  id: "lora-ggpo",
  title: "LoRA-GGPO",
  paper: "arXiv:2502.14538",
  kinds: ["linear"],
  options,
  begins: "factors",
  init(site, o, context): Params {
    const { A, B } = initLora(site, o, context) as { A: Tensor; B: Tensor };
    return { A, B, ...(o.mode === "mgpo" ? {} : { tau: zeros([site.out], context.dtype) }) };
  },
  update: (p: Params, _site, o) => updateOf(p, o),
  forward,
  regime: (o) => (o.mode === "mgpo" ? mgpo(o) : ggpo(o)),
  layout: {
    type: "LORA",
    beside: true,
    options: { ...loraPeftOptions, sigma: "ggpo_sigma", beta: "ggpo_beta" },
    fixed: { use_dora: false },
    tensors: { linear: { A: "lora_A.weight", B: "lora_B.weight" } },
    frozen: ["tau"],
    derived: true,
  },
});
