import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { onEveryBackend } from "../../test/support/matrices.ts";
import { start, tensor, transpose } from "../tensor/index.ts";
import { assignment } from "./index.ts";

beforeAll(async () => {
  await start();
});

/** The sum over the chosen pairs, after a look that no column stands twice and as many rows are matched as can be. */
function total(cost: ArrayLike<number>, rows: number, cols: number, columns: Int32Array): number {
  const matched = [...columns].filter((j) => j >= 0);
  expect(columns.length).toBe(rows);
  expect(matched.length).toBe(Math.min(rows, cols));
  expect(new Set(matched).size).toBe(matched.length);
  expect(matched.every((j) => j < cols)).toBe(true);
  return columns.reduce((sum, j, i) => (j < 0 ? sum : sum + cost[i * cols + j]!), 0);
}

/** The smallest sum by trying every way to match the rows; needs rows ≤ cols. */
function bruteForce(cost: ArrayLike<number>, rows: number, cols: number, row = 0, used = 0): number {
  if (row === rows) return 0;
  let best = Infinity;
  for (let j = 0; j < cols; j++) if (!(used & (1 << j))) best = Math.min(best, cost[row * cols + j]! + bruteForce(cost, rows, cols, row + 1, used | (1 << j)));
  return best;
}

/** Entries 0 … 1008 from a formula, as in the script that made the golden sums. */
const formula = (rows: number, cols: number): number[] =>
  Array.from({ length: rows * cols }, (_, at) => {
    const [i, j] = [Math.floor(at / cols), at % cols];
    return (i * 7919 + j * 104729 + i * j * 31 + i * i * 17) % 1009;
  });

describe("assignment", () => {
  it("finds the smallest and the largest sum that brute force finds, for every shape and every way up", async () => {
    for (let seed = 0; seed < 60; seed++) {
      const rows = 1 + (seed % 6);
      const cols = rows + (seed % 3);
      const cost = sample([rows * cols], seed).map((x) => (seed % 2 ? x : Math.round(2 * x)));
      const smallest = bruteForce(cost, rows, cols);
      const largest = -bruteForce(
        cost.map((x) => -x),
        rows,
        cols,
      );
      const a = tensor(cost, [rows, cols], "f64");
      expect(total(cost, rows, cols, await assignment(a))).toBeCloseTo(smallest, 10);
      expect(total(cost, rows, cols, await assignment(a, { maximize: true }))).toBeCloseTo(largest, 10);
      const turned = Array.from({ length: cols * rows }, (_, at) => cost[(at % rows) * cols + Math.floor(at / rows)]!);
      expect(total(turned, cols, rows, await assignment(transpose(a)))).toBeCloseTo(smallest, 10);
    }
  });

  it.each([
    // scipy 1.17 linear_sum_assignment
    [7, 12, false, 803],
    [15, 6, true, 5536],
    [30, 30, false, 1712],
    [60, 50, true, 49289],
  ])("reaches scipy's sum for %i×%i, maximize %s: %i", async (rows, cols, maximize, golden) => {
    await onEveryBackend(async () => {
      const cost = formula(rows, cols);
      expect(total(cost, rows, cols, await assignment(tensor(cost, [rows, cols]), { maximize }))).toBe(golden);
    });
  });

  it("finds a permutation hidden in noise at width 300", async () => {
    const n = 300;
    const hidden = Int32Array.from({ length: n }, (_, i) => (i * 77 + 5) % n);
    const noise = sample([n * n], 3);
    const cost = noise.map((x, at) => Math.abs(x) + (hidden[Math.floor(at / n)] === at % n ? 0 : 10));
    expect(await assignment(tensor(cost, [n, n], "f64"))).toEqual(hidden);
  });

  it("gives the same answer every time when all sums are equal", async () => {
    const flat = tensor(new Float64Array(30).fill(2), [5, 6], "f64");
    const first = await assignment(flat);
    expect(total(new Float64Array(30).fill(2), 5, 6, first)).toBe(10);
    expect(await assignment(flat)).toEqual(first);
  });

  it("takes one row, one column, and none", async () => {
    expect([...(await assignment(tensor([3, 1, 2], [1, 3])))]).toEqual([1]);
    expect([...(await assignment(tensor([3, 1, 2], [3, 1])))]).toEqual([-1, 0, -1]);
    expect([...(await assignment(tensor([3, 1, 2], [3, 1]), { maximize: true }))]).toEqual([0, -1, -1]);
    expect([...(await assignment(tensor([], [0, 0])))]).toEqual([]);
    expect([...(await assignment(tensor([], [2, 0])))]).toEqual([-1, -1]);
    expect([...(await assignment(tensor([], [0, 2])))]).toEqual([]);
  });

  it("does not overflow at the edge of the number range", async () => {
    expect([...(await assignment(tensor([1e308, -1e308, -1e308, 1e308], [2, 2], "f64")))]).toEqual([1, 0]);
  });

  it("refuses infinities, NaN and what is no matrix", async () => {
    await expect(assignment(tensor([1, Infinity, 2, 3], [2, 2]))).rejects.toThrow(/assignment: the matrix holds Infinity/);
    await expect(assignment(tensor([1, NaN, 2, 3], [2, 2]))).rejects.toThrow(/assignment: the matrix holds NaN/);
    await expect(assignment(tensor([1, 2]))).rejects.toThrow(/assignment needs an f32 or f64 matrix/);
  });
});
