import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Config } from "../formats/huggingface.ts";
import { add, attention, attentionPacked, gelu, layerNorm, relu, reshape, silu, slice, tensor, type Tensor } from "../tensor/index.ts";
import { block } from "./blocks.ts";
import { parseConfig } from "./config.ts";
import { addApplied, applyEmbedding, applyLinear, normOf, type Architecture, type CoupledGroup, type LanguageDimensions, type LayerSpec } from "./model.ts";

const activations: Record<string, (x: Tensor) => Tensor> = {
  gelu_new: (x) => gelu(x, "tanh"),
  gelu_pytorch_tanh: (x) => gelu(x, "tanh"),
  gelu: (x) => gelu(x),
  relu,
  silu,
};

const schema = z.object({
  vocab_size: z.int().positive(),
  n_layer: z.int().nonnegative().max(10_000),
  n_head: z.int().positive(),
  n_embd: z.int().positive(),
  n_positions: z.int().positive().default(1024),
  n_inner: z.int().positive().nullish(),
  activation_function: z.enum(["gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu"]).default("gelu_new"),
  layer_norm_epsilon: z.number().positive().default(1e-5),
  tie_word_embeddings: z.boolean().default(true),
  scale_attn_weights: z.literal(true).default(true),
  scale_attn_by_inverse_layer_idx: z.literal(false).default(false),
  add_cross_attention: z.literal(false).default(false),
});

interface Gpt2Dimensions extends LanguageDimensions {
  readonly inner: number;
  readonly eps: number;
  readonly activation: string;
}

/** GPT-2: layer norms before fused-qkv attention and a GELU MLP; weights stored in×out. Radford et al. 2019. */
export const gpt2: Architecture = {
  modelType: "gpt2",
  embedding: "transformer.wte",
  head: "lm_head",
  depthKey: "n_layer",
  ignored: /\.attn\.(bias|masked_bias)$/,
  prefix: "transformer.",

  parse(config: Config): Gpt2Dimensions {
    const c = parseConfig(schema, config, "gpt2");
    if (c.n_embd % c.n_head !== 0) throw new StrutError("config", `config.json: ${c.n_head} heads do not divide ${c.n_embd} features`, { path: "n_head" });
    return {
      vocabularySize: c.vocab_size,
      width: c.n_embd,
      depth: c.n_layer,
      heads: c.n_head,
      kvHeads: c.n_head,
      headSize: c.n_embd / c.n_head,
      context: c.n_positions,
      tied: c.tie_word_embeddings,
      inner: c.n_inner ?? 4 * c.n_embd,
      eps: c.layer_norm_epsilon,
      activation: c.activation_function,
    };
  },

  layers(dimensions): LayerSpec[] {
    const d = dimensions as Gpt2Dimensions;
    const conv1d = (path: string, out: number, inner: number, depth: number): LayerSpec => ({
      path,
      kind: "linear",
      shape: [out, inner],
      bias: true,
      depth,
      transposed: true,
    });
    const norm = (path: string, depth: number): LayerSpec => ({ path, kind: "norm", shape: [d.width], bias: true, depth });
    const table = (path: string, rows: number): LayerSpec => ({ path, kind: "embedding", shape: [rows, d.width], bias: false, depth: 0 });
    const blocks = Array.from({ length: d.depth }, (_, i): LayerSpec[] => {
      const at = `transformer.h.${i}`;
      return [
        norm(`${at}.ln_1`, i),
        conv1d(`${at}.attn.c_attn`, 3 * d.width, d.width, i),
        conv1d(`${at}.attn.c_proj`, d.width, d.width, i),
        norm(`${at}.ln_2`, i),
        conv1d(`${at}.mlp.c_fc`, d.inner, d.width, i),
        conv1d(`${at}.mlp.c_proj`, d.width, d.inner, i),
      ];
    });
    return [
      table("transformer.wte", d.vocabularySize),
      table("transformer.wpe", d.context),
      ...blocks.flat(),
      norm("transformer.ln_f", d.depth),
      { path: "lm_head", kind: "linear", shape: [d.vocabularySize, d.width], bias: false, depth: d.depth, ...(d.tied ? { tiedTo: "transformer.wte" } : {}) },
    ];
  },

  coupled(dimensions): CoupledGroup[] {
    const d = dimensions as Gpt2Dimensions;
    return Array.from({ length: d.depth }, (_, depth): CoupledGroup[] => {
      const at = `transformer.h.${depth}`;
      return [
        {
          kind: "heads",
          depth,
          units: d.heads,
          members: [
            { path: `${at}.attn.c_attn`, side: "out", size: d.headSize, roles: ["query", "key", "value"] },
            { path: `${at}.attn.c_proj`, side: "in", size: d.headSize, roles: ["output"] },
          ],
        },
        {
          kind: "neurons",
          depth,
          units: d.inner,
          members: [
            { path: `${at}.mlp.c_fc`, side: "out", size: 1, roles: ["up"] },
            { path: `${at}.mlp.c_proj`, side: "in", size: 1, roles: ["down"] },
          ],
        },
      ];
    }).flat();
  },

  forward(model, ids, run) {
    const d = model.dimensions as Gpt2Dimensions;
    const [batch, tokens] = ids.shape as [number, number];
    const start = run.caches?.[0]?.length ?? 0;
    const positions = tensor(
      Int32Array.from({ length: tokens }, (_, i) => start + i),
      [tokens],
      "i32",
    );
    const normed = (path: string, x: Tensor): Tensor => {
      const { weight, bias } = normOf(model, path);
      return layerNorm(x, weight, bias, d.eps);
    };
    let x = add(applyEmbedding(model, "transformer.wte", ids, run), applyEmbedding(model, "transformer.wpe", positions, run));
    for (let i = 0; i < d.depth; i++) {
      const at = `transformer.h.${i}`;
      x = block(run, i, x, (input) => {
        const qkv = applyLinear(model, `${at}.attn.c_attn`, normed(`${at}.ln_1`, input), run);
        // a pruned layer has fewer heads than the config says
        const width = qkv.shape[2]! / 3;
        const count = width / d.headSize;
        let mixed: Tensor;
        if (run.caches) {
          const heads = reshape(qkv, [batch, tokens, 3 * count, d.headSize]);
          const part = (n: number): Tensor => slice(heads, 2, n * count, (n + 1) * count);
          const keys = run.caches[i]!.append(part(1), part(2), (k) => k);
          mixed = attention(part(0), keys.k, keys.v);
        } else mixed = attentionPacked(qkv, count);
        const middle = addApplied(model, `${at}.attn.c_proj`, input, reshape(mixed, [batch, tokens, width]), run);
        const up = applyLinear(model, `${at}.mlp.c_fc`, normed(`${at}.ln_2`, middle), run);
        const active = (): Tensor => activations[d.activation]!(up);
        return addApplied(model, `${at}.mlp.c_proj`, middle, active(), run, active);
      });
    }
    run.observer?.hidden?.(d.depth, x);
    return normed("transformer.ln_f", x);
  },
};
