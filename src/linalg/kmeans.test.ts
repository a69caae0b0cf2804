import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { onEveryBackend } from "../../test/support/matrices.ts";
import { Rng, start, tensor, transpose, type Tensor } from "../tensor/index.ts";
import { kmeans, type Kmeans, type KmeansOptions } from "./index.ts";

beforeAll(async () => {
  await start();
});

const square = (x: ArrayLike<number>, i: number, y: ArrayLike<number>, c: number, d: number): number =>
  Array.from({ length: d }, (_, j) => (x[i * d + j]! - y[c * d + j]!) ** 2).reduce((a, b) => a + b, 0);

/** Looks that every label is the nearest centroid's, that centroids are means of their members, and that the inertia is right. */
async function checkLaws(x: ArrayLike<number>, d: number, { centroids, labels, inertia }: Kmeans, slack: number): Promise<void> {
  const [c, k] = [(await centroids.data()) as Float64Array, centroids.shape[0]!];
  let sum = 0;
  labels.forEach((label, i) => {
    const all = Array.from({ length: k }, (_, at) => square(x, i, c, at, d));
    expect(all[label]).toBeLessThanOrEqual(Math.min(...all) + slack);
    sum += all[label]!;
  });
  expect(Math.abs(sum - inertia)).toBeLessThanOrEqual(slack * labels.length);
  for (let at = 0; at < k; at++) {
    const members = [...labels.keys()].filter((i) => labels[i] === at);
    expect(members.length).toBeGreaterThan(0);
    for (let j = 0; j < d; j++) {
      const mean = members.reduce((s, i) => s + x[i * d + j]!, 0) / members.length;
      expect(Math.abs(mean - c[at * d + j]!)).toBeLessThan(slack);
    }
  }
}

/** Groups of `each` points within 0.1 of corners that lie 10 apart. */
const groups = (k: number, each: number, d: number, seed: number): number[] =>
  sample([k * each, d], seed).map((x, at) => 0.1 * Math.tanh(x) + (Math.floor(at / d) % k === at % d ? 10 : 0));

/** The smallest inertia over all ways to label n points with k labels. */
function bruteForce(x: ArrayLike<number>, n: number, d: number, k: number): number {
  let best = Infinity;
  for (let code = 0; code < k ** n; code++) {
    const labels = Array.from({ length: n }, (_, i) => Math.floor(code / k ** i) % k);
    const means = new Float64Array(k * d);
    for (let i = 0; i < n; i++) for (let j = 0; j < d; j++) means[labels[i]! * d + j]! += x[i * d + j]! / labels.filter((l) => l === labels[i]).length;
    best = Math.min(
      best,
      labels.reduce((sum, label, i) => sum + square(x, i, means, label, d), 0),
    );
  }
  return best;
}

