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
  top,
  toTensor,
  transposed,
  withSingularValues,
} from "../../test/support/matrices.ts";
import { start, tensor, zeros } from "../tensor/index.ts";
import { choleskyFactor, choleskyQr2, solvePositive, solveTriangular } from "./index.ts";

beforeAll(async () => {
  await start();
});

const lower = (a: Plain): Plain => plain(a.rows, a.cols, (i, j) => (j <= i ? a.values[i * a.cols + j]! : 0));

/** Q·diag(values)·Qᵀ */
function positive(values: readonly number[]): Plain {
  const q = orthogonal(values.length, values.length, 5);
  const n = values.length;
  const a = product(
    plain(n, n, (i, j) => q.values[i * n + j]! * values[j]!),
    transposed(q),
  );
  return plain(n, n, (i, j) => a.values[Math.max(i, j) * n + Math.min(i, j)]!);
}

const list = (n: number, value: (i: number) => number): number[] => Array.from({ length: n }, (_, i) => value(i));
const spectra: Record<string, number[]> = {
  "a spread of 10": list(100, (i) => 1 + i / 10),
  clusters: list(70, (i) => 1 + (i % 3) + 1e-13 * i),
  "a condition of 1e12": list(130, (i) => 10 ** ((-12 * i) / 129)),
  "one row": [3],
  "64 rows, one block": list(64, (i) => 2 + i),
};

describe("choleskyFactor", () => {
  it.each(Object.entries(spectra))("keeps its bound: %s", async (_, values) => {
    for (const dtype of ["f64", "f32"] as const) {
      if (dtype === "f32" && Math.min(...values) < 1e-6) continue;
      const a = toTensor(positive(values), dtype);
      const exact = await fromTensor(a);
      const L = await fromTensor(await choleskyFactor(a));
      expect(distance(product(L, transposed(L)), exact)).toBeLessThan(10 * values.length * rounding[dtype] * Math.max(...values));
      expect(L).toEqual(lower(L));
    }
  });

  it("finds the factor it was built from, at 1e150 and 1e-150 too, and reads the lower triangle alone", async () => {
    const n = 100;
    const values = randomMatrix(n, n).values;
    for (const scale of [1, 1e75, 1e-75]) {
      const L = plain(n, n, (i, j) => (j > i ? 0 : scale * (i === j ? 8 + i / n : values[i * n + j]!)));
      const a = product(L, transposed(L));
      const found = await fromTensor(await choleskyFactor(toTensor(plain(n, n, (i, j) => (j > i ? 7 : a.values[i * n + j]!)))));
      expect(distance(found, L) / scale).toBeLessThan(1e-12);
    }
  });

  it("says which leading rows are not positive definite, and what else is wrong", async () => {
    const broken = plain(80, 80, (i, j) => (i === j ? (i === 70 ? -1 : 1) : 0));
    await expect(choleskyFactor(toTensor(broken))).rejects.toThrow(/leading 71 rows/);
    await expect(choleskyFactor(zeros([3, 3]))).rejects.toThrow(/leading 1 rows/);
    await expect(choleskyFactor(tensor([1, 0, NaN, 1], [2, 2]))).rejects.toThrow(/holds NaN/);
    await expect(choleskyFactor(zeros([2, 3]))).rejects.toThrow(/square/);
    expect((await choleskyFactor(zeros([0, 0]))).shape).toEqual([0, 0]);
  });
});

describe("solvePositive and solveTriangular", () => {
  it("solves with many right-hand sides to its bound, in both dtypes", async () => {
    for (const dtype of ["f64", "f32"] as const) {
      const [a, b] = [toTensor(positive(list(90, (i) => 1 + i / 10)), dtype), toTensor(randomMatrix(90, 20), dtype)];
      const x = await fromTensor(await solvePositive(a, b));
      expect(distance(product(await fromTensor(a), x), await fromTensor(b))).toBeLessThan(20 * 90 * rounding[dtype] * 10 * top(x));
    }
  });

  it.each([1, 5, 64, 65, 150, 200])("solves a triangle of %i rows from either side, upper or lower, transposed or not", async (n) => {
    const full = randomMatrix(n, n).values;
    const a = plain(n, n, (i, j) => (i === j ? 2 + full[i * n + j]! : full[i * n + j]! / Math.sqrt(n)));
    for (const upper of [false, true])
      for (const transpose of [false, true])
        for (const left of [false, true])
          for (const unitriangular of [false, true]) {
            const triangle = plain(n, n, (i, j) => (i === j ? (unitriangular ? 1 : a.values[i * n + j]!) : upper === j > i ? a.values[i * n + j]! : 0));
            const used = transpose ? transposed(triangle) : triangle;
            const b = left ? randomMatrix(n, 7) : randomMatrix(7, n);
            const x = await fromTensor(await solveTriangular(toTensor(a), toTensor(b), { upper, transpose, left, unitriangular }));
            expect(distance(left ? product(used, x) : product(x, used), b)).toBeLessThan(10 * n * rounding.f64 * 3 * Math.max(1, top(x)));
          }
  });

  it("does not read beyond the triangle", async () => {
    const a = tensor([2, NaN, 1, 4], [2, 2], "f64");
    expect([...(await (await solveTriangular(a, tensor([2, 9], [2, 1], "f64"))).data())]).toEqual([1, 2]);
    const unit = tensor([NaN, Infinity, 1, NaN], [2, 2], "f64");
    expect([...(await (await solveTriangular(unit, tensor([2, 9], [2, 1], "f64"), { unitriangular: true })).data())]).toEqual([2, 7]);
  });

  it("names a zero pivot, and a right-hand side that does not fit", async () => {
    await expect(solveTriangular(tensor([1, 0, 1, 0], [2, 2]), zeros([2, 1]))).rejects.toThrow(/pivot 1 is 0/);
    await expect(solveTriangular(tensor([1, 0, 1, 1], [2, 2]), zeros([3, 1]))).rejects.toThrow(/must have 2 rows/);
    await expect(solvePositive(tensor([1, 0, 1, 2], [2, 2]), tensor([1, Infinity], [2, 1]))).rejects.toThrow(/holds Infinity/);
  });
});

