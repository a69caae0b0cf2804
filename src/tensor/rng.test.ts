import { afterAll, beforeAll, describe, expect, it } from "vitest";
import * as t from "./index.ts";
import { normalPair, philox } from "./philox.ts";

beforeAll(() => t.start());
afterAll(() => t.stop());

const bits = (x: Float32Array | Float64Array): string => Buffer.from(x.buffer, x.byteOffset, x.byteLength).toString("hex");
const numbers = (x: t.Tensor): Float32Array => t.hostNumbers(x) as Float32Array;

/** Mean, variance, skewness and excess kurtosis. */
function moments(x: ArrayLike<number>): [number, number, number, number] {
  const values = Array.from(x);
  const average = (f: (v: number) => number): number => values.reduce((sum, v) => sum + f(v), 0) / values.length;
  const mean = average((v) => v);
  const variance = average((v) => (v - mean) ** 2);
  return [mean, variance, average((v) => ((v - mean) / Math.sqrt(variance)) ** 3), average((v) => ((v - mean) / Math.sqrt(variance)) ** 4) - 3];
}

describe("philox", () => {
  it("gives the words of Random123's known answers", () => {
    // kat_vectors of Random123, philox4x32-10, with its counter (c0, c1, 0, 0)
    expect(philox(0, 0, 0, 0)).toEqual([0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
  });

  it("makes normals that agree with Box–Muller by Math.log and Math.cos, also at the ends of both words", () => {
    const words = [
      0, 255, 256, 0x7fffffff, 0x80000000, 0x80000100, 0xffffff00, 0xffffffff, 0x1fffff00, 0x20000000, 0x40000000, 0xc0000000, 0xdfffff00, 0xb504f300,
      0xb504f400,
    ];
    for (let i = 0; i < 300; i++) words.push(...philox(1, 2, i, 3));
    for (let i = 0; i < words.length; i++) {
      const [a, b] = [words[i]!, words[(i * 7 + 3) % words.length]!];
      const radius = Math.sqrt(-2 * Math.log(((a >>> 8) + 1) * 2 ** -24));
      const angle = 2 * Math.PI * (b >>> 8) * 2 ** -24;
      const [x, y] = normalPair(a, b);
      expect(Math.abs(x - radius * Math.cos(angle))).toBeLessThan(1e-14);
      expect(Math.abs(y - radius * Math.sin(angle))).toBeLessThan(1e-14);
    }
  });
});

describe("Rng", () => {
  it("forks by name alone: neither order nor draws in between change a fork", () => {
    const a = new t.Rng(7);
    const first = [numbers(a.fork("x").uniform([9], 1)), numbers(a.fork("y").uniform([9], 1))];
    const b = new t.Rng(7);
    b.uniform([100], 1);
    const second = numbers(b.fork("y").uniform([9], 1));
    b.random();
    expect(second).toEqual(first[1]);
    expect(numbers(b.fork("x").uniform([9], 1))).toEqual(first[0]);
    expect(first[0]).not.toEqual(first[1]);
  });

  it("forks of near names, seeds and depths all differ", () => {
    const seen = new Set<string>();
    const names = ["", "a", "b", "ab", "ba", "a/b", "a.b", "layers.1", "layers.2", "layers.11", "layers.12", "x".repeat(300)];
    for (const seed of [0, 1, 2, -1, 2 ** 31, 2 ** 32, 2 ** 32 + 1, 2 ** 52]) {
      const rng = new t.Rng(seed);
      for (const one of [rng, ...names.flatMap((name) => [rng.fork(name), rng.fork("a").fork(name)])]) seen.add(String(one.key));
    }
    expect(seen.size).toBe(8 * (1 + 2 * names.length));
  });

  it("goes on from a stored key and counter as if nothing had happened", () => {
    const rng = new t.Rng(3);
    rng.uniform([5], 1);
    rng.permutation(4);
    const again = new t.Rng([...rng.key] as [number, number], rng.counter);
    expect(numbers(again.normal([7], 2))).toEqual(numbers(rng.normal([7], 2)));
    expect(again.permutation(20)).toEqual(rng.permutation(20));
    expect(again.random()).toBe(rng.random());
    expect(again.counter).toBe(rng.counter);
  });

  it("a longer draw starts with the numbers of a shorter one, and successive draws differ", () => {
    const [a, b] = [new t.Rng(1), new t.Rng(1)];
    expect(numbers(a.normal([13], 1))).toEqual(numbers(b.normal([40], 1)).slice(0, 13));
    expect(numbers(a.normal([13], 1))).not.toEqual(numbers(new t.Rng(1).normal([13], 1)));
  });

  it("uniform fills [−bound, bound) evenly", () => {
    const x = numbers(new t.Rng(11).uniform([200_000], 0.5));
    const [mean, variance, skew, kurtosis] = moments(x);
    expect(Math.abs(mean)).toBeLessThan(0.003);
    expect(Math.abs(variance - 1 / 12)).toBeLessThan(0.001);
    expect(Math.abs(skew)).toBeLessThan(0.02);
    expect(Math.abs(kurtosis + 1.2)).toBeLessThan(0.02);
    expect(x.every((value) => value >= -0.5 && value <= 0.5)).toBe(true);
    const buckets = new Array<number>(20).fill(0);
    for (const value of x) buckets[Math.min(19, Math.floor((value + 0.5) * 20))]!++;
    // χ² with 19 degrees of freedom exceeds 43.8 once in a thousand
    expect(buckets.reduce((sum, n) => sum + (n - 10_000) ** 2 / 10_000, 0)).toBeLessThan(43.8);
  });

  it("normal has the moments and tails of a normal distribution, and no correlation between neighbours", () => {
    const x = numbers(new t.Rng(12).normal([200_000], 2));
    const [mean, variance, skew, kurtosis] = moments(x);
    expect(Math.abs(mean)).toBeLessThan(0.015);
    expect(Math.abs(variance - 4)).toBeLessThan(0.05);
    expect(Math.abs(skew)).toBeLessThan(0.02);
    expect(Math.abs(kurtosis)).toBeLessThan(0.04);
    expect(Math.abs(x.filter((value) => Math.abs(value) > 2 * 1.959964).length / x.length - 0.05)).toBeLessThan(0.0018);
    let along = 0;
    for (let i = 1; i < x.length; i++) along += x[i]! * x[i - 1]!;
    expect(Math.abs(along / x.length / 4)).toBeLessThan(0.008);
  });

  it("random has 53 bits in [0, 1), integer stays below its limit", () => {
    const rng = new t.Rng(4);
    const draws = Array.from({ length: 20_000 }, () => rng.random());
    expect(draws.every((value) => value >= 0 && value < 1)).toBe(true);
    expect(draws.filter((value) => !Number.isInteger(value * 2 ** 32)).length).toBeGreaterThan(19_000);
    expect(Math.abs(moments(draws)[0] - 0.5)).toBeLessThan(0.01);
    const counts = new Array<number>(6).fill(0);
    for (let i = 0; i < 12_000; i++) counts[rng.integer(6)]!++;
    for (const count of counts) expect(Math.abs(count - 2000)).toBeLessThan(170);
  });

  it("permutation holds every number once, and puts each anywhere equally often", () => {
    for (const n of [0, 1, 2, 3, 100, 1001]) expect([...new t.Rng(n).permutation(n)].sort((a, b) => a - b)).toEqual(Array.from({ length: n }, (_, i) => i));
    const rng = new t.Rng(8);
    const places = Array.from({ length: 4 }, () => new Array<number>(4).fill(0));
    for (let turn = 0; turn < 8000; turn++) rng.permutation(4).forEach((value, place) => places[value]![place]!++);
    for (const counts of places) for (const count of counts) expect(Math.abs(count - 2000)).toBeLessThan(170);
  });

  it("draws the same bits on every backend", async () => {
    const seen: string[][] = [];
    for (const backend of ["native", "wasm", "reference"] as const) {
      t.stop();
      try {
        await t.start({ backend });
      } catch (error) {
        if (backend !== "native") throw error;
        console.log(`rng is not tested on native: ${(error as Error).message}`);
        continue;
      }
      const rng = new t.Rng(2026).fork("lora/q_proj");
      const x = [
        rng.uniform([1001], 0.125),
        rng.normal([1001], 0.02),
        t.dropout(t.ones([1001]), 0.3, rng),
        rng.uniform([5], 1, "f64"),
        rng.normal([5], 1, "f64"),
      ];
      seen.push([...x.map((one) => bits(numbers(one))), String(rng.permutation(50))]);
    }
    for (const one of seen) expect(one).toEqual(seen[0]);
    t.stop();
    await t.start();
  });
});
