import { readFileSync, readdirSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type LoraPeftConfig, isLora, parsePeftConfig, peftConfigText } from "./peft-config.ts";
import { type PeftDirectory, openPeftDirectory, writePeftDirectory } from "./peft-directory.ts";
import { parsePeftKeys, peftKey, refuseStrayKeys } from "./peft-keys.ts";
import { type LoraSite, loraLayers, refuseUnreadableLora } from "./peft-lora.ts";
import { type MatchableModule, matchModules, replicatedLayers, savesEmbeddings } from "./peft-matching.ts";

/** Real adapters saved by PEFT 0.21.0; test/interop/peft/README.md says how they were made. */
const fixtures = fileURLToPath(new URL("../../test/interop/peft/", import.meta.url));

type Module = MatchableModule & { readonly shape?: readonly number[] };

const linear = (path: string, out: number, into: number): Module => ({ path, kind: "linear", shape: [out, into] });
const norm = (path: string): Module => ({ path, kind: "norm" });
const other = (path: string): Module => ({ path, kind: "other" });

/** stories260K, in the order of transformers' named_modules. */
function llama(layers = 5): Module[] {
  const layer = (i: number): Module[] => {
    const at = `model.layers.${i}`;
    const attention = [
      ["q_proj", 64, 64],
      ["k_proj", 32, 64],
      ["v_proj", 32, 64],
      ["o_proj", 64, 64],
    ] as const;
    const mlp = [
      ["gate_proj", 172, 64],
      ["up_proj", 172, 64],
      ["down_proj", 64, 172],
    ] as const;
    return [
      other(at),
      other(`${at}.self_attn`),
      ...attention.map(([name, out, into]) => linear(`${at}.self_attn.${name}`, out, into)),
      other(`${at}.mlp`),
      ...mlp.map(([name, out, into]) => linear(`${at}.mlp.${name}`, out, into)),
      norm(`${at}.input_layernorm`),
      norm(`${at}.post_attention_layernorm`),
    ];
  };
  return [
    other(""),
    other("model"),
    { path: "model.embed_tokens", kind: "embedding", shape: [512, 64] },
    other("model.layers"),
    ...Array.from({ length: layers }, (_, i) => layer(i)).flat(),
    norm("model.norm"),
    { ...linear("lm_head", 512, 64), isOutputHead: true, tiedTo: "model.embed_tokens" },
  ];
}

/** gpt-nano-sort; shapes are out×in although Conv1D stores in×out. */
function gpt2(): Module[] {
  const layer = (i: number): Module[] => {
    const at = `transformer.h.${i}`;
    return [
      other(at),
      norm(`${at}.ln_1`),
      other(`${at}.attn`),
      linear(`${at}.attn.c_attn`, 144, 48),
      linear(`${at}.attn.c_proj`, 48, 48),
      norm(`${at}.ln_2`),
      other(`${at}.mlp`),
      linear(`${at}.mlp.c_fc`, 192, 48),
      linear(`${at}.mlp.c_proj`, 48, 192),
    ];
  };
  return [
    { path: "transformer.wte", kind: "embedding", shape: [3, 48] },
    { path: "transformer.wpe", kind: "embedding", shape: [11, 48] },
    ...[0, 1, 2].flatMap(layer),
    norm("transformer.ln_f"),
    { ...linear("lm_head", 3, 48), isOutputHead: true },
  ];
}

interface Expected {
  base: string;
  adapter_dir?: string;
  matched_modules?: string[];
  wrapped_modules?: string[];
}

const cases = readdirSync(fixtures, { withFileTypes: true })
  .filter((entry) => entry.isDirectory() && entry.name !== "lora-bin" && /^(lora|pissa|olora|orthogonal|eva)/.test(entry.name))
  .map(({ name }) => name);
const expectedOf = (name: string): Expected => JSON.parse(readFileSync(join(fixtures, name, "expected.json"), "utf8")) as Expected;
const folderOf = (name: string): string => join(fixtures, name, expectedOf(name).adapter_dir ?? ".");

function baseOf(name: string, config: LoraPeftConfig): { modules: Module[]; modelType: string } {
  if (expectedOf(name).base === "gpt-nano-sort") return { modules: gpt2(), modelType: "gpt2" };
  return { modules: llama(config.layer_replication ? replicatedLayers(config.layer_replication).length : 5), modelType: "llama" };
}

const sitesOf = (modules: readonly Module[]): Map<string, LoraSite> =>
  new Map(modules.flatMap(({ path, kind, shape }) => (shape ? [[path, { kind, shape } as LoraSite]] : [])));

