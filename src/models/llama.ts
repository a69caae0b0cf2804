import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Config } from "../formats/huggingface.ts";
import { attention, isReal, reshape, rmsNorm, rotary, slice, swiglu, type Tensor } from "../tensor/index.ts";
import { block, rotaryTables, type RotaryTables } from "./blocks.ts";
import { parseConfig } from "./config.ts";
import { addApplied, applyEmbedding, applyLinear, normOf, type Architecture, type CoupledGroup, type LanguageDimensions, type LayerSpec } from "./model.ts";

const schema = z.object({
  vocab_size: z.int().positive(),
  hidden_size: z.int().positive(),
  intermediate_size: z.int().positive(),
  num_hidden_layers: z.int().nonnegative().max(10_000),
  num_attention_heads: z.int().positive(),
  num_key_value_heads: z.int().positive().optional(),
  head_dim: z.int().positive().nullish(),
  max_position_embeddings: z.int().positive().default(2048),
  rms_norm_eps: z.number().positive().default(1e-6),
  rope_theta: z.number().positive().default(10000),
  rope_scaling: z.record(z.string(), z.unknown()).nullish(),
  rope_parameters: z.record(z.string(), z.unknown()).nullish(),
  hidden_act: z.literal("silu").default("silu"),
  tie_word_embeddings: z.boolean().default(false),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
});

interface LlamaDimensions extends LanguageDimensions {
  readonly inner: number;
  readonly eps: number;
  readonly theta: number;
  readonly scaling: (frequency: number) => number;
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
  readonly tables: Map<string, RotaryTables>;
}

