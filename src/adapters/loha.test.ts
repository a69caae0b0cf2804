import { beforeAll, describe, expect, it } from "vitest";
import { leaf, sample } from "../../test/support/gradients.ts";
import { liveOf, numbers, siteOf } from "../../test/support/site.ts";
import type { Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { svd } from "../linalg/index.ts";
import { noGrad, ones, Rng, start, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { loha } from "./loha.ts";

beforeAll(async () => {
  await start();
});

const optionsOf = (given: Record<string, unknown>) => parseOptions(loha, given);
const params = (out: number, inner: number, r: number) => ({
  w1a: leaf([out, r], 1),
  w1b: leaf([r, inner], 2),
  w2a: leaf([out, r], 3),
  w2b: leaf([r, inner], 4),
});
const drawn = (site: Site, given: Record<string, unknown>) =>
  loha.init(site, optionsOf(given), { rng: new Rng(3), dtype: "f64", sites: [] }, {}) as Record<string, Tensor>;
const most = (values: readonly number[]): number => Math.max(...values.map(Math.abs));

describe("loha", () => {
  it("draws three factors uniformly within 1/√fan_in and w2b zero; all four when it need not start at the base", async () => {
    for (const initWeights of [true, false]) {
      const p = drawn(siteOf(90, 400), { r: 16, initWeights });
      for (const [name, fan] of Object.entries({ w1a: 16, w1b: 400, w2a: 16, w2b: 400 })) {
        const bound = name === "w2b" && initWeights ? 0 : 1 / Math.sqrt(fan);
        expect(most(await numbers(p[name]!)), name).toBeLessThanOrEqual(bound);
        expect(most(await numbers(p[name]!)), name).toBeGreaterThanOrEqual(0.95 * bound);
      }
    }
  });

  it("is (α/r)·(w1a·w1b) ⊙ (w2a·w2b), entry by entry", async () => {
    const [out, inner, r] = [4, 5, 2];
    const p = params(out, inner, r);
    const [a1, b1, a2, b2] = await Promise.all([p.w1a, p.w1b, p.w2a, p.w2b].map(numbers));
    const at = (a: number[], b: number[], i: number, j: number): number => a[i * r]! * b[j]! + a[i * r + 1]! * b[inner + j]!;
    const found = await numbers(loha.update!(p, siteOf(out, inner), optionsOf({ r, alpha: 3 }), liveOf(false), {}).toDense());
    found.forEach((value, k) => {
      const [i, j] = [Math.floor(k / inner), k % inner];
      expect(value).toBeCloseTo(1.5 * at(a1!, b1!, i, j) * at(a2!, b2!, i, j), 12);
    });
  });

  it("reaches rank r², not more", async () => {
    const update = loha.update!(params(12, 14, 2), siteOf(12, 14), optionsOf({ r: 2 }), liveOf(false), {}).toDense();
    const sigma = await numbers((await svd(update)).S);
    expect(sigma[3]).toBeGreaterThan(1e-3);
    expect(sigma[4]).toBeLessThan(1e-12);
  });

  it("contracts each core of an effective convolution with both of its factors: Σ t[i,j,h,w]·a[i,o]·b[j,c]", async () => {
    const [out, channels, r] = [3, 2, 2];
    const site = siteOf(out, channels * 6, { kernel: [2, 3] });
    const p = { ...params(r, channels, r), w1a: leaf([r, out], 1), w2a: leaf([r, out], 3), t1: leaf([r, r, 2, 3], 5), t2: leaf([r, r, 2, 3], 6) };
    const value = Object.fromEntries(await Promise.all(Object.entries(p).map(async ([name, t]) => [name, await numbers(t)] as const)));
    const half = (n: 1 | 2, o: number, c: number, k: number): number => {
      let total = 0;
      for (let i = 0; i < r; i++)
        for (let j = 0; j < r; j++) total += value[`t${n}`]![(i * r + j) * 6 + k]! * value[`w${n}a`]![i * out + o]! * value[`w${n}b`]![j * channels + c]!;
      return total;
    };
    const found = await numbers(loha.update!(p, site, optionsOf({ r, alpha: 2, useEffectiveConv2d: true }), liveOf(false), {}).toDense());
    for (let o = 0; o < out; o++)
      for (let c = 0; c < channels; c++)
        for (let k = 0; k < 6; k++) expect(found[(o * channels + c) * 6 + k]).toBeCloseTo(half(1, o, c, k) * half(2, o, c, k), 12);
  });

  it("has cores only where asked for and where the kernel is larger than 1×1", () => {
    const shape = (kernel: readonly [number, number], useEffectiveConv2d: boolean) =>
      Object.entries(drawn(siteOf(6, 4 * kernel[0] * kernel[1], { kernel }), { r: 2, useEffectiveConv2d })).map(([name, t]) => `${name} ${t.shape.join("×")}`);
    expect(shape([3, 3], true)).toEqual(["t1 2×2×3×3", "w1a 2×6", "w1b 2×4", "t2 2×2×3×3", "w2a 2×6", "w2b 2×4"]);
    expect(shape([3, 3], false)).toEqual(["w1a 6×2", "w1b 2×36", "w2a 6×2", "w2b 2×36"]);
    expect(shape([1, 1], true)).toEqual(["w1a 6×2", "w1b 2×4", "w2a 6×2", "w2b 2×4"]);
  });

  it("drops whole outputs of the update in training and divides the others by the share that is kept", async () => {
    const site = siteOf(200, 3);
    const p = params(200, 3, 2);
    const x = tensor(sample([1, 3], 9), [1, 3], "f64");
    const o = optionsOf({ r: 2, rankDropout: 0.4 });
    const part = (training: boolean) => numbers(noGrad(() => loha.forward!(x, zeros([1, 200], "f64"), p, site, o, liveOf(training), {})));
    const [whole, found] = [await part(false), await part(true)];
    const kept = found.filter((value) => value !== 0).length / 200;
    expect(kept).toBeGreaterThan(0.5);
    expect(kept).toBeLessThan(0.7);
    found.forEach((value, i) => value !== 0 && expect(value).toBeCloseTo(whole[i]! / kept, 10));
  });

  it("is an update of zero, not 0 / 0, when every output is dropped", async () => {
    const o = optionsOf({ r: 1, rankDropout: 0.9 });
    const outputs: number[] = [];
    for (let seed = 0; seed < 20; seed++) {
      const y = noGrad(() => loha.forward!(ones([1, 2], "f64"), zeros([1, 2], "f64"), params(2, 2, 1), siteOf(2, 2), o, liveOf(true, seed), {}));
      outputs.push(...(await numbers(y)));
    }
    expect(outputs.every(Number.isFinite)).toBe(true);
    expect(outputs.filter((value) => value === 0).length).toBeGreaterThan(20);
  });

  it("leaves the update out in training in the share of steps that module dropout says, and never in evaluation", () => {
    const y = zeros([1, 3], "f64");
    const o = optionsOf({ r: 1, moduleDropout: 0.3 });
    const skipped = (training: boolean): number =>
      Array.from(
        { length: 300 },
        (_, seed) => loha.forward!(ones([1, 3], "f64"), y, params(3, 3, 1), siteOf(3, 3), o, liveOf(training, seed), {}) === y,
      ).filter(Boolean).length / 300;
    expect(skipped(false)).toBe(0);
    expect(skipped(true)).toBeCloseTo(0.3, 1);
  });
});
