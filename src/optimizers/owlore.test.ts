import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { adapt, adapterParameters, attachedTo, lora } from "../adapters/index.ts";
import { parameters, randomModel, unfreeze, type Model } from "../models/index.ts";
import type { Regime, State } from "../nn/contracts.ts";
import { Rng, scale, scope, start, type Parameter, type Tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { train, type TrainOptions } from "../training/index.ts";
import { sampleWithoutReplacement } from "../linalg/index.ts";
import { galore, lisa, outlierScores, owlore } from "./index.ts";
import { blockOf } from "./layer-sampling.ts";
import { blockChances } from "./owlore.ts";

beforeAll(() => start());

const DEPTH = 4;
const deep = (): Model =>
  randomModel(
    {
      model_type: "llama",
      vocab_size: 16,
      hidden_size: 8,
      intermediate_size: 12,
      num_hidden_layers: DEPTH,
      num_attention_heads: 2,
      max_position_embeddings: 16,
      tie_word_embeddings: true,
    },
    (name, shape) => new Rng(1).fork(name).normal(shape, 0.3),
  );
const rng = new Rng(5);
const batches = Array.from({ length: 3 }, () => ({ ids: Array.from({ length: 2 }, () => Array.from({ length: 8 }, () => rng.integer(16))) }));
const settings: TrainOptions = { batches, steps: 12, learningRate: 0.02, seed: 2 };
const options = { activatedLayers: 2, intervalSteps: 3, outlierThreshold: 1, rank: 3 };

const values = async (model: Model): Promise<Map<string, string>> =>
  new Map(await Promise.all([...parameters(model)].map(async ([name, w]) => [name, String(await w.data())] as const)));

describe("training a few blocks at a time", () => {
  it("exactly so many have gradients, frozen ones stay as they are to the bit, the rest always moves", async () => {
    const model = unfreeze(deep());
    const drawn: string[] = [];
    let before = await values(model);
    const watch: Regime = {
      async afterStep(t) {
        const now = await values(model);
        const moved = [...now].filter(([name, value]) => value !== before.get(name)).map(([name]) => name);
        const blocks = [...new Set(moved.flatMap((name) => blockOf(name)?.index ?? []))].sort();
        const graded = [...new Set([...t.parameters].flatMap(([name, w]) => (t.gradient(w) && blockOf(name) ? blockOf(name)!.index : [])))].sort();
        expect(graded).toEqual(blocks);
        expect(blocks).toHaveLength(2);
        for (const name of ["model.embed_tokens.weight", "model.norm.weight"]) expect(moved).toContain(name);
        drawn.push(String(blocks));
        before = now;
      },
    };
    await train(model, { ...settings, optimizer: { method: owlore, options }, regimes: [watch] });
    for (let i = 0; i < 12; i++) expect(drawn[i]).toBe(drawn[i - (i % 3)]);
    expect(new Set(drawn).size).toBeGreaterThan(1);
  });

  it("all blocks at once are GaLore", async () => {
    const [sampled, plain] = [unfreeze(deep()), unfreeze(deep())];
    await train(sampled, { ...settings, optimizer: { method: owlore, options: { ...options, activatedLayers: DEPTH, scale: 0.5 } } });
    await train(plain, { ...settings, optimizer: { method: galore, options: { rank: 3, updateProjGap: 100, scale: 0.5 } } });
    expect(await values(sampled)).toEqual(await values(plain));
  });

  it("states of frozen blocks are dropped, or kept and grow to those of all", async () => {
    const bytes = async (frozenState: string): Promise<number> =>
      (await train(unfreeze(deep()), { ...settings, steps: 36, optimizer: { method: owlore, options: { ...options, frozenState } } })).optimizerBytes;
    const always = 2 * 4 * (16 * 8 + 8);
    const block = [...parameters(deep())].reduce((sum, [name, { shape }]) => {
      if (blockOf(name)?.index !== 0) return sum;
      const [m, n] = [shape[0]!, shape[1]];
      return sum + 4 * (n === undefined ? 2 * m : 2 * 3 * Math.max(m, n) + 3 * Math.min(m, n));
    }, 0);
    expect(await bytes("drop")).toBe(always + 2 * block);
    expect(await bytes("keep")).toBe(always + DEPTH * block);
  });

  it("a kept state gets a new projector when its block trains again, and only then", async () => {
    const last = new Map<string, { step: number; projector: string }>();
    let renewed = 0;
    const watch: Regime = {
      async afterStep(t) {
        for (const [name, w] of t.parameters) {
          if (!name.endsWith("q_proj.weight") || !t.gradient(w)) continue;
          const projector = String(await ((t.moments(w)[0]!["projector"] as State)["right"] as Tensor).data());
          const before = last.get(name);
          const thawed = before !== undefined && before.step < t.step - 1;
          if (before) expect(projector !== before.projector, `${name} at step ${t.step}`).toBe(thawed);
          renewed += Number(thawed);
          last.set(name, { step: t.step, projector });
        }
      },
    };
    const optimizer = { method: owlore, options: { ...options, frozenState: "keep" } };
    await train(unfreeze(deep()), { ...settings, steps: 24, optimizer, regimes: [watch] });
    expect(renewed).toBeGreaterThan(0);
  });

  it("of adapters switches their parameters alone (LISA on LoRA)", async () => {
    const model = await adapt(deep(), lora, { r: 2, initLoraWeights: false }, { targets: "all-linear" });
    const own = adapterParameters(attachedTo(model, model.active[0]!)!);
    const before = new Map(await Promise.all([...own].map(async ([name, w]) => [name, String(await w.data())] as const)));
    await train(model, { ...settings, steps: 2, optimizer: { method: lisa, options: { activatedLayers: 1 } } });
    const moved = await Promise.all(
      [...own].map(async ([name, w]) => (String(await w.data()) === before.get(name) ? [] : [name.replace(/.*layers\.(\d).*/, "$1")])),
    );
    expect(new Set(moved.flat()).size).toBe(1);
  });
});

describe("the chances", () => {
  const run = (model: Model, warnings: string[] = []) => ({
    model,
    batch: (k: number) => batches[k % 3]!,
    warn: (message: string) => void warnings.push(message),
  });
  const chances = (more: Partial<Parameters<typeof blockChances>[0]>, warnings?: string[]) =>
    blockChances({ probMode: "owl", outlierThreshold: 1, calibrationBatches: 2, ...more }, run(deep(), warnings));

  it("follow depth, norms or scores", async () => {
    expect(await chances({ probMode: "uniform" })).toEqual([0.25, 0.25, 0.25, 0.25]);
    expect(await chances({ probMode: "decrease" })).toEqual([0.4, 0.3, 0.2, 0.1]);
    expect(await chances({ probMode: "increase" })).toEqual([0.1, 0.2, 0.3, 0.4]);
    expect(await chances({ scores: [1, 2, 3, 4] })).toEqual([0.1, 0.2, 0.3, 0.4]);
    expect(await chances({ scores: [1, 2, 3, 4], probMode: "owl_reverse" })).toEqual([0.5, 1 / 3, 1 / 6, 0].map((x) => expect.closeTo(x, 12) as number));
    const norms = await chances({ probMode: "norm" });
    expect(Math.max(...norms) / Math.min(...norms)).toBeLessThan(1.2);
    expect(norms.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 12);
  });

  it("come from a file of numbers, and fall back to equal ones, with a warning, where no block has outliers", async () => {
    const dir = await mkdtemp(join(tmpdir(), "strut-owlore-"));
    await writeFile(join(dir, "a.txt"), "1 2\n3, 4\n");
    await writeFile(join(dir, "a.json"), "[1, 2, 3, 4]");
    await writeFile(join(dir, "bad.txt"), "1 two 3");
    for (const name of ["a.txt", "a.json"]) expect(await chances({ scores: join(dir, name) })).toEqual([0.1, 0.2, 0.3, 0.4]);
    await expect(chances({ scores: join(dir, "bad.txt") })).rejects.toThrow("holds no scores");
    await rm(dir, { recursive: true });
    const warnings: string[] = [];
    expect(await chances({ outlierThreshold: 1e6 }, warnings)).toEqual([0.25, 0.25, 0.25, 0.25]);
    expect(warnings[0]).toContain("every block scores 0");
  });

  it("are counted on rows that are a token longer than the context, as training has them", async () => {
    const long = { ids: [Array.from({ length: 17 }, (_, i) => i % 16)] };
    const found = await blockChances({ probMode: "owl", outlierThreshold: 1, calibrationBatches: 1 }, { ...run(deep()), batch: () => long });
    expect(found).toHaveLength(DEPTH);
  });

  it("draw blocks one after the other: inclusion is that of Plackett and Luce", () => {
    const p = [0.4, 0.3, 0.2, 0.1];
    const expected = p.map((own, i) => own + p.reduce((sum, other, j) => (i === j ? sum : sum + (other * own) / (1 - other)), 0));
    const counts = [0, 0, 0, 0];
    const draws = 10_000;
    for (let i = 0; i < draws; i++) for (const block of sampleWithoutReplacement(p, 2, new Rng(3).fork(String(i)))) counts[block]!++;
    const chi = counts.reduce((sum, count, i) => sum + (count - draws * expected[i]!) ** 2 / (draws * expected[i]! * (1 - expected[i]!)), 0);
    expect(chi).toBeLessThan(16.3);
  });

  it("that do not fit the blocks end in a sentence", async () => {
    const tried = (more: object) => train(unfreeze(deep()), { ...settings, optimizer: { method: owlore, options: { ...options, ...more } } });
    await expect(tried({ scores: [1, 2] })).rejects.toThrow("there are 2 scores for 4 blocks that train");
    await expect(tried({ activatedLayers: 5 })).rejects.toThrow("activatedLayers is 5, but only 4 of 4 blocks can be drawn");
    await expect(tried({ scores: [1, 2, 3, 4], probMode: "owl_reverse", activatedLayers: 4 })).rejects.toThrow("only 3 of 4 blocks can be drawn");
  });
});

describe("the outlier score", () => {
  const change = (name: string, of: (w: Parameter) => void): Model => {
    const model = deep();
    of(parameters(model).get(name)!);
    return model;
  };
  it("is 100 above a threshold of 0, and the same when all weights of a block are scaled", async () => {
    expect(await outlierScores(deep(), batches, 0)).toEqual([100, 100, 100, 100]);
    const plain = await outlierScores(deep(), batches, 2);
    const scaled = deep();
    // v and o undo each other, so that what the later blocks see stays the same
    for (const [name, factor] of [
      ["v_proj", 4],
      ["o_proj", 0.25],
    ] as const) {
      const w = parameters(scaled).get(`model.layers.3.self_attn.${name}.weight`)!;
      w.assign(scope(() => scale(w, factor)));
    }
    expect((await outlierScores(scaled, batches, 2)).slice(0, 3)).toEqual(plain.slice(0, 3));
  });

  it("rises where one column is planted, and only there", async () => {
    const before = await outlierScores(deep(), batches, 5);
    const planted = change("model.layers.3.mlp.down_proj.weight", (w) => {
      const [out, inner] = w.shape as [number, number];
      const view = hostView(w) as Float32Array;
      for (let i = 0; i < out; i++) view[i * inner]! *= 100;
    });
    const after = await outlierScores(planted, batches, 5);
    expect(after.slice(0, 3)).toEqual(before.slice(0, 3));
    expect(after[3]).toBeGreaterThan(before[3]! + 0.5);
  });

  it("is 0 where all |W|·‖X‖ are alike", async () => {
    const flat = deep();
    for (const [name, w] of parameters(flat)) if (blockOf(name)) hostView(w).fill(0.25 as never);
    hostView(parameters(flat).get("model.embed_tokens.weight")!).fill(1 as never);
    expect(await outlierScores(flat, batches, 13)).toEqual([0, 0, 0, 0]);
  });
});
