import { describe, expect, it } from "vitest";
import { parsePeftKeys, peftKey, refuseStrayKeys } from "./peft-keys.ts";

const q = "model.layers.0.self_attn.q_proj";
const parse = (key: string) => parsePeftKeys([key]).keys[0];

describe("parsePeftKeys", () => {
  it.each([
    [`base_model.model.${q}.lora_A.weight`, q, "lora_A.weight", undefined],
    [`${q}.lora_A.weight`, q, "lora_A.weight", undefined],
    [`base_model.model._orig_mod.${q}.lora_B.bias`, q, "lora_B.bias", undefined],
    [`base_model.model.${q}.lora_A.default.weight`, q, "lora_A.weight", "default"],
    [`base_model.model.${q}.lora_B.style_v1.bias`, q, "lora_B.bias", "style_v1"],
    [`base_model.model.${q}.lora_magnitude_vector`, q, "lora_magnitude_vector", undefined],
    [`base_model.model.${q}.lora_magnitude_vector.weight`, q, "lora_magnitude_vector", undefined],
    [`base_model.model.${q}.lora_magnitude_vector.default`, q, "lora_magnitude_vector", "default"],
    [`base_model.model.${q}.lora_magnitude_vector.default.weight`, q, "lora_magnitude_vector", "default"],
    ["base_model.model.model.embed_tokens.lora_embedding_A.default", "model.embed_tokens", "lora_embedding_A", "default"],
    ["base_model.model.model.embed_tokens.base_layer.weight", "model.embed_tokens", "base_layer.weight", undefined],
    ["base_model.model.h.0.attn.c_attn.base_layer.bias", "h.0.attn.c_attn", "base_layer.bias", undefined],
    ["base_model.model.lm_head.modules_to_save.default.weight", "lm_head", "weight", "default"],
    ["base_model.model.lm_head.modules_to_save.weight", "lm_head", "weight", undefined],
    ["base_model.model.model.norm.weight", "model.norm", "weight", undefined],
    ["base_model.model.h.0.ln_1.bias", "h.0.ln_1", "bias", undefined],
    ["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "model.embed_tokens", "token_adapter.trainable_tokens_delta", undefined],
    ["base_model.model.lm_head.token_adapter.trainable_tokens_delta.default", "lm_head", "token_adapter.trainable_tokens_delta", "default"],
    ["base_model.model.default.lora_A.default.weight", "default", "lora_A.weight", "default"],
  ])("reads %s", (key, module, part, adapter) => {
    expect(parse(key)).toEqual({ key, module, part, ...(adapter === undefined ? {} : { adapter }) });
  });

  it.each([
    `base_model.model.${q}.lora_E`,
    `base_model.model.${q}.lora_C.weight`,
    `base_model.model.${q}.vera_lambda_b`,
    "base_model.model.lm_head.original_module.weight",
    "base_model.model.h.base_layer.out.weights",
    "weight",
  ])("does not know %s", (key) => {
    expect(parsePeftKeys([key])).toEqual({ keys: [], unknown: [key] });
  });

  it("reads another method by its own parts", () => {
    const { keys } = parsePeftKeys([`base_model.model.${q}.vera_lambda_b.default`, "base_model.model.lm_head.weight"], ["vera_lambda_b"]);
    expect(keys.map(({ module, part }) => [module, part])).toEqual([
      [q, "vera_lambda_b"],
      ["lm_head", "weight"],
    ]);
  });

  it("refuses a file that mixes two adapters", () => {
    expect(() => parsePeftKeys([`${q}.lora_A.one.weight`, `${q}.lora_A.two.weight`])).toThrow(`holds lora_A.weight of ${q} twice`);
  });

  it("writes what it reads", () => {
    expect(peftKey(q, "lora_B.weight")).toBe(`base_model.model.${q}.lora_B.weight`);
  });
});

describe("refuseStrayKeys", () => {
  it("lists what cannot be placed", () => {
    const parsed = parsePeftKeys([...Array.from({ length: 7 }, (_, i) => `base_model.model.x.${i}.lora_E`), `${q}.lora_A.weight`]);
    expect(() => refuseStrayKeys(parsed, { name: "GPT2LMHeadModel", has: () => false }, "adapter_model.safetensors")).toThrow(
      expect.objectContaining({
        message: [
          "adapter_model.safetensors holds tensors that strut cannot place:",
          "7 × no part of this method:",
          ...[0, 1, 2, 3, 4].map((i) => `  + base_model.model.x.${i}.lora_E`),
          "    and 2 more",
          "1 × a module that GPT2LMHeadModel does not have:",
          `  + ${q}.lora_A.weight`,
        ].join("\n"),
      }),
    );
  });
});