describe.each(cases)("PEFT's own files: %s", (name) => {
  let adapter: PeftDirectory;
  let config: LoraPeftConfig;
  beforeAll(async () => {
    adapter = await openPeftDirectory(folderOf(name));
    if (!isLora(adapter.config)) throw new Error("expected a LoRA");
    config = adapter.config;
  });
  afterAll(() => adapter.close());

  it("adapts the modules that PEFT adapts", () => {
    const { modules, modelType } = baseOf(name, config);
    const expected = expectedOf(name);
    const { matched, saved, unmatched } = matchModules(modules, config, { modelType });
    const withTensors = parsePeftKeys(adapter.weights.entries.keys()).keys.filter(({ part }) => part.startsWith("lora_"));
    // The expected list of the named adapter is of both adapters, that of the tokens counts their wrappers, converted cases have none.
    const theirs = name === "lora-named-adapter" ? undefined : expected.matched_modules?.filter((path) => !path.endsWith(".token_adapter"));
    expect(matched.map(({ path }) => path).sort()).toEqual((theirs ?? [...new Set(withTensors.map(({ module }) => module))]).toSorted());
    expect(unmatched).toEqual([]);
    if (config.modules_to_save) expect(saved.map(({ path }) => path).sort()).toEqual(expected.wrapped_modules?.toSorted());
    else expect(saved).toEqual([]);
  });

  it("places every tensor, and would write it under the same key", () => {
    const parsed = parsePeftKeys(adapter.weights.entries.keys());
    const { modules } = baseOf(name, config);
    const paths = new Set(modules.map(({ path }) => path));
    refuseStrayKeys(parsed, { name: "the base", has: (path) => paths.has(path) }, name);
    for (const { key, module, part } of parsed.keys) expect(peftKey(module, part)).toBe(name === "lora-dot-default-keys" ? key.replace(".default", "") : key);
    expect(parsed.keys.some(({ part }) => part === "base_layer.weight")).toBe(savesEmbeddings(config, [...paths]));
  });

  it("finds every shape right, and the rank in the tensors", () => {
    const parsed = parsePeftKeys(adapter.weights.entries.keys());
    const { layers, warnings } = loraLayers(parsed, (key) => adapter.weights.entries.get(key)!.shape, sitesOf(baseOf(name, config).modules), config);
    expect(layers.length).toBe(new Set(parsed.keys.filter(({ part }) => part.startsWith("lora_")).map(({ module }) => module)).size);
    const doubtful = { "lora-patterns": 2, "lora-patterns-order-alpha": 1, "lora-patterns-order-rank": 1 }[name] ?? 0;
    expect(warnings.length).toBe(doubtful);
  });

  it("writes the config as PEFT wrote it", () => {
    const text = readFileSync(join(folderOf(name), "adapter_config.json"), "utf8");
    const ours = peftConfigText(config);
    if (name === "lora-minimal-config") expect(ours).toContain('"some_future_key": {\n    "x": 1\n  }');
    // A whole float loses its ".0" in JavaScript.
    else expect(ours).toBe(text.replace(/^(\s+"(?:lora_alpha|model\..*)": \d+)\.0(,?)$/gm, "$1$2"));
    const again = parsePeftConfig(JSON.parse(ours) as { peft_type: "LORA" });
    expect({ ...again, raw: {} }).toEqual({ ...config, raw: {} });
    expect(peftConfigText(again)).toBe(ours);
  });
});

describe("PEFT's own files", () => {
  let scratch: string;
  beforeAll(async () => {
    scratch = await mkdtemp(join(tmpdir(), "strut-peft-"));
  });
  afterAll(() => rm(scratch, { recursive: true }));

  it("are written again byte for byte", async () => {
    for (const name of cases) {
      const { config, weights, close } = await openPeftDirectory(folderOf(name));
      const tensors = [...weights.entries].map(([key, { dtype, shape }]) => ({ name: key, dtype, shape, bytes: () => weights.read(key) }));
      await writePeftDirectory(join(scratch, name), { config, tensors });
      await close();
      const file = "adapter_model.safetensors";
      expect((await readFile(join(scratch, name, file))).equals(await readFile(join(folderOf(name), file)))).toBe(true);
    }
  });

  it("of randomised PiSSA as trained are refused, all others are read", async () => {
    for (const name of cases) {
      const { config, close } = await openPeftDirectory(folderOf(name));
      await close();
      const refuse = (): void => refuseUnreadableLora(config as LoraPeftConfig, name);
      if (name === "pissa_niter_4") expect(refuse).toThrow("is PiSSA as trained");
      else expect(refuse).not.toThrow();
    }
  });

  it("of other methods say their type and keep their config", () => {
    for (const name of readdirSync(join(fixtures, "types"))) {
      const text = readFileSync(join(fixtures, "types", name), "utf8");
      const config = parsePeftConfig(JSON.parse(text) as Record<string, unknown>);
      expect(isLora(config)).toBe(false);
      expect(JSON.parse(peftConfigText(config))).toEqual(JSON.parse(text));
    }
  });

  it("that are pickles, incomplete or elsewhere are refused with what to do", async () => {
    await expect(openPeftDirectory(join(fixtures, "lora-bin"))).rejects.toMatchObject({ code: "pickle", hint: expect.stringContaining("weights_only=True") });
    await expect(openPeftDirectory(join(fixtures, "lora-nowhere"))).rejects.toThrow("There is no file or folder");
    await expect(openPeftDirectory(join(fixtures, "types"))).rejects.toThrow("has no adapter_config.json, so it holds no adapter");
    await expect(openPeftDirectory(fixtures)).rejects.toMatchObject({ hint: expect.stringContaining("hold the adapters adalora, adalora-unpruned") });
  });
});
