import { beforeAll, describe, expect, it } from "vitest";
import { matmul, Rng, start, tensor, transpose, zeros, type Tensor } from "../tensor/index.ts";
import { inverseFactor, sparseGpt, type Sparsity } from "./sparsegpt.ts";

beforeAll(() => start());

type Matrix = number[][];

/** By Gauss and Jordan; a positive definite matrix needs no exchange of rows. */
function inverse(a: Matrix): Matrix {
  const n = a.length;
  const rows = a.map((row, i) => [...row, ...row.map((_, j) => Number(i === j))]);
  for (let i = 0; i < n; i++) {
    const pivot = rows[i]!.map((x) => x / rows[i]![i]!);
    rows.forEach((row, k) => (rows[k] = k === i ? pivot : row.map((x, j) => x - row[i]! * pivot[j]!)));
  }
  return rows.map((row) => row.slice(n));
}

/** Columns from left to right; after each, those to its right are found again from scratch, as the least squares given what is settled. */
function reference(W: Matrix, H: Matrix, sparsity: Sparsity): Matrix {
  const n = H.length;
  const inverses = H.map((_, j) => inverse(H.slice(j).map((row) => row.slice(j))));
  const left = W.map((row) => [...row]);
  const cost = (row: number, j: number): number => left[row]![j]! ** 2 / inverses[j]![0]![0]!;
  const goes = W.map(() => new Set<number>());
  const choose = (places: (readonly [number, number])[], count: number): void =>
    places
      .toSorted(([a, i], [b, k]) => cost(a, i) - cost(b, k))
      .slice(0, count)
      .forEach(([row, j]) => goes[row]!.add(j));
  if (sparsity !== "2:4") {
    const places = W.flatMap((row, r) => row.map((_, j) => [r, j] as const));
    choose(places, Math.round(sparsity.share * places.length));
  }
  for (let j = 0; j < n; j++)
    for (const [r, row] of left.entries()) {
      if (sparsity === "2:4" && j % 4 === 0)
        choose(
          [0, 1, 2, 3].map((i) => [r, j + i] as const),
          2,
        );
      if (!goes[r]!.has(j)) continue;
      row[j] = 0;
      const pull = H.slice(j + 1).map((h) => row.slice(0, j + 1).reduce((sum, w, s) => sum + h[s]! * (w - W[r]![s]!), 0));
      for (let k = j + 1; k < n; k++) row[k] = W[r]![k]! - inverses[j + 1]![k - j - 1]!.reduce((sum, x, i) => sum + x * pull[i]!, 0);
    }
  return left;
}

const numbers = async (x: Tensor): Promise<number[]> => Array.from(await x.data(), Number);
const rowsOf = (flat: readonly number[], n: number): Matrix => Array.from({ length: flat.length / n }, (_, i) => flat.slice(i * n, (i + 1) * n));

/** A matrix [rows, n], correlated inputs, and their Gram matrix. */
async function layer(rows: number, n: number) {
  const rng = new Rng(5);
  const X = matmul(rng.fork("X").normal([2 * n, n], 1, "f64"), rng.fork("mix").normal([n, n], 1, "f64"));
  const [W, G] = [rng.fork("W").normal([rows, n], 1, "f64"), matmul(transpose(X), X)];
  const H = rowsOf(await numbers(G), n);
  const damping = (0.01 * H.reduce((sum, row, i) => sum + row[i]!, 0)) / n;
  return { W, G, H: H.map((row, i) => row.map((x, j) => (i === j ? x + damping : x))) };
}

const lost = (W: Matrix, left: Matrix, H: Matrix): number =>
  W.reduce((sum, row, r) => {
    const d = row.map((w, j) => left[r]![j]! - w);
    return sum + d.reduce((inner, x, i) => inner + x * H[i]!.reduce((dot, h, j) => dot + h * d[j]!, 0), 0);
  }, 0);

describe("SparseGPT", () => {
  it.each([
    [5, 12, "2:4"],
    [5, 12, { share: 0.4 }],
    // two blocks of columns
    [3, 132, "2:4"],
  ] as const)("leaves what a least squares from scratch after every column does, of %i×%i (%j)", async (rows, n, sparsity) => {
    const { W, G, H } = await layer(rows, n);
    const expected = reference(rowsOf(await numbers(W), n), H, sparsity).flat();
    const found = await numbers(sparseGpt(W, inverseFactor(G), sparsity));
    expect(found.map((w) => w === 0)).toEqual(expected.map((w) => w === 0));
    expect(Math.max(...found.map((w, i) => Math.abs(w - expected[i]!)))).toBeLessThan(1e-9 * Math.max(...expected.map(Math.abs)));
  });

  it("loses less of the output than taking the smallest entries away", async () => {
    const { W, G, H } = await layer(16, 32);
    const whole = rowsOf(await numbers(W), 32);
    const cut = whole
      .flat()
      .map(Math.abs)
      .toSorted((a, b) => a - b)[256]!;
    const smallest = whole.map((row) => row.map((w) => (Math.abs(w) < cut ? 0 : w)));
    const left = rowsOf(await numbers(sparseGpt(W, inverseFactor(G), { share: 0.5 })), 32);
    expect(left.flat().filter((w) => w === 0).length).toBe(256);
    expect(lost(whole, left, H)).toBeLessThan(0.9 * lost(whole, smallest, H));
  });

  it("takes the share of the whole matrix over its blocks of columns, and half of the last columns where no four are left", async () => {
    const { W, G } = await layer(3, 150);
    const U = inverseFactor(G);
    expect((await numbers(sparseGpt(W, U, { share: 0.37 }))).filter((w) => w === 0).length).toBe(Math.round(0.37 * 450));
    for (const row of rowsOf(await numbers(sparseGpt(W, U, "2:4")), 150))
      for (let j = 0; j < 150; j += 4) expect(row.slice(j, j + 4).filter((w) => w !== 0).length).toBe(Math.min(2, Math.ceil((150 - j) / 2)));
  });

  it("leaves a matrix alone where nothing goes", async () => {
    const W = new Rng(1).normal([4, 9], 1);
    expect(await numbers(sparseGpt(W, inverseFactor((await layer(1, 9)).G), { share: 0 }))).toEqual(await numbers(W));
  });

  it("keeps inputs that never differ from zero from counting, and refuses a layer that has no others", async () => {
    const G = tensor(new Float64Array([4, 0, 0, 0, 0, 0, 0, 0, 2]), [3, 3]);
    expect(await numbers(sparseGpt(tensor([1, 9, 1], [1, 3]), inverseFactor(G), { share: 1 / 3 }))).toEqual([1, 0, 1]);
    expect(() => inverseFactor(zeros([3, 3], "f64"))).toThrow(/calibration inputs are all zero or not finite/);
  });
});
