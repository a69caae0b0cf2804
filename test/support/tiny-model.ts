import { randomModel, type Model } from "../../src/models/index.ts";
import type { Batch } from "../../src/nn/contracts.ts";
import { Rng } from "../../src/tensor/index.ts";

/** A LLaMA of two layers and 16 tokens with random weights, the same for the same seed. */
export function tinyModel(seed = 1): Model {
  const config = {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: 16,
    hidden_size: 8,
    intermediate_size: 12,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    max_position_embeddings: 16,
    tie_word_embeddings: true,
  };
  return randomModel(config, (name, shape) => new Rng(seed).fork(name).normal(shape, 0.3));
}

/** Batches of two rows of eight random tokens. */
export function tinyBatches(count: number, seed = 1): Batch[] {
  const rng = new Rng(seed).fork("batches");
  return Array.from({ length: count }, () => ({ ids: Array.from({ length: 2 }, () => Array.from({ length: 8 }, () => rng.integer(16))) }));
}
