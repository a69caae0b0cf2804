import { beforeAll, describe, expect, it } from "vitest";
import {
  defect,
  distance,
  fromTensor,
  onEveryBackend,
  orthogonal,
  plain,
  type Plain,
  product,
  randomMatrix,
  rounding,
  toTensor,
  withSingularValues,
} from "../../test/support/matrices.ts";
import { start, tensor, zeros } from "../tensor/index.ts";
import { qr } from "./index.ts";

beforeAll(async () => {
  await start();
});

const norm = (a: Plain): number => Math.hypot(...a.values);

/** Checks the bounds of the doc comment; `a` may be so scaled that its norm is not finite in f32. */
async function check(a: Plain, dtype: "f32" | "f64" = "f64"): Promise<{ Q: Plain; R: Plain }> {
  const x = toTensor(a, dtype);
  const exact = await fromTensor(x);
  const size = Math.max(...exact.values.map(Math.abs), 2 ** -1000);
  const bound = 10 * Math.max(a.rows, a.cols) * rounding[dtype];
  let last: { Q: Plain; R: Plain } | undefined;
  for (const mode of ["complete", "reduced"] as const) {
    const result = await qr(x, { mode });
    const [Q, R] = [await fromTensor(result.Q), await fromTensor(result.R)];
    const k = mode === "complete" ? a.rows : Math.min(a.rows, a.cols);
    expect([Q.rows, Q.cols, R.rows, R.cols]).toEqual([a.rows, k, k, a.cols]);
    expect(defect(Q)).toBeLessThan(bound);
    const scaled = plain(k, a.cols, (i, j) => R.values[i * a.cols + j]! / size);
    const goal = plain(a.rows, a.cols, (i, j) => exact.values[i * a.cols + j]! / size);
    expect(distance(product(Q, scaled), goal)).toBeLessThanOrEqual(bound * norm(goal));
    for (let i = 0; i < k; i++)
      for (let j = 0; j < a.cols; j++) {
        if (j < i) expect(R.values[i * a.cols + j]).toBe(0);
        if (j === i) expect(R.values[i * a.cols + j]).toBeGreaterThanOrEqual(0);
      }
    last = { Q, R };
  }
  expect((await fromTensor((await qr(x, { mode: "r" })).R)).values).toEqual(last!.R.values);
  return last!;
}

const dense = randomMatrix(40, 40).values;

const matrices: Record<string, Plain> = {
  random: randomMatrix(50, 40),
  "wider than tall": randomMatrix(35, 70),
  "wider than tall by less than a panel": randomMatrix(70, 75),
  "rank-deficient": withSingularValues(60, 45, [5, 4, 3, 2, 1]),
  "of clustered singular values": withSingularValues(
    40,
    40,
    Array.from({ length: 40 }, (_, i) => 1 + 1e-14 * i),
  ),
  "graded to a condition of 1e12": withSingularValues(
    66,
    60,
    Array.from({ length: 60 }, (_, i) => 10 ** ((-12 * i) / 59)),
  ),
  zero: plain(40, 37, () => 0),
  "with zero columns between": plain(40, 40, (i, j) => (j % 3 === 0 ? 0 : dense[i * 40 + j]!)),
  "one row": randomMatrix(1, 40),
  "one column": randomMatrix(40, 1),
  "one element": randomMatrix(1, 1),
  "already upper triangular, of both signs": plain(34, 34, (i, j) => (j < i ? 0 : i === j ? (-1) ** i * (i + 1) : 1)),
};

describe("qr", () => {
  it.each(Object.entries(matrices))("keeps its bounds in f64 and f32: %s", async (_, a) => {
    await check(a);
    await check(a, "f32");
  });

  it("finds the factors it was built from, for a diagonal above 0", async () => {
    const n = 45;
    const q = orthogonal(60, n, 3);
    const above = randomMatrix(n, n).values;
    const r = plain(n, n, (i, j) => (j < i ? 0 : i === j ? 2 + i / n : above[i * n + j]!));
    const { Q, R } = await check(product(q, r));
    expect(distance(R, r)).toBeLessThan(1e-12);
    expect(distance(Q, q)).toBeLessThan(1e-12);
  });

  it("does not overflow or underflow: 1e150, 1e-150 and columns between them in f64, 1e30 and 1e-30 in f32", async () => {
    for (const scale of [1e150, 1e300, 1e-150, 1e-300]) await check(randomMatrix(40, 36, scale));
    for (const scale of [1e30, 1e-30]) await check(randomMatrix(40, 36, scale), "f32");
    const base = randomMatrix(20, 20).values;
    const columns = plain(20, 20, (i, j) => base[i * 20 + j]! * 10 ** (15 * (j - 10)));
    const { Q, R } = await check(columns);
    // each column to its own size
    for (let j = 0; j < 20; j++) {
      const of = (x: Plain): Plain => plain(x.rows, 1, (i) => x.values[i * 20 + j]! / 10 ** (15 * (j - 10)));
      expect(distance(product(Q, of(R)), of(columns))).toBeLessThan(1e-14);
    }
  });

  it("works on matrices of no rows or no columns", async () => {
    for (const [m, n] of [
      [0, 3],
      [3, 0],
      [0, 0],
    ] as const) {
      const { Q, R } = await qr(zeros([m, n]));
      expect([Q.shape, R.shape]).toEqual([
        [m, 0],
        [0, n],
      ]);
    }
    expect((await fromTensor((await qr(zeros([3, 0]), { mode: "complete" })).Q)).values).toEqual(new Float64Array([1, 0, 0, 0, 1, 0, 0, 0, 1]));
  });

  it("gives the same on every backend", async () => {
    await onEveryBackend(async () => {
      await check(matrices["random"]!);
      await check(matrices["wider than tall"]!, "f32");
      await check(matrices["rank-deficient"]!);
    });
  });

  it("says what is wrong with NaN, infinity and other shapes", async () => {
    await expect(qr(tensor([1, NaN, 2, 1], [2, 2]))).rejects.toThrow(/holds NaN/);
    await expect(qr(tensor([1, -Infinity, 0, 1], [2, 2], "f64"))).rejects.toThrow(/holds -Infinity/);
    await expect(qr(tensor([1, 2], [2]))).rejects.toThrow(/f32 or f64 matrix/);
  });
});
