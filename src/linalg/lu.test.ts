import { beforeAll, describe, expect, it } from "vitest";
import {
  distance,
  fromTensor,
  onEveryBackend,
  plain,
  type Plain,
  product,
  randomMatrix,
  rounding,
  top,
  toTensor,
  withSingularValues,
} from "../../test/support/matrices.ts";
import { start, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { ldu, lu } from "./index.ts";

beforeAll(async () => {
  await start();
});

const rowsOf = (a: Plain, order: ArrayLike<number>): Plain => plain(a.rows, a.cols, (i, j) => a.values[order[i]! * a.cols + j]!);
const columnsOf = (a: Plain, order: ArrayLike<number>): Plain => plain(a.rows, a.cols, (i, j) => a.values[i * a.cols + order[j]!]!);
const index = async (x: Tensor): Promise<number[]> => Array.from((await x.data()) as Int32Array);
const isOrder = (order: number[]): void => expect([...order].sort((a, b) => a - b)).toEqual(order.map((_, i) => i));

/** Unit lower and upper triangles, and |L| ≤ 1. */
function checkTriangles(L: Plain, U: Plain, unit: boolean): void {
  for (let i = 0; i < L.rows; i++) for (let j = i; j < L.cols; j++) expect(L.values[i * L.cols + j]).toBe(i === j ? 1 : 0);
  expect(top(L)).toBeLessThanOrEqual(1);
  for (let i = 0; i < U.rows; i++) for (let j = 0; j <= i && j < U.cols; j++) if (j < i || unit) expect(U.values[i * U.cols + j]).toBe(i === j ? 1 : 0);
}

const matrices: Record<string, Plain> = {
  random: randomMatrix(100, 100),
  "taller than wide": randomMatrix(120, 40),
  "wider than tall": randomMatrix(40, 130),
  "of one row": randomMatrix(1, 50),
  "of one column": randomMatrix(50, 1),
  zero: plain(40, 40, () => 0),
  "graded to a condition of 1e12": withSingularValues(
    70,
    70,
    Array.from({ length: 70 }, (_, i) => 10 ** ((-12 * i) / 69)),
  ),
  "rank-deficient": withSingularValues(50, 60, [3, 2, 1]),
  "of huge entries": randomMatrix(50, 50, 1e150),
  "of tiny entries": randomMatrix(50, 50, 1e-150),
  "that needs exchanges": plain(70, 70, (i, j) => (j === (i + 3) % 70 ? 1 : 0)),
};

async function checkLu(a: Plain, dtype: "f32" | "f64" = "f64"): Promise<void> {
  const x = toTensor(a, dtype);
  const exact = await fromTensor(x);
  const result = await lu(x);
  const [P, L, U] = [await index(result.P), await fromTensor(result.L), await fromTensor(result.U)];
  isOrder(P);
  checkTriangles(L, U, false);
  const k = Math.min(a.rows, a.cols);
  const size = Math.max(top(U), 2 ** -1000);
  const scaled = (y: Plain): Plain => plain(y.rows, y.cols, (i, j) => y.values[i * y.cols + j]! / size);
  expect(distance(product(L, scaled(U)), rowsOf(scaled(exact), P))).toBeLessThanOrEqual(10 * k * rounding[dtype]);
}

async function checkLdu(a: Plain, pivoting: "partial" | "rook"): Promise<void> {
  const result = await ldu(toTensor(a), { pivoting });
  const [P, Q, L, D, U] = [await index(result.P), await index(result.Q), await fromTensor(result.L), await fromTensor(result.D), await fromTensor(result.U)];
  isOrder(P);
  isOrder(Q);
  checkTriangles(L, U, true);
  if (pivoting === "rook") expect(top(U)).toBeLessThanOrEqual(1);
  else expect(Q).toEqual(Q.map((_, j) => j));
  const size = Math.max(top(a), 2 ** -1000);
  const right = plain(U.rows, U.cols, (i, j) => (D.values[i]! / size) * U.values[i * U.cols + j]!);
  const goal = plain(a.rows, a.cols, (i, j) => a.values[i * a.cols + j]! / size);
  expect(distance(product(L, right), columnsOf(rowsOf(goal, P), Q))).toBeLessThan(10 * Math.max(1, U.rows) * rounding.f64 * Math.max(1, top(right)));
}

describe("lu", () => {
  it.each(Object.entries(matrices))("keeps its bound for a matrix that is %s", async (_, a) => {
    await checkLu(a);
    if (top(a) < 1e30 && top(a) !== 0 && top(a) > 1e-30) await checkLu(a, "f32");
  });

  it("takes 1e30 and 1e-30 in f32, and matrices of no rows or columns", async () => {
    for (const scale of [1e30, 1e-30]) await checkLu(randomMatrix(40, 40, scale), "f32");
    for (const [m, n] of [
      [0, 0],
      [0, 40],
      [40, 0],
    ] as const) {
      const { P, L, U } = await lu(zeros([m, n]));
      expect([P.shape, L.shape, U.shape]).toEqual([[m], [m, 0], [0, n]]);
    }
  });

  it("finds the factors that a matrix was built from", async () => {
    const n = 90;
    const values = randomMatrix(n, n).values;
    // the first rows hold the largest entries of their columns
    const L = plain(n, n, (i, j) => (j > i ? 0 : i === j ? 1 : values[i * n + j]! / 2));
    const U = plain(n, n, (i, j) => (j < i ? 0 : i === j ? 20 + i : values[i * n + j]!));
    const a = product(L, U);
    const order = Array.from({ length: n }, (_, i) => (i * 7) % n);
    const found = await lu(toTensor(rowsOf(a, order)));
    expect((await index(found.P)).map((row) => order[row])).toEqual(Array.from({ length: n }, (_, i) => i));
    expect(distance(await fromTensor(found.L), L)).toBeLessThan(1e-13);
    expect(distance(await fromTensor(found.U), U)).toBeLessThan(1e-11);
  });

  it("says what is wrong with NaN and with other shapes", async () => {
    await expect(lu(tensor([1, NaN, 0, 1], [2, 2]))).rejects.toThrow(/holds NaN/);
    await expect(ldu(tensor([1, 2], [2]))).rejects.toThrow(/f32 or f64 matrix/);
  });
});

describe("ldu", () => {
  it.each(Object.entries(matrices))("keeps its bound with rook pivoting for a matrix that is %s", (_, a) => checkLdu(a, "rook"));

  it.each(["random", "taller than wide", "wider than tall", "zero", "that needs exchanges", "of huge entries"])(
    "keeps its bound with partial pivoting for a matrix that is %s",
    (name) => checkLdu(matrices[name]!, "partial"),
  );

  it("says that a row cannot be divided by a pivot of 0, where rook pivoting can", async () => {
    const a = plain(2, 2, (_, j) => j);
    await expect(ldu(toTensor(a))).rejects.toThrow(/pivot 0 is 0/);
    await checkLdu(a, "rook");
  });

  it("and lu keep their bounds on every backend", async () => {
    await onEveryBackend(async () => {
      await checkLu(randomMatrix(70, 50));
      await checkLu(randomMatrix(40, 70), "f32");
      await checkLdu(randomMatrix(45, 40), "rook");
      await checkLdu(randomMatrix(40, 45), "partial");
    });
  });
});
