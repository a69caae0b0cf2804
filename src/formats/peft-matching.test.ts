import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { type MatchableModule, type TargetSelection, matchModules, replicatedLayers, savesEmbeddings } from "./peft-matching.ts";
import { patternLookup } from "./peft-patterns.ts";

const golden = JSON.parse(readFileSync(new URL("../../test/interop/peft/targets.json", import.meta.url), "utf8")) as {
  paths: string[];
  targets: [TargetSelection, string[]][];
  patterns: [Record<string, number>, number[]][];
};
const linear = (path: string): MatchableModule => ({ path, kind: "linear" });
const paths = (modules: readonly MatchableModule[], config: TargetSelection): string[] => matchModules(modules, config).matched.map(({ path }) => path);

const small: MatchableModule[] = [
  { path: "model", kind: "other" },
  { path: "model.embed_tokens", kind: "embedding" },
  ...[0, 1].flatMap((i) => [linear(`model.layers.${i}.self_attn.q_proj`), linear(`model.layers.${i}.self_attn.v_proj`)]),
  { path: "model.layers.0.input_layernorm", kind: "norm" },
  { path: "model.norm", kind: "norm" },
  { path: "lm_head", kind: "linear", isOutputHead: true, tiedTo: "model.embed_tokens" },
];

describe("matchModules", () => {
  it.each(golden.targets)("adapts what PEFT adapts: %j", (config, expected) => {
    expect(paths(golden.paths.map(linear), config)).toEqual(expected);
  });

  it("takes PEFT's default for the model's type", () => {
    expect(matchModules(small, {}, { modelType: "llama" }).matched.length).toBe(4);
    const gemma4 = small.map((module) => ({ ...module, path: `language_model.${module.path}` }));
    expect(matchModules([...gemma4, linear("vision.q_proj")], {}, { modelType: "gemma4" }).matched.length).toBe(4);
    expect(() => matchModules(small, {}, { modelType: "lama" })).toThrow(
      expect.objectContaining({ hint: 'Name the targets, for example "all-linear". PEFT has a default for "llama".' }),
    );
    expect(() => matchModules(small, {}, { modelType: "constructor" })).toThrow('no default for model_type "constructor"');
    expect(() => matchModules(small, {})).toThrow("names no target_modules, and the model no model_type");
  });

  it('leaves the output head out of "all-linear", however it is spelled', () => {
    expect(paths(small, { target_modules: "All-Linear" })).toEqual(paths(small, { target_modules: ["q_proj", "v_proj"] }));
    const classifier = [linear("encoder.dense"), linear("score")];
    expect(paths(classifier, { target_modules: "all-linear", task_type: "SEQ_CLS" })).toEqual(["encoder.dense"]);
    expect(paths(classifier, { target_modules: "all-linear" })).toEqual(["encoder.dense", "score"]);
  });

  it("adapts or saves embedding and head together under ensure_weight_tying", () => {
    const tied = { ensure_weight_tying: true };
    expect(paths(small, { target_modules: ["lm_head"], ...tied })).toEqual(["model.embed_tokens", "lm_head"]);
    expect(paths(small, { target_modules: ["lm_head"] })).toEqual(["lm_head"]);
    const saving = { target_modules: ["q_proj"], modules_to_save: ["embed_tokens"] };
    expect(matchModules(small, { ...saving, ...tied }).saved.map(({ path }) => path)).toEqual(["model.embed_tokens", "lm_head"]);
    expect(matchModules(small, saving).saved.map(({ path }) => path)).toEqual(["model.embed_tokens"]);
  });

  it("saves by the bare end of a name, so that norm takes the layer norms too", () => {
    const { saved } = matchModules(small, { target_modules: ["q_proj"], modules_to_save: ["norm"] });
    expect(saved.map(({ path }) => path)).toEqual(["model.layers.0.input_layernorm", "model.norm"]);
  });

  it("lists the targets that match nothing beside others that do", () => {
    expect(matchModules(small, { target_modules: ["q_proj", "o_proj"] }).unmatched).toEqual(["o_proj"]);
  });

  it("says what was meant when nothing matches", () => {
    expect(() => matchModules(small, { target_modules: ["q_projj"] }, { modelName: "LlamaForCausalLM" })).toThrow(
      expect.objectContaining({
        message: 'targets ["q_projj"] match no layer of LlamaForCausalLM.',
        hint: 'Did you mean "q_proj" (2 layers)? Linear layers: q_proj, v_proj, lm_head.',
      }),
    );
    expect(() => matchModules(small, { target_modules: ["q_proj"], layers_to_transform: [9] })).toThrow(
      "match no layer of the model with layers_to_transform [9].",
    );
    expect(() => matchModules(small, { target_modules: ["q_proj"], exclude_modules: ["q_proj"] })).toThrow(
      "match only modules that exclude_modules or modules_to_save take away: model.layers.0.self_attn.q_proj, model.layers.1.self_attn.q_proj.",
    );
  });

  it("refuses targets that are no layers", () => {
    expect(() => matchModules(small, { target_modules: ["norm"] })).toThrow('targets ["norm"] match model.norm, which is of kind norm.');
    expect(() => matchModules(small, { target_modules: "model" })).toThrow("match model, which is no layer with a weight of its own.");
    expect(matchModules(small, { target_modules: ["norm"] }, { kinds: ["norm"] }).matched.length).toBe(1);
  });

  it("refuses layers_to_transform beside a pattern, as PEFT does", () => {
    expect(() => matchModules(small, { target_modules: ".*q_proj", layers_to_transform: 1 })).toThrow("need a list of target_modules, found a string");
    expect(() => matchModules(small, { target_modules: "all-linear", layers_to_transform: [1] })).toThrow("found a string");
  });

  it("reads a module list of any length in time", () => {
    const many = Array.from({ length: 2_000 }, (_, i) => linear(`model.layers.${i}.self_attn.q_proj`));
    expect(paths(many, { target_modules: many.map(({ path }) => path) }).length).toBe(2_000);
  });
});

describe("patternLookup", () => {
  it.each(golden.patterns)("gives what PEFT gives: %j", (patterns, expected) => {
    const lookup = patternLookup(patterns, 8, "rank_pattern");
    expect(golden.paths.map((path) => lookup(path).value)).toEqual(expected);
  });

  it("names the later keys that disagree", () => {
    expect(patternLookup({ q_proj: 3, "layers.0.*": 5, ".*": 3 }, 8, "alpha_pattern")("layers.0.q_proj")).toEqual({
      value: 3,
      key: "q_proj",
      rivals: ["layers.0.*"],
    });
  });
});

describe("savesEmbeddings", () => {
  it("goes by the two names alone", () => {
    const all = ["model.embed_tokens", "lm_head", "transformer.wte"];
    expect(savesEmbeddings({ target_modules: ["embed_tokens"] }, all)).toBe(true);
    expect(savesEmbeddings({ target_modules: ["model.embed_tokens"] }, all)).toBe(false);
    expect(savesEmbeddings({ target_modules: ["wte"] }, all)).toBe(false);
    expect(savesEmbeddings({ target_modules: ".*embed_tokens" }, all)).toBe(true);
    expect(savesEmbeddings({ target_modules: ["lm_head"], trainable_token_indices: [1] }, all)).toBe(false);
    expect(savesEmbeddings({ target_modules: "all-linear" }, all)).toBe(false);
  });
});

describe("replicatedLayers", () => {
  it("lists the base layer behind each layer", () => {
    expect(
      replicatedLayers([
        [0, 3],
        [2, 5],
        [4, 4],
      ]),
    ).toEqual([0, 1, 2, 2, 3, 4]);
  });
});
