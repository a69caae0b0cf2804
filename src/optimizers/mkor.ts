import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { ListLink, Site, State, TransformContext } from "../nn/contracts.ts";
import { contiguous, full, reshape, slice, sumSquares, transpose, zeros, type Tensor } from "../tensor/index.ts";
import { accumulate, overwrite } from "./in-place.ts";
import { absorb, identityFactor, multiply, type Factor, type FactorRule } from "./kronecker-factor.ts";
import { chain, optimizer } from "./optimizer.ts";
import { asMatrix } from "./projector.ts";
import { sgd } from "./sgd.ts";
import { isNamed } from "./targets.ts";

const options = z.object({
  variant: z
    .enum(["official", "paper"])
    .default("official")
    .describe("rule of the factors: the true inverse of the official code, or Algorithm 1 of the paper; defaults to official"),
  statDecay: z.number().gt(0).lt(1).default(0.95).describe("share of a factor that an update keeps, γ of the paper; defaults to 0.95"),
  invFreq: z.int().positive().default(10).describe("steps between two updates of the factors; defaults to 10"),
  warmupSteps: z.int().nonnegative().default(0).describe("first steps, at each of which the factors are updated; defaults to 0"),
  stabilization: z
    .number()
    .min(0)
    .lt(1)
    .default(0.1)
    .describe("ζ of the paper variant: F becomes ζF + (1 − ζ)I before each update; below 1 / (γ + γ⁻³); defaults to 0.1"),
  clippingValue: z.number().positive().default(100).describe("inputs and output gradients are cut to ± this before they are averaged; defaults to 100"),
  sgdLayers: z
    .union([z.string(), z.array(z.string())])
    .default([])
    .describe("layers that keep raw gradients: parts of their paths, or a pattern for whole paths; defaults to none"),
  limit: z.int().positive().default(16384).describe("layers with more rows or columns than this keep raw gradients too; defaults to 16384"),
  hybrid: z.boolean().default(false).describe("MKOR-H: go on with the base optimiser alone when the loss no longer falls; defaults to false"),
  switchTol: z.number().default(1e-3).describe("MKOR-H: the least relative fall of the averaged loss in a window; defaults to 1e-3"),
  switchWindow: z.int().positive().default(100).describe("MKOR-H: steps of a window; two in a row below switchTol end it; defaults to 100"),
});

type Options = z.output<typeof options>;

/** Weight of the past in the averaged loss of MKOR-H. */
const LOSS_DECAY = 0.98;

function ruleOf({ variant, statDecay: γ, stabilization: ζ }: Options): FactorRule {
  if (variant === "official") return { keep: γ, scale: 1, weight: (vPv) => -1 / (1 + vPv) };
  // an update multiplies F by up to γ + γ⁻³ along v
  const most = 1 / (γ + γ ** -3);
  if (ζ >= most)
    throw new StrutError("option", `mkor's paper variant explodes with stabilization ${ζ}: at statDecay ${γ} it must be below ${most.toFixed(3)}`, {
      path: "stabilization",
      hint: "Lower stabilization, or use the official variant.",
    });
  return { keep: ζ, scale: γ, weight: (vPv) => (1 - γ) / (γ ** 2 * (1 + γ * (1 - γ) * vPv)) };
}

/** MKOR-H: whether second order has stopped to pay, which is for good. The factors are forgotten then. */
function isOver({ hybrid, switchTol, switchWindow }: Options, s: State, t: TransformContext): boolean {
  if (!hybrid || s["over"] === 1) return hybrid;
  const before = s["loss"] as number | undefined;
  const loss = (s["loss"] = before === undefined ? t.loss : LOSS_DECAY * before + (1 - LOSS_DECAY) * t.loss);
  const start = s["windowLoss"] as number | undefined;
  if (start !== undefined && t.step % switchWindow !== 0) return false;
  s["windowLoss"] = loss;
  s["idle"] = start !== undefined && (start - loss) / Math.abs(start) < switchTol ? (s["idle"] as number) + 1 : 0;
  if (s["idle"] < 2) return false;
  for (const key of Object.keys(s)) delete s[key];
  s["over"] = 1;
  t.warn(
    `mkor: the loss fell by less than ${switchTol} of itself in two windows of ${switchWindow} steps; from step ${t.step + 1} on the base optimiser goes on alone`,
  );
  return true;
}

const stored = (x: Tensor): Tensor => (x.contiguous ? x : transpose(x));
const norms = (parts: readonly Tensor[]): number => parts.reduce((sum, x) => sum + Math.sqrt(sumSquares([stored(x)])), 0);

/** L⁻¹·[∇W | ∇b]·R⁻¹, scaled so that the sum of the norms of the two parts stays, written over the gradient. */
function precondition(gradient: readonly Tensor[], L: Factor, R: Factor, updates: number): void {
  const before = norms(gradient);
  const turned = multiply(
    R,
    gradient.map((x) => transpose(x)),
    updates,
  );
  const parts = turned.map((x) => multiply(L, [transpose(x)], updates)[0]!);
  const after = norms(parts);
  if (!(after > 0)) return;
  for (const [i, part] of parts.entries()) accumulate(stored(gradient[i]!), before / after, stored(part), 0);
}