async function checkQr(a: Plain, dtype: "f32" | "f64"): Promise<void> {
  const x = toTensor(a, dtype);
  const exact = await fromTensor(x);
  const { Q, R } = await choleskyQr2(x);
  const [q, r] = [await fromTensor(Q), await fromTensor(R)];
  const size = top(exact);
  expect(defect(q)).toBeLessThan(dtype === "f32" ? 2e-7 : 10 * a.cols * rounding.f64);
  const scaled = plain(r.rows, r.cols, (i, j) => r.values[i * r.cols + j]! / size);
  const goal = plain(a.rows, a.cols, (i, j) => exact.values[i * a.cols + j]! / size);
  expect(distance(product(q, scaled), goal)).toBeLessThan(10 * a.rows * rounding[dtype]);
  expect(r).toEqual(transposed(lower(transposed(r))));
  for (let i = 0; i < r.rows; i++) expect(r.values[i * (r.cols + 1)]).toBeGreaterThan(0);
}

describe("choleskyQr2", () => {
  it.each([
    ["random", randomMatrix(200, 30)],
    ["square", randomMatrix(40, 40)],
    [
      "of condition 1e6",
      withSingularValues(
        150,
        20,
        list(20, (i) => 10 ** ((-6 * i) / 19)),
      ),
    ],
    ["one column", randomMatrix(50, 1)],
    ["one element", randomMatrix(1, 1)],
    ["of columns between 1e-20 and 1e20", plain(60, 5, (i, j) => randomMatrix(60, 5).values[i * 5 + j]! * 10 ** (10 * (j - 2)))],
  ])("gives orthonormal columns: %s", async (_, a) => {
    await checkQr(a, "f64");
    await checkQr(a, "f32");
  });

  it("takes a condition of 1e12 and of 1e14 in f64, and huge and tiny entries", async () => {
    for (const digits of [12, 14])
      await checkQr(
        withSingularValues(
          150,
          20,
          list(20, (i) => 10 ** ((-digits * i) / 19)),
        ),
        "f64",
      );
    for (const scale of [1e150, 1e-150]) await checkQr(randomMatrix(60, 10, scale), "f64");
    for (const scale of [1e30, 1e-30]) await checkQr(randomMatrix(60, 10, scale), "f32");
  });

  it("says that columns depend on each other, that a matrix is wide, or not finite", async () => {
    await expect(choleskyQr2(toTensor(plain(50, 10, (i, j) => (j === 4 ? 0 : randomMatrix(50, 10).values[i * 10 + j]!))))).rejects.toThrow(
      /linearly dependent/,
    );
    await expect(choleskyQr2(zeros([4, 2]))).rejects.toThrow(/linearly dependent/);
    await expect(choleskyQr2(zeros([2, 4]))).rejects.toThrow(/at least as tall/);
    await expect(choleskyQr2(tensor([1, NaN], [2, 1]))).rejects.toThrow(/holds NaN/);
    expect((await choleskyQr2(zeros([5, 0]))).Q.shape).toEqual([5, 0]);
  });

  it("and Cholesky keep their bounds on every backend", async () => {
    await onEveryBackend(async () => {
      await checkQr(randomMatrix(80, 20), "f32");
      await checkQr(
        withSingularValues(
          70,
          10,
          list(10, (i) => 10 ** ((-12 * i) / 9)),
        ),
        "f64",
      );
      const [a, b] = [positive(list(75, (i) => 1 + i)), randomMatrix(75, 3)];
      const x = await fromTensor(await solvePositive(toTensor(a), toTensor(b)));
      expect(distance(product(a, x), b)).toBeLessThan(20 * 75 * rounding.f64 * 75 * top(x));
    });
  });
});
