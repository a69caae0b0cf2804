import { beforeAll, describe, expect, it } from "vitest";
import { leaf, sample } from "../../test/support/gradients.ts";
import type { Live, Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { dense } from "../operators/index.ts";
import { noGrad, Rng, start, tensor, Tensor, zeros } from "../tensor/index.ts";
import { dropInput, initLora, lora, loraScale, loraUpdate, rslora, type LoraOptions, type LoraParams } from "./lora.ts";

beforeAll(async () => {
  await start();
});

const optionsOf = (given: object): LoraOptions => parseOptions(lora, given as Record<string, unknown>);
const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);

/** A site of a shape, whose weight nobody reads. */
const siteOf = (out: number, inner: number, kind: Site["kind"] = "linear", path = "model.layers.0.self_attn.q_proj"): Site => ({
  path,
  depth: 0,
  role: "q_proj",
  kind,
  out,
  in: inner,
  weight: dense(shaped([out, inner])),
});

/** A tensor of a shape without memory. */
const shaped = (shape: readonly number[]): Tensor => new Tensor({ block: undefined, kept: false, scope: undefined }, "f32", shape);

const drawn = (site: Site, given: object, seed = 1) =>
  initLora(site, optionsOf(given), {
    rng: new Rng(seed),
    dtype: "f32",
    sites: [],
  }) as { A: Tensor; B: Tensor; bias?: Tensor };

const spread = (values: readonly number[]) => {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return { mean, std: Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length), most: Math.max(...values.map(Math.abs)) };
};

