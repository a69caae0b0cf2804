import { z } from "zod";
import { StrutError } from "../errors.ts";
import { fingerprint } from "../data/batches.ts";
import { polar } from "../linalg/index.ts";
import type { Regime, Site, Training } from "../nn/contracts.ts";
import { dense } from "../operators/index.ts";
import { copyOf, hostNumbers, noGrad, ones, Parameter, putAdd, reshape, scale, take, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { adapter, atEvery } from "./adapter.ts";

const options = z.object({
  threshold: z.number().nonnegative().default(2e-3).describe("weights smaller than this train; defaults to 2e-3"),
  share: z.number().gt(0).max(1).optional().describe("share of each matrix that trains, its smallest weights, in place of the threshold"),
  progressiveIter: z.int().default(-1).describe("step at which weights that have grown past the threshold are frozen; negative for never; defaults to -1"),
  lambdaRank: z.number().nonnegative().default(0).describe("pull on the nuclear norm of one random matrix's trained weights a step; defaults to 0"),
  leastSide: z.int().nonnegative().default(64).describe("matrices must be wider than this for that pull; defaults to 64"),
  leastCount: z.int().nonnegative().default(100).describe("and have more trained weights than this; defaults to 100"),
});
type Options = z.output<typeof options>;
/** Trained weights and where they lie, flat; `open` is 0 for those that were frozen on the way, `edge` the site's threshold, absent where all train by share. */
type Params = { values: Tensor; index: Tensor; open: Tensor; edge?: Tensor; base?: Tensor };

const floats = (x: Tensor): Float32Array => hostNumbers(x) as Float32Array;

/** The learning rate that goes with a threshold: 10⁻³·exp(−350·τ). */
export const saraLearningRate = (threshold: number): number => 1e-3 * Math.exp(-350 * threshold);

/** Tells a base matrix from others. */
function hashOf(site: Site): Tensor {
  const digits = fingerprint(floats(noGrad(() => site.weight.toDense())));
  return tensor([Number.parseInt(digits.slice(0, 8), 16) | 0, Number.parseInt(digits.slice(8), 16) | 0], [2], "i32");
}

/** W with the trained weights in their places; all others are those of the base, bit for bit. */
function weightOf({ values, index }: Params, { weight }: Site): Tensor {
  const W = weight.toDense();
  const cleared = noGrad(() => putAdd(W, index, scale(take(W, index), -1)));
  return putAdd(cleared, index, values);
}

/** λ·U·Vᵀ at the trained places of one random matrix, added to its gradient: the nuclear norm's slope. */
async function pull(t: Training<Params>, o: Options): Promise<void> {
  const able = t.views.filter(({ site, params }) => Math.min(site.out, site.in) > o.leastSide && params.values.size > o.leastCount);
  if (able.length === 0) return;
  const { site, params } = able[t.rng.integer(able.length)]!;
  const gradient = t.gradient(params.values as Parameter);
  if (!gradient) return;
  const masked = noGrad(() => reshape(putAdd(zeros([site.out * site.in], params.values.dtype as "f32"), params.index, params.values), [site.out, site.in]));
  const direction = floats((await polar(masked)).U);
  const [to, at] = [hostView(gradient) as Float32Array, hostNumbers(params.index) as Int32Array];
  at.forEach((place, i) => (to[i]! += o.lambdaRank * direction[place]!));
}

function regime(o: Options): Regime<Params> {
  let before: Map<Tensor, Float32Array> | undefined;
  return {
    async beforeStep(t) {
      if (t.step === o.progressiveIter && o.progressiveIter >= 0)
        for (const { params } of t.views) {
          const [values, open, edge] = [floats(params.values), hostView(params.open) as Float32Array, params.edge ? floats(params.edge)[0]! : Infinity];
          values.forEach((value, i) => (open[i] = open[i] === 1 && Math.abs(value) < edge ? 1 : 0));
        }
      if (o.lambdaRank > 0) await pull(t, o);
      before = new Map(t.views.map(({ params }) => [params.values, floats(params.values).slice()]));
    },
    afterStep({ views }) {
      for (const { params } of views) {
        const [values, open, old] = [hostView(params.values) as Float32Array, floats(params.open), before!.get(params.values)!];
        for (let i = 0; i < values.length; i++) if (open[i] === 0) values[i] = old[i]!;
      }
      before = undefined;
    },
  };
}

/**
 * SaRA: the weights of a matrix that are smaller than a threshold train, all larger ones stay as they are, bit for bit; those that
 * grow past it can be frozen on the way. Hu et al. 2025, arXiv:2409.06633. Only the trained weights and their places are stored.
 *
 * @example
 * const tuned = await adapt(model, sara, { share: 0.2 });
 */
export const sara = adapter({
  id: "sara",
  title: "SaRA",
  paper: "arXiv:2409.06633",
  kinds: ["linear", "conv2d", "embedding"],
  options,
  init(site, o, { dtype }): Params {
    const W = copyOf(site.weight.toDense());
    const sizes = floats(W).map(Math.abs);
    const order = [...sizes.keys()].sort((a, b) => sizes[a]! - sizes[b]! || a - b);
    const count = o.share === undefined ? order.filter((i) => sizes[i]! < o.threshold).length : Math.max(1, Math.round(o.share * sizes.length));
    const index = order.slice(0, count).sort((a, b) => a - b);
    if (index.length === 0)
      throw new StrutError("option", `sara: no weight of ${site.path} is below the threshold ${o.threshold}, so nothing would train`, {
        path: "threshold",
        hint: "Raise the threshold, or give a share.",
      });
    const at = tensor(index, [index.length], "i32");
    // by share the threshold is the smallest weight that does not train
    const edge = o.share === undefined ? o.threshold : sizes[order[count]!];
    return { values: copyOf(take(W, at)), index: at, open: ones([index.length], dtype), ...(edge === undefined ? {} : { edge: tensor([edge], [1], dtype) }) };
  },
  weight: (p: Params, site) => dense(weightOf(p, site)),
  regime,
  finish: (p, site) => ({ params: { ...p, base: hashOf(site) } }),
  verify({ base }, site) {
    if (base && String(hostNumbers(base)) !== String(hostNumbers(hashOf(site))))
      throw new StrutError("adapter", `the base's ${site.path} is not the matrix that was trained: SaRA's weights stand in for weights of that very base`, {
        hint: "Load the base model that the adapter was made on.",
      });
  },
  layout: {
    tensors: atEvery({ values: "sara_values", index: "sara_indices", open: "sara_open", edge: "sara_threshold", base: "sara_base" }),
    frozen: ["open", "edge"],
  },
});
