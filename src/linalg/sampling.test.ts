import { describe, expect, it } from "vitest";
import { Rng } from "../tensor/index.ts";
import { sampleWithoutReplacement } from "./index.ts";

/** Probability of every ordered draw of k, by multiplying out w / Σ of what is left. */
function ordered(weights: readonly number[], k: number, drawn: readonly number[] = [], p = 1, out = new Map<string, number>()): Map<string, number> {
  if (drawn.length === k) return out.set(drawn.join(), p);
  const left = weights.reduce((sum, w, i) => (drawn.includes(i) ? sum : sum + w), 0);
  weights.forEach((w, i) => {
    if (w > 0 && !drawn.includes(i)) ordered(weights, k, [...drawn, i], (p * w) / left, out);
  });
  return out;
}

describe("sampleWithoutReplacement", () => {
  it("draws every ordered subset as often as drawing one after the other does", () => {
    const weights = [1, 2, 0, 4, 0.5];
    const exact = ordered(weights, 3);
    const rng = new Rng(11);
    const counts = new Map<string, number>();
    const runs = 40000;
    for (let i = 0; i < runs; i++) {
      const name = sampleWithoutReplacement(weights, 3, rng).join();
      counts.set(name, (counts.get(name) ?? 0) + 1);
    }
    expect([...counts.keys()].every((name) => exact.has(name))).toBe(true);
    // Five standard deviations of a frequency.
    for (const [name, p] of exact) expect(Math.abs((counts.get(name) ?? 0) / runs - p), name).toBeLessThan(5 * Math.sqrt((p * (1 - p)) / runs));
  });

  it("includes each of many with its exact probability, for the mixture of uniform and σ that SST draws from", () => {
    const sigma = [3, 2, 1, 0.5, 0.1, 0];
    const total = sigma.reduce((a, b) => a + b, 0);
    const weights = sigma.map((s) => 0.5 * (1 / sigma.length + s / total));
    const inclusion = sigma.map((_, i) => [...ordered(weights, 2)].reduce((sum, [name, p]) => (name.split(",").includes(String(i)) ? sum + p : sum), 0));
    const rng = new Rng(3);
    const counts = sigma.map(() => 0);
    const runs = 30000;
    for (let i = 0; i < runs; i++) for (const at of sampleWithoutReplacement(weights, 2, rng)) counts[at]!++;
    inclusion.forEach((p, i) => expect(Math.abs(counts[i]! / runs - p), `${i}`).toBeLessThan(5 * Math.sqrt((p * (1 - p)) / runs)));
  });

  it("draws all that can be drawn, once each, and the same for the same seed", () => {
    const weights = Float64Array.from({ length: 500 }, (_, i) => i % 7);
    const all = sampleWithoutReplacement(weights, 428, new Rng(1));
    expect([...all].sort((a, b) => a - b)).toEqual([...weights.keys()].filter((i) => i % 7 > 0));
    expect(sampleWithoutReplacement(weights, 428, new Rng(1))).toEqual(all);
    expect(sampleWithoutReplacement(weights, 0, new Rng(1)).length).toBe(0);
  });

  it("keeps what has a tiny weight drawable", () => {
    expect([...sampleWithoutReplacement([1, 1e-320, 1e-310], 3, new Rng(2))].sort()).toEqual([0, 1, 2]);
  });

  it("refuses bad weights and more draws than positive weights", () => {
    expect(() => sampleWithoutReplacement([1, -1], 1, new Rng(1))).toThrow(/weight 1 is -1/);
    expect(() => sampleWithoutReplacement([NaN], 1, new Rng(1))).toThrow(/weight 0 is NaN/);
    expect(() => sampleWithoutReplacement([1, 0, 2], 3, new Rng(1))).toThrow(/k = 3 is not a whole number between 0 and 2/);
  });
});