describe("kmeans", () => {
  it.each(["k-means++", "random"] as const)("ends where labels are nearest and centroids are means, with seeding %s, on every backend", async (seeding) => {
    await onEveryBackend(async () => {
      const x = sample([200, 5], 2);
      await checkLaws(x, 5, await kmeans(tensor(x, [200, 5], "f64"), 7, { seeding }), 1e-12);
    });
  });

  it("finds far groups, also among few wide points and when the points lie far from 0", async () => {
    for (const [k, each, d, shift] of [
      [5, 40, 5, 0],
      [4, 3, 5000, 0],
      [5, 40, 5, 1e6],
    ] as const) {
      const x = groups(k, each, d, 4).map((value) => value + shift);
      const { labels, inertia } = await kmeans(tensor(x, [k * each, d], "f64"), k, { restarts: 5 });
      for (let i = k; i < k * each; i++) expect(labels[i]).toBe(labels[i % k]);
      expect(new Set(labels).size).toBe(k);
      expect(inertia).toBeLessThan(k * each * d * 0.01);
    }
  });

  it("reaches the best of all partitions of nine points within some restarts", async () => {
    for (let seed = 0; seed < 4; seed++) {
      const x = sample([9, 2], seed);
      const { inertia } = await kmeans(tensor(x, [9, 2], "f64"), 3, { restarts: 20, rng: new Rng(seed) });
      expect(inertia).toBeCloseTo(bruteForce(x, 9, 2, 3), 12);
    }
  });

  it("is the same for the same seed, and never worse with more iterations", async () => {
    const x = tensor(sample([300, 4], 8), [300, 4]);
    const run = (options: KmeansOptions) => kmeans(x, 12, { rng: new Rng(5), ...options });
    const [a, b] = [await run({}), await run({})];
    expect(a.labels).toEqual(b.labels);
    expect(await a.centroids.data()).toEqual(await b.centroids.data());
    let before = Infinity;
    for (let iterations = 0; iterations < 8; iterations++) {
      const { inertia } = await run({ iterations });
      expect(inertia).toBeLessThanOrEqual(before);
      before = inertia;
    }
  });

  it("gives every point its own centroid when k is their number", async () => {
    const x = sample([12, 6], 1);
    const { labels, inertia } = await kmeans(tensor(x, [12, 6]), 12);
    expect(new Set(labels).size).toBe(12);
    expect(inertia).toBe(0);
  });

  it("gives copies of the same points one centroid each, and ends although more centroids are wanted than points differ", async () => {
    const once = sample([4, 3], 6);
    const x = Float64Array.from({ length: 60 }, (_, at) => once[at % 12]!);
    const exact = await kmeans(tensor(x, [20, 3], "f64"), 4);
    expect(new Set(exact.labels).size).toBe(4);
    expect(exact.inertia).toBeLessThan(1e-28);
    const more = await kmeans(tensor(x, [20, 3], "f64"), 6);
    expect(more.inertia).toBeLessThan(1e-28);
    expect((await more.centroids.data()).every(Number.isFinite)).toBe(true);
  });

  it("fills empty clusters with the farthest points", async () => {
    // Random starts among 50 copies of 0 leave clusters empty; the two far points must still get their own.
    const x = [...new Array<number>(50).fill(0), 10, 30];
    const { labels, inertia } = await kmeans(tensor(x, [52, 1]), 3, { seeding: "random" });
    expect(inertia).toBe(0);
    expect(new Set(labels).size).toBe(3);
  });

  it("draws k-means++ starts with probability ∝ squared distance", async () => {
    // The first start is any point; from 0 the others are at squared distances 1 and 9, from 1 at 1 and 4, from 3 at 9 and 4.
    const x = tensor([0, 1, 3], [3, 1], "f64");
    const rng = new Rng(1);
    const counts = new Map<string, number>();
    const runs = 6000;
    for (let i = 0; i < runs; i++) {
      const { centroids } = await kmeans(x, 2, { rng, iterations: 0 });
      const name = [...(await centroids.data())].join();
      counts.set(name, (counts.get(name) ?? 0) + 1);
    }
    const expected: Record<string, number> = { "0,1": 0.1, "0,3": 0.9, "1,0": 0.2, "1,3": 0.8, "3,0": 9 / 13, "3,1": 4 / 13 };
    for (const [name, p] of Object.entries(expected)) expect(Math.abs((counts.get(name) ?? 0) / runs - p / 3), name).toBeLessThan(0.025);
  });

  it("starts from a sample spread over all points", async () => {
    const x = groups(4, 2500, 4, 3);
    const { labels, inertia } = await kmeans(tensor(x, [10000, 4]), 4, { sample: 40, restarts: 3 });
    for (let i = 4; i < labels.length; i++) if (labels[i] !== labels[i % 4]) throw new Error(`point ${i} is in another cluster than point ${i % 4}`);
    expect(inertia).toBeLessThan(400);
  });

  it("reads points of any strides and gives centroids their dtype", async () => {
    const x = sample([3, 20], 3);
    const turned = Float64Array.from({ length: 60 }, (_, at) => x[(at % 3) * 20 + Math.floor(at / 3)]!);
    const data = (t: Tensor) => t.data();
    const a = await kmeans(transpose(tensor(x, [3, 20])), 4);
    const b = await kmeans(tensor(turned, [20, 3]), 4);
    expect(a.centroids.dtype).toBe("f32");
    expect(await data(a.centroids)).toEqual(await data(b.centroids));
  });

  it("refuses what it cannot do", async () => {
    const x = tensor([1, 2, 3], [3, 1]);
    await expect(kmeans(x, 4)).rejects.toThrow(/k = 4 is not a whole number between 1 and 3/);
    await expect(kmeans(x, 0)).rejects.toThrow(/k = 0/);
    await expect(kmeans(x, 2, { sample: 1 })).rejects.toThrow(/a sample of 1 points cannot give 2 starts/);
    await expect(kmeans(x, 2, { restarts: 0 })).rejects.toThrow(/restarts is 0/);
    await expect(kmeans(tensor([1, NaN], [2, 1]), 1)).rejects.toThrow(/holds NaN/);
    await expect(kmeans(tensor([1e200, -1e200], [2, 1], "f64"), 1)).rejects.toThrow(/distances of the points overflow/);
    await expect(kmeans(tensor([1, 2]), 1)).rejects.toThrow(/needs an f32 or f64 matrix/);
  });
});
