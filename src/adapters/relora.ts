import { z } from "zod";
import type { Phase, Regime, Training, View } from "../nn/contracts.ts";
import { dense, lowRank, sumOf } from "../operators/index.ts";
import { gemmInto, hostNumbers, scope, Tensor, zeros, type Parameter, type Rng } from "../tensor/index.ts";
import { copyOf, hostView } from "../tensor/tensor.ts";
import { adapter } from "./adapter.ts";
import { dropInput } from "./lora.ts";

const options = z.object({
  r: z.int().positive().default(128).describe("rank of the update between two merges; defaults to 128"),
  alpha: z.number().default(32).describe("the update is scaled by alpha / r; defaults to 32"),
  dropout: z.number().min(0).lt(1).default(0.1).describe("probability of zeroing an input of the update in training; defaults to 0.1"),
  every: z.int().positive().default(1000).describe("steps between two merges; defaults to 1000"),
  warmStart: z.int().nonnegative().default(0).describe("first steps, in which the whole matrices train and the update does not; defaults to 0"),
  reset: z
    .enum(["random", "magnitude", "none"])
    .default("random")
    .describe("which entries of the update's optimiser state become 0 at a merge; defaults to random"),
  resetShare: z.number().min(0).max(1).default(0.999).describe("how many of them; defaults to 0.999, as magnitude 0.8 or 0.9 are usual"),
});
type Options = z.output<typeof options>;
/** `weight` is W with all updates merged so far; it trains in the warm start alone. */
type Params = { weight: Tensor; A: Tensor; B: Tensor };

const drawn = (rng: Rng, r: number, inner: number, dtype: Tensor["dtype"]): Tensor => rng.uniform([r, inner], 1 / Math.sqrt(inner), dtype as "f32");

/** Zeroes a share of a state's entries: random ones, or the smallest. */
function prune(state: Tensor, { reset, resetShare }: Options, rng: Rng): void {
  const values = hostView(state) as Float32Array;
  if (reset === "random") {
    for (let i = 0; i < values.length; i++) if (rng.random() < resetShare) values[i] = 0;
    return;
  }
  const sizes = Float64Array.from(hostNumbers(state) as Float32Array, Math.abs).sort();
  const limit = sizes[Math.min(sizes.length - 1, Math.floor(resetShare * sizes.length))]!;
  for (let i = 0; i < values.length; i++) if (Math.abs(values[i]!) < limit || resetShare === 1) values[i] = 0;
}

/** W ← W + scale·B·A, A anew, B = 0: the function stays as it was. */
function mergeAndRestart(t: Training<Params>, { params: { weight, A, B }, site }: View<Params>, o: Options): void {
  const rng = t.rng.fork(site.path);
  gemmInto(weight, B, A, { alpha: o.alpha / o.r, beta: 1 });
  hostView(A).set(hostView(drawn(rng.fork("A"), o.r, A.shape[1]!, A.dtype)) as never);
  hostView(B).fill(0 as never);
  if (o.reset === "none") return;
  for (const [name, w] of [
    ["A", A],
    ["B", B],
  ] as const)
    for (const state of t.moments(w as Parameter))
      for (const [key, value] of Object.entries(state)) if (value instanceof Tensor) prune(value, o, rng.fork(`${name}/${key}`));
}

function regime(o: Options): Regime<Params> {
  const whole = (w: Parameter): boolean => w.name.endsWith("/weight");
  const phases: Phase<Params>[] = [...(o.warmStart > 0 ? [{ steps: o.warmStart, trainable: whole }] : []), { steps: o.every, trainable: (w) => !whole(w) }];
  return {
    phases,
    afterStep(t) {
      const done = t.step + 1 - o.warmStart;
      if (done <= 0 || done % o.every !== 0 || t.step + 1 === t.steps) return;
      for (const view of t.views) scope(() => mergeAndRestart(t, view, o));
    },
  };
}

/**
 * ReLoRA: a LoRA that is merged into its matrix every so many steps and starts anew, so that the sum of all updates may have a high
 * rank: W ← W + (alpha / r)·B·A, A drawn, B = 0, and most of its optimiser state forgotten. Lialin et al. 2023, arXiv:2307.05695.
 * Use it with the schedule jagged_cosine of the same `every`.
 *
 * @example
 * const tuned = await adapt(model, relora, { r: 8, alpha: 8, every: 50 }, { targets: "all-linear" });
 */
export const relora = adapter({
  id: "relora",
  title: "ReLoRA",
  paper: "arXiv:2307.05695",
  kinds: ["linear"],
  options,
  init: (site, o, { rng, dtype }): Params => ({
    weight: copyOf(site.weight.toDense()),
    A: drawn(rng, o.r, site.in, dtype),
    B: zeros([site.out, o.r], dtype),
  }),
  weight(p: Params, site, o, live) {
    const update = lowRank(p.B, p.A, o.alpha / o.r);
    const dropped = (x: Tensor): Tensor => dropInput(x, o, site, live);
    return sumOf(dense(p.weight), { ...update, apply: (x) => update.apply(dropped(x)), addTo: (y, x) => update.addTo!(y, dropped(x)) });
  },
  regime,
  layout: {
    tensors: { linear: { weight: "relora_weight", A: "lora_A.weight", B: "lora_B.weight" } },
    frozen: ["weight"],
  },
});
