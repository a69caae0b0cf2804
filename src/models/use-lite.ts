import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Config } from "../formats/huggingface.ts";
import { add, attention, cast, div, layerNorm, mul, relu, reshape, scale, sqrt, square, sum, tanh, tensor, type Real, type Tensor } from "../tensor/index.ts";
import { block } from "./blocks.ts";
import { parseConfig } from "./config.ts";
import { applyEmbedding, applyLinear, checkIds, normOf, type Architecture, type Dimensions, type LayerSpec } from "./model.ts";

const schema = z.object({
  vocab_size: z.int().positive(),
  embedding_size: z.int().positive(),
  hidden_size: z.int().positive(),
  attn_dims: z.array(z.int().positive()).min(1),
  num_attention_heads: z.int().positive(),
  intermediate_size: z.int().positive(),
  hidden_act: z.literal("relu").default("relu"),
  max_position_embeddings: z.int().positive().default(128),
  layer_norm_eps: z.number().positive().default(1e-6),
});

interface UseLiteDimensions extends Dimensions {
  readonly vocabularySize: number;
  readonly embedding: number;
  /** Features of queries, keys and values, by layer. */
  readonly attention: readonly number[];
  readonly heads: number;
  readonly inner: number;
  readonly context: number;
  readonly eps: number;
}

/** Features that a layer reads; the first reads the embedding. */
const widthAt = (d: UseLiteDimensions, layer: number): number => (layer === 0 ? d.embedding : d.width);

/** sin(p·f_i) and then cos(p·f_i) with f_i = 10000^(−i/(n/2 − 1)). */
function timing(tokens: number, n: number, dtype: Real): Tensor {
  const half = n / 2;
  const values = Float64Array.from({ length: tokens * n }, (_, at) => {
    const [position, i] = [Math.floor(at / n), at % n];
    const angle = position * 10000 ** (-(i % half) / (half - 1));
    return i < half ? Math.sin(angle) : Math.cos(angle);
  });
  return tensor(values, [tokens, n], dtype);
}

/** Mean over tokens [batch, tokens, width] → [batch, width]; those that the mask leaves out do not count. */
function meanOverTokens(x: Tensor, mask: Tensor | undefined): Tensor {
  const [batch, tokens, width] = x.shape as [number, number, number];
  if (!mask) return scale(sum(x, { axes: [1] }), 1 / tokens);
  const present = cast(reshape(mask, [batch, tokens, 1]), x.dtype);
  return reshape(div(sum(mul(x, present), { axes: [1] }), sum(present, { axes: [1] })), [batch, width]);
}

/**
 * Universal Sentence Encoder, lite: a pre-norm transformer over tokens, their mean, a tanh layer and a vector of length 1.
 * Ids [batch, tokens] → embeddings [batch, width]; `run.mask` marks padding. Cer et al. 2018, arXiv:1803.11175.
 */
export const useLite: Architecture = {
  modelType: "use-lite",
  embedding: "embeddings",
  head: "pooler",

  parse(config: Config): UseLiteDimensions {
    const c = parseConfig(schema, config, "use-lite");
    for (const width of c.attn_dims)
      if (width % c.num_attention_heads !== 0)
        throw new StrutError("config", `config.json: ${c.num_attention_heads} heads do not divide ${width} features`, { path: "num_attention_heads" });
    if (c.embedding_size % 2 !== 0 || c.embedding_size < 4)
      throw new StrutError("config", `config.json: embedding_size is ${c.embedding_size}; expected an even number of at least 4`, { path: "embedding_size" });
    return {
      vocabularySize: c.vocab_size,
      embedding: c.embedding_size,
      width: c.hidden_size,
      depth: c.attn_dims.length,
      attention: c.attn_dims,
      heads: c.num_attention_heads,
      inner: c.intermediate_size,
      context: c.max_position_embeddings,
      eps: c.layer_norm_eps,
    };
  },

  layers(dimensions): LayerSpec[] {
    const d = dimensions as UseLiteDimensions;
    const linear = (path: string, out: number, inner: number, depth: number): LayerSpec => ({ path, kind: "linear", shape: [out, inner], bias: true, depth });
    const norm = (path: string, n: number, depth: number): LayerSpec => ({ path, kind: "norm", shape: [n], bias: true, depth });
    const blocks = d.attention.map((width, i): LayerSpec[] => {
      const [at, inner] = [`layers.${i}`, widthAt(d, i)];
      return [
        norm(`${at}.attn_norm`, inner, i),
        linear(`${at}.q_proj`, width, inner, i),
        linear(`${at}.k_proj`, width, inner, i),
        linear(`${at}.v_proj`, width, inner, i),
        linear(`${at}.o_proj`, d.width, width, i),
        ...(inner === d.width ? [] : [linear(`${at}.residual_proj`, d.width, inner, i)]),
        norm(`${at}.ffn_norm`, d.width, i),
        linear(`${at}.fc1`, d.inner, d.width, i),
        linear(`${at}.fc2`, d.width, d.inner, i),
      ];
    });
    return [
      { path: "embeddings", kind: "embedding", shape: [d.vocabularySize, d.embedding], bias: false, depth: 0 },
      ...blocks.flat(),
      linear("pooler", d.width, d.width, d.depth),
    ];
  },

  check: (dimensions, ids) => checkIds(ids, 0, (dimensions as UseLiteDimensions).context),

  forward(model, ids, run) {
    const d = model.dimensions as UseLiteDimensions;
    const [batch, tokens] = ids.shape as [number, number];
    const embedded = applyEmbedding(model, "embeddings", ids, run);
    const normed = (path: string, x: Tensor): Tensor => {
      const { weight, bias } = normOf(model, path);
      return layerNorm(x, weight, bias, d.eps);
    };
    let x = add(scale(embedded, 2), timing(tokens, d.embedding, embedded.dtype as Real));
    d.attention.forEach((width, i) => {
      const linear = (name: string, input: Tensor): Tensor => applyLinear(model, `layers.${i}.${name}`, input, run);
      x = block(run, i, x, (input) => {
        const h = normed(`layers.${i}.attn_norm`, input);
        const heads = (name: string): Tensor => reshape(linear(name, h), [batch, tokens, d.heads, width / d.heads]);
        const mixed = attention(heads("q_proj"), heads("k_proj"), heads("v_proj"), { causal: false, ...(run.mask ? { keyMask: run.mask } : {}) });
        const straight = widthAt(d, i) === d.width ? input : linear("residual_proj", input);
        const middle = add(straight, linear("o_proj", reshape(mixed, [batch, tokens, width])));
        return add(middle, linear("fc2", relu(linear("fc1", normed(`layers.${i}.ffn_norm`, middle)))));
      });
    });
    run.observer?.hidden?.(d.depth, x);
    return meanOverTokens(x, run.mask);
  },

  output(y) {
    const features = tanh(y);
    return div(features, sqrt(sum(square(features), { axes: [-1], keepAxes: true })));
  },
};
