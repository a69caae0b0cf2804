import { z } from "zod";
import { StrutError } from "../errors.ts";
import { fingerprint } from "../data/batches.ts";
import { polar } from "../linalg/index.ts";
import type { Regime, Site, Training } from "../nn/contracts.ts";
import { dense } from "../operators/index.ts";
import { copyOf, hostNumbers, noGrad, ones, Parameter, putAdd, reshape, scale, sub, take, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { adapter, atEvery } from "./adapter.ts";

const options = z.object({
  threshold: z.number().nonnegative().default(2e-3).describe("weights smaller than this train; defaults to 2e-3"),
  share: z.number().gt(0).max(1).optional().describe("share of each matrix, bias and norm that trains, its smallest weights, in place of the threshold"),
  progressiveIter: z.int().default(-1).describe("step at which weights that have grown past the threshold are frozen; negative for never; defaults to -1"),
  lambdaRank: z.number().nonnegative().default(0).describe("pull on the nuclear norm of one random matrix's trained weights a step; defaults to 0"),
  leastSide: z.int().nonnegative().default(64).describe("matrices must be wider than this for that pull; defaults to 64"),
  leastCount: z.int().nonnegative().default(100).describe("and have more trained weights than this; defaults to 100"),
});
type Options = z.output<typeof options>;
/**
 * Trained weights and where they lie, flat; `open` is 0 for those that were frozen on the way, `edge` the threshold, absent where all train
 * by share. The same of the site's bias.
 */
type Params = { values: Tensor; index: Tensor; open: Tensor; edge?: Tensor; base?: Tensor } & Partial<
  Record<`bias${"Values" | "Index" | "Open" | "Edge"}`, Tensor>
>;

const floats = (x: Tensor): Float32Array => hostNumbers(x) as Float32Array;

/** The learning rate that goes with a threshold: 10⁻³·exp(−350·τ). */
export const saraLearningRate = (threshold: number): number => 1e-3 * Math.exp(-350 * threshold);

/** Places of the weights that train, in order, and the size at which one is frozen: by share the smallest that does not train. */
function chosen(x: Tensor, o: Options): { places: number[]; edge: number | undefined } {
  const sizes = floats(x).map(Math.abs);
  const order = [...sizes.keys()].sort((a, b) => sizes[a]! - sizes[b]! || a - b);
  const count = o.share === undefined ? order.filter((i) => sizes[i]! < o.threshold).length : Math.round(o.share * sizes.length);
  return { places: order.slice(0, count).sort((a, b) => a - b), edge: o.share === undefined ? o.threshold : sizes[order[count]!] };
}

/** Tells a base matrix and its bias from others. */
function hashOf(site: Site): Tensor {
  const digits = fingerprint(floats(noGrad(() => site.weight.toDense())), ...(site.bias ? [floats(site.bias)] : []));
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

/** A parameter of which only the open entries move, and the size at which an entry is frozen at the switch. */
interface Guarded {
  readonly w: Parameter;
  readonly open: Tensor;
  readonly edge: number;
}

/** All that a run guards: weights and biases of sites, and whole copies of norms, whose flags are in `kept`. */
function guardedBy(t: Training<Params>, o: Options, kept: Record<string, Tensor>): Guarded[] {
  const edgeOf = (edge: Tensor | undefined): number => (edge ? floats(edge)[0]! : Infinity);
  const found: Guarded[] = t.views.flatMap(({ params: p }) => [
    { w: p.values as Parameter, open: p.open, edge: edgeOf(p.edge) },
    ...(p.biasValues ? [{ w: p.biasValues as Parameter, open: p.biasOpen!, edge: edgeOf(p.biasEdge) }] : []),
  ]);
  const set = [...t.model.adapters.values()].find(({ live }) => live === t.live);
  for (const [leaf, w] of set?.copies ?? []) {
    if (t.sites.some(({ path }) => leaf.startsWith(`${path}.`))) continue;
    const { places, edge = Infinity } = chosen(t.parameters.get(leaf)!, o);
    kept[leaf] ??= putAdd(zeros(w.shape), tensor(places, [places.length], "i32"), ones([places.length]));
    found.push({ w, open: kept[leaf], edge });
  }
  return found;
}

function regime(o: Options): Regime<Params> {
  const kept: Record<string, Tensor> = {};
  let run: Training<Params> | undefined;
  let guarded = new Map<Parameter, Guarded>();
  let before = new Map<Parameter, Float32Array>();
  const flags = ({ open }: Guarded): Float32Array => hostView(open) as Float32Array;
  return {
    state: kept,
    beforeForward(t) {
      if (run === t) return;
      run = t;
      guarded = new Map(guardedBy(t, o, kept).map((one) => [one.w, one]));
    },
    // clipping sees the gradient of what trains alone
    onGradient(_t, w, g) {
      const one = guarded.get(w);
      if (!one) return;
      const [gradient, open] = [hostView(g) as Float32Array, flags(one)];
      for (let i = 0; i < gradient.length; i++) gradient[i]! *= open[i]!;
    },
    async beforeStep(t) {
      if (t.step === o.progressiveIter && o.progressiveIter >= 0)
        for (const one of guarded.values()) {
          const [values, open] = [floats(one.w), flags(one)];
          values.forEach((value, i) => (open[i] = open[i] === 1 && Math.abs(value) < one.edge ? 1 : 0));
        }
      if (o.lambdaRank > 0) await pull(t, o);
      before = new Map([...guarded.keys()].map((w) => [w, floats(w)]));
    },
    afterStep() {
      for (const one of guarded.values()) {
        const [values, open, old] = [hostView(one.w) as Float32Array, flags(one), before.get(one.w)!];
        for (let i = 0; i < values.length; i++) if (open[i] === 0) values[i] = old[i]!;
      }
      before.clear();
    },
  };
}

/**
 * SaRA: the weights that are smaller than a threshold train, of biases too, and of norms where every matrix is targeted; all larger ones stay as they are, bit for bit; those that
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
  // of norms the entries that the threshold or the share chooses
  copies: { norms: true },
  defaults: (_o, layers) => ({ targets: layers.filter(({ kind }) => kind !== "norm").map(({ path }) => path) }),
  init(site, o, { dtype }): Params {
    const part = (x: Tensor) => {
      const { places, edge } = chosen(x, o);
      const index = tensor(places, [places.length], "i32");
      return { values: copyOf(take(x, index)), index, open: ones([places.length], dtype), edge: edge === undefined ? undefined : tensor([edge], [1], dtype) };
    };
    const { edge, ...own } = part(copyOf(site.weight.toDense()));
    if (own.index.size === 0)
      throw new StrutError(
        "option",
        o.share === undefined
          ? `sara: no weight of ${site.path} is below the threshold ${o.threshold}, so nothing would train`
          : `sara: a share of ${o.share} is less than one weight of ${site.path}, so nothing would train`,
        { path: o.share === undefined ? "threshold" : "share", hint: "Raise the threshold or the share, or choose other targets." },
      );
    const bias = site.bias ? part(site.bias) : undefined;
    return {
      ...own,
      ...(edge ? { edge } : {}),
      ...(bias && bias.index.size > 0
        ? { biasValues: bias.values, biasIndex: bias.index, biasOpen: bias.open, ...(bias.edge ? { biasEdge: bias.edge } : {}) }
        : {}),
    };
  },
  weight: (p: Params, site) => dense(weightOf(p, site)),
  bias({ biasValues, biasIndex }: Params, { bias }) {
    if (!biasValues || !bias) return undefined;
    const change = sub(
      biasValues,
      noGrad(() => take(bias, biasIndex!)),
    );
    return putAdd(zeros(bias.shape, bias.dtype as "f32"), biasIndex!, change);
  },
  regime,
  finish: (p, site) => ({ params: { ...p, base: hashOf(site) } }),
  verify({ base }, site) {
    if (base && String(hostNumbers(base)) !== String(hostNumbers(hashOf(site))))
      throw new StrutError("adapter", `the base's ${site.path} is not the matrix that was trained: SaRA's weights stand in for weights of that very base`, {
        hint: "Load the base model that the adapter was made on.",
      });
  },
  layout: {
    tensors: atEvery({
      values: "sara_values",
      index: "sara_indices",
      open: "sara_open",
      edge: "sara_threshold",
      base: "sara_base",
      biasValues: "sara_bias_values",
      biasIndex: "sara_bias_indices",
      biasOpen: "sara_bias_open",
      biasEdge: "sara_bias_threshold",
    }),
    frozen: ["open", "edge", "biasOpen", "biasEdge"],
  },
});
