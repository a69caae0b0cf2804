import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { defect, distance, fromTensor, onEveryBackend, plain, type Plain, product, symmetric, toTensor } from "../../test/support/matrices.ts";
import { start, tensor } from "../tensor/index.ts";
import { eigh, eigvalsh } from "./index.ts";

beforeAll(async () => {
  await start();
});

const sorted = (values: readonly number[]): number[] => [...values].sort((a, b) => a - b);

async function check(a: Plain, values: readonly number[] | undefined, dtype: "f32" | "f64" = "f64"): Promise<void> {
  const n = a.rows;
  const x = toTensor(a, dtype);
  const exact = await fromTensor(x);
  const { eigenvalues, eigenvectors } = await eigh(x);
  const [w, v] = [await fromTensor(eigenvalues), await fromTensor(eigenvectors)];
  const size = Math.max(...exact.values.map(Math.abs), Number.MIN_VALUE) * Math.sqrt(n);
  const rounding = (dtype === "f64" ? 2e-15 : 3e-7) * Math.sqrt(n) + 4e-15;
  expect(defect(v)).toBeLessThan(rounding * 4);
  const shifted = plain(n, n, (i, j) => v.values[i * n + j]! * (w.values[j]! / size));
  expect(
    distance(
      product(
        plain(n, n, (i, j) => exact.values[Math.max(i, j) * n + Math.min(i, j)]! / size),
        v,
      ),
      shifted,
    ),
  ).toBeLessThan(rounding);
  expect([...w.values]).toEqual(sorted([...w.values]));
  if (values) sorted(values).forEach((value, i) => expect(Math.abs(w.values[i]! - value) / size, `eigenvalue ${i}`).toBeLessThan(rounding));
  const alone = await fromTensor(await eigvalsh(x));
  expect(distance(alone, w) / size).toBeLessThan(rounding);
  for (let j = 0; j < n; j++) {
    let top = 0;
    for (let i = 0; i < n; i++) if (Math.abs(v.values[i * n + j]!) > Math.abs(top)) top = v.values[i * n + j]!;
    expect(top).toBeGreaterThan(0);
  }
}

const spectra: Record<string, (n: number) => number[]> = {
  random: (n) => sample([n], 3),
  "rank-deficient": (n) => sample([n], 4).map((x, i) => (i % 4 === 0 ? x : 0)),
  clustered: (n) => Array.from({ length: n }, (_, i) => 1 + (i % 3) + 1e-13 * i),
  graded: (n) => Array.from({ length: n }, (_, i) => 10 ** ((-12 * i) / n)),
  "all equal": (n) => new Array<number>(n).fill(2.5),
  zero: (n) => new Array<number>(n).fill(0),
  "of both signs and equal size": (n) => Array.from({ length: n }, (_, i) => (i % 2 ? 1 : -1)),
};

describe("eigh", () => {
  it.each(Object.entries(spectra))("finds the spectrum it was built from: %s", async (_, values) => {
    for (const n of [1, 2, 3, 31, 33, 70, 129]) await check(symmetric(values(n), n), values(n));
    await check(symmetric(values(40)), undefined, "f32");
  });

  it("does not change its relative errors from 1e-300 to 1e300", async () => {
    for (const scale of [1e-300, 1e-160, 1e160, 1e300]) await check(symmetric(sample([40], 3).map((x) => x * scale)), undefined);
    for (const scale of [1e-35, 1e37]) await check(symmetric(sample([20], 3).map((x) => x * scale)), undefined, "f32");
  });

  it("knows the second difference matrix, whose eigenvalues are 2 − 2·cos(iπ/(n+1)), and that of 1…n on the diagonal", async () => {
    const n = 100;
    const second = plain(n, n, (i, j) => (i === j ? 2 : Math.abs(i - j) === 1 ? -1 : 0));
    await check(
      second,
      Array.from({ length: n }, (_, i) => 2 - 2 * Math.cos(((i + 1) * Math.PI) / (n + 1))),
    );
    await check(
      plain(n, n, (i, j) => (i === j ? n - i : 0)),
      Array.from({ length: n }, (_, i) => i + 1),
    );
  });

  it("keeps close pairs of Wilkinson's matrix W21+ apart", async () => {
    const wilkinson = plain(21, 21, (i, j) => (i === j ? Math.abs(10 - i) : Math.abs(i - j) === 1 ? 1 : 0));
    const top = (await eigh(toTensor(wilkinson))).eigenvalues;
    const values = (await top.data()) as Float64Array;
    expect(values[20]).toBeCloseTo(10.746194182903393, 12);
    expect(values[19]).toBeCloseTo(10.746194182903322, 12);
    await check(wilkinson, undefined);
  });

  it("reads the lower triangle alone", async () => {
    const { eigenvalues } = await eigh(tensor([2, 99, 1, 2], [2, 2], "f64"));
    expect([...(await eigenvalues.data())].map(Number)).toEqual([1, 3].map((x) => expect.closeTo(x, 14)));
  });

  it("gives the same on every backend", async () => {
    await onEveryBackend(() => check(symmetric(spectra["clustered"]!(45)), spectra["clustered"]!(45)));
  });

  it("says what is wrong with NaN, infinity and other shapes", async () => {
    await expect(eigh(tensor([1, NaN, NaN, 1], [2, 2]))).rejects.toThrow(/holds NaN/);
    await expect(eigvalsh(tensor([1, Infinity, 0, 1], [2, 2], "f64"))).rejects.toThrow(/holds Infinity/);
    await expect(eigh(tensor([1, 2], [1, 2]))).rejects.toThrow(/square/);
    await expect(eigh(tensor([1, 2], [2], "i32"))).rejects.toThrow(/f32 or f64 matrix/);
  });
});