/** LLaMA: RMS norms, grouped-query attention with rotary positions, SwiGLU. Touvron et al. 2023, arXiv:2302.13971. */
export const llama: Architecture = {
  modelType: "llama",
  embedding: "model.embed_tokens",
  head: "lm_head",
  depthKey: "num_hidden_layers",
  ignored: /rotary_emb\.inv_freq$/,

  parse(config: Config): LlamaDimensions {
    const c = parseConfig(schema, config, "llama");
    const headSize = c.head_dim ?? c.hidden_size / c.num_attention_heads;
    const kvHeads = c.num_key_value_heads ?? c.num_attention_heads;
    if (!Number.isInteger(headSize) || headSize % 2 !== 0)
      throw new StrutError("config", `config.json: heads of ${headSize} features; expected an even whole number`, { path: "head_dim" });
    if (c.num_attention_heads % kvHeads !== 0)
      throw new StrutError("config", `config.json: ${kvHeads} key-value heads do not divide ${c.num_attention_heads} attention heads`, {
        path: "num_key_value_heads",
      });
    const rope = { rope_theta: c.rope_theta, ...c.rope_scaling, ...c.rope_parameters };
    return {
      vocabularySize: c.vocab_size,
      width: c.hidden_size,
      depth: c.num_hidden_layers,
      heads: c.num_attention_heads,
      kvHeads,
      headSize,
      context: c.max_position_embeddings,
      tied: c.tie_word_embeddings,
      inner: c.intermediate_size,
      eps: c.rms_norm_eps,
      theta: Number(rope.rope_theta),
      scaling: ropeScaling(rope),
      attentionBias: c.attention_bias,
      mlpBias: c.mlp_bias,
      tables: new Map(),
    };
  },

  layers(dimensions): LayerSpec[] {
    const d = dimensions as LlamaDimensions;
    const linear = (path: string, out: number, inner: number, bias: boolean, depth: number): LayerSpec => ({
      path,
      kind: "linear",
      shape: [out, inner],
      bias,
      depth,
    });
    const norm = (path: string, depth: number): LayerSpec => ({ path, kind: "norm", shape: [d.width], bias: false, depth });
    const blocks = Array.from({ length: d.depth }, (_, i): LayerSpec[] => {
      const at = `model.layers.${i}`;
      return [
        norm(`${at}.input_layernorm`, i),
        linear(`${at}.self_attn.q_proj`, d.heads * d.headSize, d.width, d.attentionBias, i),
        linear(`${at}.self_attn.k_proj`, d.kvHeads * d.headSize, d.width, d.attentionBias, i),
        linear(`${at}.self_attn.v_proj`, d.kvHeads * d.headSize, d.width, d.attentionBias, i),
        linear(`${at}.self_attn.o_proj`, d.width, d.heads * d.headSize, d.attentionBias, i),
        norm(`${at}.post_attention_layernorm`, i),
        linear(`${at}.mlp.gate_proj`, d.inner, d.width, d.mlpBias, i),
        linear(`${at}.mlp.up_proj`, d.inner, d.width, d.mlpBias, i),
        linear(`${at}.mlp.down_proj`, d.width, d.inner, d.mlpBias, i),
      ];
    });
    return [
      { path: "model.embed_tokens", kind: "embedding", shape: [d.vocabularySize, d.width], bias: false, depth: 0 },
      ...blocks.flat(),
      norm("model.norm", d.depth),
      { ...linear("lm_head", d.vocabularySize, d.width, false, d.depth), ...(d.tied ? { tiedTo: "model.embed_tokens" } : {}) },
    ];
  },

  coupled(dimensions): CoupledGroup[] {
    const d = dimensions as LlamaDimensions;
    const queries = (d.heads / d.kvHeads) * d.headSize;
    return Array.from({ length: d.depth }, (_, depth): CoupledGroup[] => {
      const [attention, mlp] = [`model.layers.${depth}.self_attn`, `model.layers.${depth}.mlp`];
      return [
        {
          kind: "heads",
          depth,
          units: d.kvHeads,
          members: [
            { path: `${attention}.q_proj`, side: "out", size: queries, roles: ["query"] },
            { path: `${attention}.k_proj`, side: "out", size: d.headSize, roles: ["key"] },
            { path: `${attention}.v_proj`, side: "out", size: d.headSize, roles: ["value"] },
            { path: `${attention}.o_proj`, side: "in", size: queries, roles: ["output"] },
          ],
        },
        {
          kind: "neurons",
          depth,
          units: d.inner,
          members: [
            { path: `${mlp}.gate_proj`, side: "out", size: 1, roles: ["gate"] },
            { path: `${mlp}.up_proj`, side: "out", size: 1, roles: ["up"] },
            { path: `${mlp}.down_proj`, side: "in", size: 1, roles: ["down"] },
          ],
        },
      ];
    }).flat();
  },

  forward(model, ids, run) {
    const d = model.dimensions as LlamaDimensions;
    const [batch, tokens] = ids.shape as [number, number];
    const start = run.caches?.[0]?.length ?? 0;
    let x = applyEmbedding(model, "model.embed_tokens", ids, run);
    const dtype = isReal(x.dtype) ? x.dtype : "f32";
    const tables = rotaryTables(d.tables, d.context, d.headSize, d.theta, d.scaling, dtype);
    const turn = (value: Tensor, from: number): Tensor => rotary(value, slice(tables.cos, 0, from, from + tokens), slice(tables.sin, 0, from, from + tokens));
    for (let i = 0; i < d.depth; i++) {
      const at = `model.layers.${i}`;
      x = block(run, i, x, (input) => {
        const h = rmsNorm(input, normOf(model, `${at}.input_layernorm`).weight, d.eps);
        // a pruned layer has fewer heads than the config says
        const heads = (name: string): Tensor => {
          const y = applyLinear(model, `${at}.self_attn.${name}`, h, run);
          return reshape(y, [batch, tokens, y.shape[2]! / d.headSize, d.headSize]);
        };
        const q = turn(heads("q_proj"), start);
        const [k, v] = [heads("k_proj"), heads("v_proj")];
        const keys = run.caches ? run.caches[i]!.append(k, v, turn) : { k: turn(k, 0), v };
        const mixed = reshape(attention(q, keys.k, keys.v), [batch, tokens, q.shape[2]! * d.headSize]);
        const middle = addApplied(model, `${at}.self_attn.o_proj`, input, mixed, run);
        const m = rmsNorm(middle, normOf(model, `${at}.post_attention_layernorm`).weight, d.eps);
        const [gate, up] = [applyLinear(model, `${at}.mlp.gate_proj`, m, run), applyLinear(model, `${at}.mlp.up_proj`, m, run)];
        const gated = (): Tensor => swiglu(gate, up);
        return addApplied(model, `${at}.mlp.down_proj`, middle, gated(), run, gated);
      });
    }
    run.observer?.hidden?.(d.depth, x);
    return rmsNorm(x, normOf(model, "model.norm").weight, d.eps);
  },
};

/** Frequencies of long-context variants: none ("default"), "linear", or LLaMA 3's smooth interpolation. */
function ropeScaling(rope: Record<string, unknown>): (frequency: number) => number {
  const type = (rope["rope_type"] ?? rope["type"] ?? "default") as string;
  const factor = Number(rope["factor"] ?? 1);
  if (type === "default") return (f) => f;
  if (type === "linear") return (f) => f / factor;
  if (type !== "llama3")
    throw new StrutError("config", `config.json: rotary scaling of type ${JSON.stringify(type)} is not known`, {
      path: "rope_scaling",
      hint: "strut knows default, linear and llama3.",
    });
  const [low, high, old] = [Number(rope["low_freq_factor"]), Number(rope["high_freq_factor"]), Number(rope["original_max_position_embeddings"])];
  return (f) => {
    const wavelength = (2 * Math.PI) / f;
    if (wavelength < old / high) return f;
    if (wavelength > old / low) return f / factor;
    const smooth = (old / wavelength - low) / (high - low);
    return ((1 - smooth) * f) / factor + smooth * f;
  };
}