describe("lora", () => {
  it("draws A uniformly within 1/√in, which is torch's kaiming with a = √5, and B zero", async () => {
    const { A, B } = drawn(siteOf(96, 400), { r: 32 });
    expect([A.shape, B.shape]).toEqual([
      [32, 400],
      [96, 32],
    ]);
    const { mean, std, most } = spread(await numbers(A));
    const bound = 1 / Math.sqrt(400);
    expect(most).toBeLessThanOrEqual(bound);
    expect(most).toBeGreaterThan(0.99 * bound);
    expect(std).toBeCloseTo(bound / Math.sqrt(3), 3);
    expect(Math.abs(mean)).toBeLessThan(1e-3);
    expect((await numbers(B)).every((value) => value === 0)).toBe(true);
  });

  it("draws A normally with standard deviation 1/r when gaussian", async () => {
    const { A, B } = drawn(siteOf(8, 1000), { r: 16, initLoraWeights: "gaussian" });
    const values = await numbers(A);
    expect(spread(values).std).toBeCloseTo(1 / 16, 3);
    const beyond = (sigmas: number): number => values.filter((value) => Math.abs(value) > sigmas / 16).length / values.length;
    expect(beyond(1)).toBeCloseTo(0.3173, 1);
    expect(beyond(2)).toBeCloseTo(0.0455, 2);
    expect((await numbers(B)).every((value) => value === 0)).toBe(true);
  });

  it("draws both when told not to start at the base: B uniformly within 1/√r", async () => {
    const { A, B } = drawn(siteOf(500, 20), { r: 9, initLoraWeights: false });
    expect(spread(await numbers(A)).most).toBeLessThanOrEqual(1 / Math.sqrt(20));
    const { std, most } = spread(await numbers(B));
    expect(most).toBeLessThanOrEqual(1 / 3);
    expect(std).toBeCloseTo(1 / 3 / Math.sqrt(3), 2);
  });

  it("starts an embedding with A zero and B normal with standard deviation 1", async () => {
    const p = initLora(siteOf(50, 400, "embedding"), optionsOf({ r: 8 }), {
      rng: new Rng(1),
      dtype: "f32",
      sites: [],
    }) as {
      embeddingA: Tensor;
      embeddingB: Tensor;
    };
    expect([p.embeddingA.shape, p.embeddingB.shape]).toEqual([
      [8, 50],
      [400, 8],
    ]);
    expect((await numbers(p.embeddingA)).every((value) => value === 0)).toBe(true);
    expect(spread(await numbers(p.embeddingB)).std).toBeCloseTo(1, 1);
  });

  it("has one update for an embedding, the transpose of s·B·A, seen as a matrix and by rows", async () => {
    const p = { embeddingA: leaf([2, 7], 1), embeddingB: leaf([3, 2], 2) };
    const update = loraUpdate(p, siteOf(7, 3), optionsOf({ r: 2, alpha: 6 }));
    const [a, b] = [await numbers(p.embeddingA), await numbers(p.embeddingB)];
    const expected = (v: number, d: number): number => 3 * [0, 1].reduce((sum, k) => sum + b[d * 2 + k]! * a[k * 7 + v]!, 0);
    const matrix = await numbers(update.toDense());
    const rows = await numbers(update.rows!(tensor([4, 0], [2], "i32")));
    for (let d = 0; d < 3; d++) {
      expect(matrix[4 * 3 + d]).toBeCloseTo(expected(4, d), 12);
      expect(rows[d]).toBeCloseTo(expected(4, d), 12);
      expect(rows[3 + d]).toBeCloseTo(expected(0, d), 12);
    }
  });

  it.each([
    [{ r: 8, alpha: 16 }, 2],
    [{ r: 16, alpha: 8 }, 0.5],
    [{ r: 16, alpha: 8, useRslora: true }, 2],
    [{ r: 4, alpha: -3 }, -0.75],
    [{ r: 4, alpha: 0 }, 0],
  ])("scales by alpha / r, or alpha / √r: %o", (given, scale) => {
    expect(loraScale({ A: zeros([given.r, 4]), B: zeros([4, given.r]) }, optionsOf(given))).toBe(scale);
  });

  it("takes the rank from its factors, so that a pruned site keeps the right scale; rank 0 adds nothing", async () => {
    expect(loraScale({ A: zeros([2, 4]), B: zeros([4, 2]) }, optionsOf({ r: 8, alpha: 8 }))).toBe(4);
    const empty: LoraParams = { A: zeros([0, 4]), B: zeros([3, 0]) };
    expect(loraScale(empty, optionsOf({ r: 8 }))).toBe(0);
    expect(await numbers(loraUpdate(empty, siteOf(3, 4), optionsOf({ r: 8 })).toDense())).toEqual(Array(12).fill(0));
  });

  it("counts what PEFT's benchmark counts on Llama-3.2-3B at rank 32", () => {
    const update = (out: number, inner: number): number =>
      loraUpdate({ A: shaped([32, inner]), B: shaped([out, 32]) }, siteOf(out, inner), optionsOf({ r: 32 })).cost().params;
    expect(28 * (update(3072, 3072) + update(1024, 3072))).toBe(9_175_040);
  });

  it("drops inputs in training only: each is 0 or x / (1 − p), and the share dropped is p", async () => {
    const [x, site] = [tensor(sample([64, 64], 3), [64, 64]), siteOf(64, 64)];
    const live: Live = { training: false, step: 0, rng: new Rng(4), values: {} };
    const o = optionsOf({ dropout: 0.3 });
    expect(dropInput(x, o, site, live), "not in evaluation").toBe(x);
    live.training = true;
    expect(dropInput(x, optionsOf({}), site, live), "not without dropout").toBe(x);
    const [before, after] = [await numbers(x), await numbers(noGrad(() => dropInput(x, o, site, live)))];
    const kept = after.filter((value, i) => {
      if (value !== 0) expect(value).toBeCloseTo(before[i]! / 0.7, 5);
      return value !== 0;
    });
    expect(kept.length / after.length).toBeCloseTo(0.7, 1);
    expect(await numbers(dropInput(x, o, site, live)), "the same numbers for the same step").toEqual(after);
    expect(await numbers(dropInput(x, o, siteOf(64, 64, "linear", "elsewhere"), live)), "a mask of its own at each site").not.toEqual(after);
    live.rng = new Rng(5);
    expect(await numbers(dropInput(x, o, site, live)), "another step, another mask").not.toEqual(after);
  });

  it("gives its bias beside B the scale of the update", async () => {
    const p = { A: leaf([2, 3], 1), B: leaf([4, 2], 2), bias: leaf([4], 3) };
    const o = optionsOf({ r: 2, alpha: 6, loraBias: true });
    const own = await numbers(p.bias);
    expect(await numbers(lora.bias!(p, siteOf(4, 3), o)!)).toEqual(own.map((value) => 3 * value));
    expect(drawn(siteOf(4, 3), { r: 2 }).bias).toBeUndefined();
    expect(await numbers(drawn(siteOf(4, 3), { r: 2, loraBias: true }).bias!)).toEqual([0, 0, 0, 0]);
  });
});

describe("rslora", () => {
  it("keeps the size of the update at any rank: its spread does not move between rank 4 and 256, where LoRA's falls to an eighth", async () => {
    const size = async (method: typeof lora | typeof rslora, r: number): Promise<number> => {
      const site = siteOf(64, 300);
      const { A } = drawn(site, { r });
      const B = new Rng(2).normal([64, r], 1);
      return spread(await numbers(loraUpdate({ A, B }, site, parseOptions(method as typeof lora, { r, alpha: 8 })).toDense())).std;
    };
    for (const [method, ratio] of [
      [rslora, 1],
      [lora, 1 / 8],
    ] as const) {
      const found = (await size(method, 256)) / (await size(method, 4)) / ratio;
      expect(Math.abs(found - 1), method.id).toBeLessThan(0.15);
    }
  });

  it("is LoRA with the option set, and cannot be told otherwise", () => {
    expect(parseOptions(rslora, { r: 4 })).toEqual({ ...optionsOf({ r: 4 }), useRslora: true });
    expect(() => parseOptions(rslora, { use_rslora: false })).toThrow(/useRslora/);
  });
});