/** Mean input with the 1 of the bias, as a column. */
function augmented(input: Tensor, width: number): Tensor {
  const v = full([width, 1], 1, input.dtype);
  overwrite(slice(v, 0, 0, input.size), input);
  return v;
}

function mkorLink(o: Options): ListLink {
  const rule = ruleOf(o);
  const named = ({ kind, path }: Site): boolean => kind !== "embedding" && !isNamed(o.sgdLayers, path, "sgdLayers");
  const treated = (site: Site): boolean => named(site) && Math.max(site.out, site.in) <= o.limit;
  const isDue = (step: number): boolean => step > 0 && (step % o.invFreq === 0 || step < o.warmupSteps);
  return {
    scope: "model",
    clipAfter: true,
    taps: { at: (step, s) => isDue(step) && s?.["over"] !== 1, sees: treated, bound: o.clippingValue },
    init(w, t) {
      const weights = new Set(w.map(({ name }) => name));
      const has = ({ path }: Site): boolean => weights.has(`${path}.weight`);
      const large = t.sites.filter((site) => has(site) && named(site) && !treated(site)).map(({ path }) => path);
      if (large.length > 0) t.warn(`mkor leaves the gradients of ${large.join(", ")} as they are: more than ${o.limit} rows or columns (limit)`);
      else if (!t.sites.some((site) => has(site) && site.kind !== "embedding"))
        t.warn("mkor changes no gradient here: no weight of a linear layer or convolution trains");
      return { updates: 0 };
    },
    async update(u, s, w, t) {
      if (isOver(o, s, t)) return u;
      const at = new Map(w.map(({ name }, i) => [name, i]));
      const updates = s["updates"] as number;
      const due = isDue(t.step);
      const moved = [...u];
      for (const site of t.sites.filter(treated)) {
        const weight = at.get(`${site.path}.weight`);
        if (weight === undefined) continue;
        const bias = at.get(`${site.path}.bias`);
        const dtype = u[weight]!.dtype;
        const keys = [`AA_inv.${site.path}`, `GG_inv.${site.path}`] as const;
        if (!s[keys[0]]) {
          // F = I, which leaves the gradient as it is
          const first = (n: number): Factor => identityFactor(n, dtype, rule, o.variant === "official");
          [s[keys[0]], s[keys[1]]] = [first(bias === undefined ? site.in : site.in + 1), first(site.out)];
          continue;
        }
        const [R, L] = keys.map((key) => s[key] as Factor) as [Factor, Factor];
        const taps = due ? t.taps.get(site.path) : undefined;
        if (taps && !Number.isFinite(sumSquares([taps.input!, taps.outputGradient!])))
          t.warn(`mkor: the inputs or output gradients of ${site.path} are not finite at step ${t.step + 1}: its factors stay as they are`);
        else if (taps) {
          await absorb(R, augmented(taps.input!, R.shape[1]!), rule, updates);
          await absorb(L, reshape(taps.outputGradient!, [site.out, 1]), rule, updates);
        }
        const own = (i: number): Tensor => (moved[i] = contiguous(moved[i]!));
        const W = asMatrix(own(weight));
        const gradient = [site.weight.options?.["transposed"] ? transpose(W) : W];
        if (R.shape[1]! > site.in) gradient.push(reshape(bias === undefined ? zeros([site.out], dtype) : own(bias), [site.out, 1]));
        precondition(gradient, L, R, updates + (due ? 1 : 0));
      }
      if (due) s["updates"] = updates + 1;
      return moved;
    },
  };
}

/**
 * MKOR: an optimiser on gradients between two factors, ∇ ← f·L⁻¹·[∇W | ∇b]·R⁻¹ for each linear layer and convolution, where f keeps
 * ‖∇W‖ + ‖∇b‖. The factors start at I and see the mean ḡ of the output gradients and ā of the inputs (with a 1 for the bias) every
 * `invFreq` steps: P = γF + (1 − γ)I, F ← P − (Pv)(Pv)ᵀ / (1 + vᵀPv). Mozaffari et al. 2023, arXiv:2306.01685, as the official code has
 * it, but with its decay γ an option, and without its resets, which no factor of that rule reaches; the factors are of the
 * gradients' dtype. The paper's own rule is no inverse and is stable only with ζ < 1 / (γ + γ⁻³); it is stabilised at each update here.
 * Wide layers hold the rows of I − F in place of F. Clipping of the run comes after it. State: AA_inv.LAYER, GG_inv.LAYER, updates.
 *
 * @example
 * const optimizer = { method: mkor, options: { invFreq: 10 }, inner: { method: sgd, options: { lr: 0.1, momentum: 0.9 } } }; // for train()
 */
export const mkor = optimizer({
  id: "mkor",
  title: "MKOR",
  paper: "arXiv:2306.01685",
  options,
  takes: "whole",
  build: (o, inner = sgd.build(sgd.options.parse({ momentum: 0.9 }))) => chain(mkorLink(o), inner),
});
