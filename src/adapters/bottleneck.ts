import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { LayerSpec } from "../models/model.ts";
import type { Site } from "../nn/contracts.ts";
import { add, gelu, layerNorm, linear, ones, relu, silu, zeros, type Real, type Tensor } from "../tensor/index.ts";
import { adapter } from "./adapter.ts";
import type { Targeting } from "./attach.ts";

export const bottleneckOptions = z.object({
  reductionFactor: z.number().gt(0).default(32).describe("width over bottleneck width, rounded down; defaults to 32"),
  width: z.int().positive().optional().describe("bottleneck width, in place of reductionFactor"),
  nonLinearity: z.enum(["gelu_new", "relu", "swish"]).default("gelu_new").describe("between down and up; defaults to gelu_new"),
  mhAdapter: z.boolean().default(true).describe("sit behind attention; defaults to true"),
  outputAdapter: z.boolean().default(true).describe("sit behind the feed-forward part; defaults to true"),
  addLayerNormBefore: z.boolean().default(false).describe("normalise what goes in; defaults to false"),
  addLayerNormAfter: z.boolean().default(false).describe("normalise what comes out, before it is added; defaults to false"),
  unfreezeLayerNorms: z.boolean().default(true).describe("train the model's norms too; defaults to true"),
});
export type BottleneckOptions = z.output<typeof bottleneckOptions>;

const activations: Record<BottleneckOptions["nonLinearity"], (x: Tensor) => Tensor> = { gelu_new: (x) => gelu(x, "tanh"), relu, swish: silu };

/** Last modules of the sublayers, by the names that models give them. */
export const behindAttention = /(^|\.)(self_attn\.o_proj|attn\.c_proj|self_attn\.out_proj|attention\.output\.dense|SelfAttention\.o)$/;
export const behindFeedForward = /(^|\.)(mlp\.down_proj|mlp\.c_proj|fc2|output\.dense|ffn\.lin2|DenseReluDense\.wo)$/;

/** A serial adapter's targets, and the norms that train with it. */
export function serialDefaults({ mhAdapter, outputAdapter, unfreezeLayerNorms }: BottleneckOptions, layers: readonly LayerSpec[]): Targeting {
  const paths = layers.filter(({ kind }) => kind === "linear").map(({ path }) => path);
  const targets = paths.filter((path) => (behindAttention.test(path) ? mhAdapter : outputAdapter && behindFeedForward.test(path)));
  return {
    targets,
    ...(unfreezeLayerNorms ? { modulesToSave: layers.filter(({ kind }) => kind === "norm").map(({ path }) => path) } : {}),
  };
}

/** Width of a site's bottleneck. */
export function widthOf({ out, path }: Site, { reductionFactor, width }: BottleneckOptions): number {
  const m = width ?? Math.floor(out / reductionFactor);
  if (m >= 1) return m;
  throw new StrutError("option", `reductionFactor ${reductionFactor} leaves no bottleneck at ${path}, whose output is ${out} wide`, {
    path: "reductionFactor",
    hint: `Use at most ${out}.`,
  });
}

export const normNames = {
  beforeWeight: "norm_before.weight",
  beforeBias: "norm_before.bias",
  afterWeight: "norm_after.weight",
  afterBias: "norm_after.bias",
} as const;

/** Weight and bias of the norms that the options ask for. */
export const norms = (width: number, o: BottleneckOptions, dtype: Real): Record<string, Tensor> => ({
  ...(o.addLayerNormBefore ? { beforeWeight: ones([width], dtype), beforeBias: zeros([width], dtype) } : {}),
  ...(o.addLayerNormAfter ? { afterWeight: ones([width], dtype), afterBias: zeros([width], dtype) } : {}),
});

/** y + up(f(down(y))), with norms where there are parameters for them. */
export function serially(y: Tensor, p: Record<string, Tensor>, o: BottleneckOptions, layer: (x: Tensor, way: "down" | "up") => Tensor): Tensor {
  const { beforeWeight, afterWeight } = p;
  const input = beforeWeight ? layerNorm(y, beforeWeight, p["beforeBias"]!, 1e-5) : y;
  const out = layer(activations[o.nonLinearity](layer(input, "down")), "up");
  return add(y, afterWeight ? layerNorm(out, afterWeight, p["afterBias"]!, 1e-5) : out);
}

/** Standard deviation of both matrices at the start. */
const STD = 0.01;

/**
 * A bottleneck adapter: y + f(y·W_down + b)·W_up + b behind a sublayer's output y. Houlsby et al. 2019, arXiv:1902.00751, as the
 * baseline of Compacter. It starts near the base, not at it, and is no matrix, so it cannot be merged.
 *
 * @example
 * const tuned = await adapt(model, bottleneck, { reductionFactor: 8 });
 */
export const bottleneck = adapter({
  id: "bottleneck",
  title: "Bottleneck adapter",
  paper: "arXiv:1902.00751",
  kinds: ["linear"],
  options: bottleneckOptions,
  size: "width",
  waives: [{ law: "starts at the base", because: 'compacter.md: "near-identity, **not** exactly identity at init"' }],
  defaults: serialDefaults,
  init(site, o, { rng, dtype }): Record<string, Tensor> {
    const [d, m] = [site.out, widthOf(site, o)];
    return {
      downWeight: rng.fork("down").normal([m, d], STD, dtype),
      downBias: zeros([m], dtype),
      upWeight: rng.fork("up").normal([d, m], STD, dtype),
      upBias: zeros([d], dtype),
      ...norms(d, o, dtype),
    };
  },
  forward: (_x, y, p, _site, o) => serially(y, p, o, (h, way) => add(linear(h, p[`${way}Weight`]!), p[`${way}Bias`]!)),
  layout: {
    tensors: {
      linear: { downWeight: "adapter_down.weight", downBias: "adapter_down.bias", upWeight: "adapter_up.weight", upBias: "adapter_up.bias", ...normNames },
    },
  },
});
