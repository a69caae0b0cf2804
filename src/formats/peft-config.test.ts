import { describe, expect, it } from "vitest";
import { isLora, parsePeftConfig, peftConfigText } from "./peft-config.ts";

describe("parsePeftConfig", () => {
  it("needs nothing but peft_type", () => {
    const config = parsePeftConfig({ peft_type: "LORA" });
    expect(config).toMatchObject({ r: 8, lora_alpha: 8, lora_dropout: 0, bias: "none", target_modules: null, rank_pattern: {}, init_lora_weights: true });
  });

  it("takes null for a default, as PEFT may write it", () => {
    expect(parsePeftConfig({ peft_type: "LORA", rank_pattern: null, lora_dropout: null, r: null })).toMatchObject({ rank_pattern: {}, lora_dropout: 0, r: 8 });
  });

  it("takes every form that PEFT takes", () => {
    const loose = {
      lora_alpha: 8.485281374238571,
      alpha_pattern: { q_proj: 6.5 },
      target_modules: ".*q_proj",
      layers_to_transform: 2,
      layers_pattern: "layers",
      init_lora_weights: "gaussian",
      trainable_token_indices: { embed_tokens: [1, 2] },
      layer_replication: [
        [0, 2],
        [1, 3],
      ],
    };
    expect(parsePeftConfig({ peft_type: "LORA", ...loose })).toMatchObject(loose);
    expect(parsePeftConfig({ peft_type: "LORA", layers_to_transform: [], trainable_token_indices: [5] }).layers_to_transform).toEqual([]);
  });

  it("keeps unknown keys and drops runtime_config", () => {
    const config = parsePeftConfig({ peft_type: "LORA", some_future_key: { x: 1 }, runtime_config: { a: 1 } });
    expect(config.raw).toEqual({ peft_type: "LORA", some_future_key: { x: 1 } });
    expect(JSON.parse(peftConfigText(config))).toMatchObject({ some_future_key: { x: 1 } });
    expect(peftConfigText(config)).not.toContain("runtime_config");
  });

  it.each([
    [{}, "a/adapter_config.json has no peft_type"],
    [{ peft_type: "LORRA" }, 'has peft_type "LORRA", which is no method of PEFT that strut knows.'],
    [{ peft_type: "lora" }, 'has peft_type "lora"'],
    [{ peft_type: "LORA", r: "eight" }, 'has r "eight": '],
    [{ peft_type: "LORA", r: 2.5 }, "has r 2.5: "],
    [{ peft_type: "LORA", bias: "some" }, 'has bias "some": '],
    [{ peft_type: "LORA", rank_pattern: { q_proj: "x" } }, 'has rank_pattern.q_proj {"q_proj":"x"}: '],
    [{ peft_type: "LORA", target_modules: [1] }, "has target_modules [1]: which is none of the forms that PEFT writes."],
    [{ peft_type: "VERA", target_modules: 3 }, "has target_modules 3: "],
  ])("says what is wrong with %j", (json, sentence) => {
    expect(() => parsePeftConfig(json, "a/adapter_config.json")).toThrow(sentence);
  });

  it("names the nearest type", () => {
    expect(() => parsePeftConfig({ peft_type: "lora" })).toThrow(expect.objectContaining({ hint: 'Did you mean "LORA"?' }));
  });

  it("reads the shared keys of every method", () => {
    const config = parsePeftConfig({ peft_type: "VERA", target_modules: ["q_proj"], d_initial: 0.1, r: 256 });
    expect(isLora(config)).toBe(false);
    expect(config).toMatchObject({ target_modules: ["q_proj"], modules_to_save: null });
    expect(JSON.parse(peftConfigText(config))).toEqual({ peft_type: "VERA", target_modules: ["q_proj"], d_initial: 0.1, r: 256, inference_mode: true });
  });
});

describe("peftConfigText", () => {
  it("writes changed values over the file's", () => {
    const config = parsePeftConfig({ peft_type: "LORA", r: 4, inference_mode: false });
    expect(JSON.parse(peftConfigText({ ...config, r: 16, rank_pattern: { q_proj: 2 } }))).toMatchObject({
      r: 16,
      rank_pattern: { q_proj: 2 },
      inference_mode: true,
    });
  });

  it("writes numbers and text as Python's json does", () => {
    const text = peftConfigText(
      parsePeftConfig({
        peft_type: "LORA",
        lora_dropout: 1,
        lora_alpha: 0.00001,
        x: [1e16, 1.5e-7, 1e22, 0.0001, 123456.789, -0.5],
        revision: "ü\u007f😀",
        ключ: [],
      }),
    );
    expect(text).toContain('"lora_dropout": 1.0');
    expect(text).toContain('"lora_alpha": 1e-05');
    expect(text).toContain("[\n    1e+16,\n    1.5e-07,\n    1e+22,\n    0.0001,\n    123456.789,\n    -0.5\n  ]");
    expect(text).toContain('"revision": "\\u00fc\\u007f\\ud83d\\ude00"');
    expect(text).toContain('"\\u043a\\u043b\\u044e\\u0447": []');
    expect(text.startsWith('{\n  "alora_invocation_tokens": null,\n  "alpha_pattern": {},')).toBe(true);
    expect(text.endsWith("\n}")).toBe(true);
  });

  it("refuses numbers that JSON cannot say", () => {
    expect(() => peftConfigText({ ...parsePeftConfig({ peft_type: "LORA" }), lora_alpha: NaN })).toThrow("holds the number NaN");
  });
});
