import { describe, expect, it } from "vitest";
import { parsePeftConfig } from "./peft-config.ts";
import { parsePeftKeys } from "./peft-keys.ts";
import { type LoraSite, loraLayers, refuseUnreadableLora } from "./peft-lora.ts";

const sites = new Map<string, LoraSite>([
  ["q", { kind: "linear", shape: [6, 4] }],
  ["wte", { kind: "embedding", shape: [10, 4] }],
  ["conv", { kind: "conv2d", shape: [8, 3, 3, 3] }],
  ["grouped", { kind: "conv2d", shape: [12, 4, 3, 3], groups: 2 }],
]);
const read = (shapes: Record<string, number[]>, config: Record<string, unknown> = {}) =>
  loraLayers(parsePeftKeys(Object.keys(shapes)), (key) => shapes[key]!, sites, parsePeftConfig({ peft_type: "LORA", r: 2, ...config }));

describe("loraLayers", () => {
  it("joins A and B with the scale of the config", () => {
    const { layers, warnings } = read({ "q.lora_A.weight": [2, 4], "q.lora_B.weight": [6, 2] }, { lora_alpha: 6 });
    expect(layers).toEqual([
      { path: "q", kind: "linear", rank: 2, alpha: 6, scale: 3, tensors: { "lora_A.weight": "q.lora_A.weight", "lora_B.weight": "q.lora_B.weight" } },
    ]);
    expect(warnings).toEqual([]);
    expect(read({ "q.lora_A.weight": [2, 4], "q.lora_B.weight": [6, 2] }, { lora_alpha: 6, use_rslora: true }).layers[0]!.scale).toBe(6 / Math.sqrt(2));
  });

  it("reads embeddings and convolutions, of which only B is grouped", () => {
    const shapes = {
      "wte.lora_embedding_A": [2, 10],
      "wte.lora_embedding_B": [4, 2],
      "conv.lora_A.weight": [2, 3, 3, 3],
      "conv.lora_B.weight": [8, 2, 1, 1],
      "grouped.lora_A.weight": [2, 8, 3, 3],
      "grouped.lora_B.weight": [12, 1, 1, 1],
    };
    expect(read(shapes).layers.map(({ kind, rank }) => [kind, rank])).toEqual([
      ["embedding", 2],
      ["conv2d", 2],
      ["conv2d", 2],
    ]);
    const tokens = { "wte.lora_embedding_A": [2, 10], "wte.lora_embedding_B": [4, 2], "wte.lora_magnitude_vector": [4] };
    expect(read(tokens, { use_dora: true }).layers.length).toBe(1);
    const dora = { "conv.lora_A.weight": [2, 3, 3, 3], "conv.lora_B.weight": [8, 2, 1, 1], "conv.lora_magnitude_vector": [1, 8, 1, 1] };
    expect(read(dora, { use_dora: true }).layers.length).toBe(1);
  });

  it("believes the tensors about the rank, and says so", () => {
    const shapes = { "q.lora_A.weight": [3, 4], "q.lora_B.weight": [6, 3] };
    expect(read(shapes, { lora_alpha: 6 })).toMatchObject({
      layers: [{ rank: 3, scale: 2 }],
      warnings: ["q: the tensors have rank 3, the config says 2 (r); the tensors were taken."],
    });
    expect(read(shapes, { rank_pattern: { q: 7 } }).warnings).toEqual([
      'q: the tensors have rank 3, the config says 7 (rank_pattern "q"); the tensors were taken.',
    ]);
  });

  it("says that an alpha depends on the order of the keys", () => {
    const { layers, warnings } = read({ "q.lora_A.weight": [2, 4], "q.lora_B.weight": [6, 2] }, { alpha_pattern: { ".*": 20, q: 3 } });
    expect(layers[0]!.alpha).toBe(20);
    expect(warnings[0]).toContain('alpha 20 is from alpha_pattern ".*", the first that matches, but "q" would match too');
  });

  it("reads a layer of rank 0 as no change", () => {
    expect(read({ "q.lora_A.weight": [0, 4], "q.lora_B.weight": [6, 0] }).layers[0]).toMatchObject({ rank: 0, scale: 0 });
  });

  it.each([
    [{ "q.lora_A.weight": [2, 4] }, {}, "q has lora_A.weight, expected both lora_A.weight and lora_B.weight on a layer of kind linear."],
    [{ "q.lora_magnitude_vector": [6] }, {}, "expected both"],
    [
      { "q.lora_A.weight": [2, 4], "q.lora_B.weight": [6, 3] },
      {},
      "q has lora_A.weight 2×4 and lora_B.weight 6×3, which do not fit each other: expected lora_B.weight 6×2.",
    ],
    [{ "q.lora_A.weight": [2, 5], "q.lora_B.weight": [6, 2] }, {}, "q has lora_A.weight 2×5, expected 2×4 for a layer of 6×4."],
    [{ "q.lora_A.weight": [2, 4], "q.lora_B.weight": [7, 2] }, {}, "q has lora_B.weight 7×2, expected 6×2"],
    [{ "q.lora_A.weight": [2, 4], "q.lora_B.weight": [6, 2], "q.lora_B.bias": [5] }, {}, "q has lora_B.bias 5, expected 6"],
    [{ "q.lora_A.weight": [], "q.lora_B.weight": [6, 2] }, {}, "q has lora_A.weight a single number"],
    [{ "wte.lora_A.weight": [2, 10], "wte.lora_B.weight": [4, 2] }, {}, "expected both lora_embedding_A and lora_embedding_B"],
    [
      { "wte.lora_embedding_A": [2, 10], "wte.lora_embedding_B": [4, 2], "wte.lora_B.bias": [4] },
      {},
      "lora_B.bias, which a layer of kind embedding does not take",
    ],
    [{ "other.lora_A.weight": [2, 4], "other.lora_B.weight": [6, 2] }, {}, "tensors for other, which the model does not have"],
    [{ "q.lora_A.weight": [2, 4], "q.lora_B.weight": [6, 2] }, { use_dora: true }, 'q has no lora_magnitude_vector, but the config says "use_dora": true.'],
    [{ "q.lora_A.weight": [2, 4], "q.lora_B.weight": [6, 2], "q.lora_magnitude_vector": [6] }, {}, 'the config does not say "use_dora": true.'],
  ] as [Record<string, number[]>, Record<string, unknown>, string][])("refuses %j", (shapes, config, sentence) => {
    expect(() => read(shapes, config)).toThrow(sentence);
  });
});

describe("refuseUnreadableLora", () => {
  const refuse = (config: Record<string, unknown>) => (): void => refuseUnreadableLora(parsePeftConfig({ peft_type: "LORA", ...config }), "my-adapter");

  it("lets through what is a plain LoRA on the untouched base", () => {
    for (const init of [true, false, "gaussian", "pissa", "OLoRA", "eva", "orthogonal", "mica"])
      expect(refuse({ init_lora_weights: init, target_parameters: [] })).not.toThrow();
  });

  it.each([
    [{ init_lora_weights: "pissa_niter_16" }, "which nobody can draw again"],
    [{ init_lora_weights: "corda" }, "CorDA"],
    [{ init_lora_weights: "lora_ga" }, "LoRA-GA"],
    [{ init_lora_weights: "loftq" }, "LoftQ"],
    [{ kasa_config: { beta: 1 } }, "sets kasa_config, so this is KaSA"],
    [{ alora_invocation_tokens: [1, 2] }, "aLoRA"],
    [{ target_parameters: ["experts.gate_up_proj"] }, "adapters on single parameters"],
    [{ use_qalora: true }, "QALoRA"],
  ])("refuses %j", (config, sentence) => {
    expect(refuse(config)).toThrow(sentence);
  });
});
