import { beforeAll, describe, expect, it } from "vitest";
import {
  distance,
  fromTensor,
  onEveryBackend,
  orthogonal,
  plain,
  type Plain,
  product,
  randomMatrix,
  top,
  toTensor,
  transposed,
  withSingularValues,
} from "../../test/support/matrices.ts";
import { start, tensor, zeros } from "../tensor/index.ts";
import { leastSquares } from "./index.ts";

beforeAll(async () => {
  await start();
});

/** A = U·diag(s)·Vᵀ and its pseudo-inverse times b, from the parts it is built from. */
function problem(m: number, n: number, s: readonly number[], b: Plain): { a: Plain; solution: Plain } {
  const [u, v] = [orthogonal(m, s.length, 1), orthogonal(n, s.length, 8)];
  const along = product(transposed(u), b);
  return {
    a: withSingularValues(m, n, s),
    solution: product(
      v,
      plain(s.length, b.cols, (i, j) => along.values[i * b.cols + j]! / s[i]!),
    ),
  };
}

const list = (n: number, value: (i: number) => number): number[] => Array.from({ length: n }, (_, i) => value(i));

const cases: Record<string, [number, number, number[]]> = {
  tall: [90, 50, list(50, (i) => 1 + i / 50)],
  square: [40, 40, list(40, (i) => 1 + i / 40)],
  wide: [40, 75, list(40, (i) => 1 + i / 40)],
  "tall and rank-deficient": [80, 45, list(30, (i) => 1 + i / 30)],
  "wide and rank-deficient": [45, 80, list(30, (i) => 1 + i / 30)],
  "square of rank 1": [35, 35, [2]],
  "one row": [1, 6, [3]],
  "one column": [6, 1, [3]],
};

describe("leastSquares", () => {
  it.each(Object.entries(cases))("gives the pseudo-inverse times B: %s", async (_, [m, n, s]) => {
    const b = randomMatrix(m, 3);
    const { a, solution } = problem(m, n, s, b);
    for (const [dtype, tolerance] of [
      ["f64", 1e-12],
      ["f32", 1e-4],
    ] as const) {
      const found = await leastSquares(toTensor(a, dtype), toTensor(b, dtype));
      expect(found.rank).toBe(s.length);
      expect(distance(await fromTensor(found.solution), solution)).toBeLessThan(tolerance * Math.max(1, top(solution)));
    }
  });

  it("is not hurt by a condition of 1e10, nor by huge or tiny entries", async () => {
    const b = randomMatrix(60, 2);
    const { a, solution } = problem(
      60,
      30,
      list(30, (i) => 10 ** ((-10 * i) / 29)),
      b,
    );
    const found = await fromTensor((await leastSquares(toTensor(a), toTensor(b))).solution);
    expect(distance(found, solution)).toBeLessThan(1e-15 * 1e10 * 100 * top(solution));
    const plainProblem = problem(
      60,
      30,
      list(30, (i) => 1 + i),
      b,
    );
    for (const scale of [1e150, 1e-150]) {
      const scaled = plain(60, 30, (i, j) => scale * plainProblem.a.values[i * 30 + j]!);
      const x = await fromTensor((await leastSquares(toTensor(scaled), toTensor(b))).solution);
      expect(
        distance(
          plain(30, 2, (i, j) => x.values[i * 2 + j]! * scale),
          plainProblem.solution,
        ),
      ).toBeLessThan(1e-12);
    }
  });

  it("counts the singular values above rcond, and gives zero for a matrix of zeros", async () => {
    const { a } = problem(
      40,
      20,
      list(20, (i) => (i < 12 ? 1 : 1e-6)),
      randomMatrix(40, 1),
    );
    expect((await leastSquares(toTensor(a), toTensor(randomMatrix(40, 1)))).rank).toBe(20);
    expect((await leastSquares(toTensor(a), toTensor(randomMatrix(40, 1)), { rcond: 1e-4 })).rank).toBe(12);
    const nothing = await leastSquares(zeros([4, 3]), tensor([1, 2, 3, 4], [4, 1]));
    expect([nothing.rank, ...(await nothing.solution.data())]).toEqual([0, 0, 0, 0]);
    for (const [m, n] of [
      [0, 3],
      [3, 0],
    ] as const) {
      const { solution, rank } = await leastSquares(zeros([m, n]), zeros([m, 2]));
      expect([solution.shape, [...(await solution.data())], rank]).toEqual([[n, 2], new Array(2 * n).fill(0), 0]);
    }
  });

  it("says what is wrong with NaN and with right-hand sides of another height", async () => {
    await expect(leastSquares(tensor([1, NaN], [2, 1]), zeros([2, 1]))).rejects.toThrow(/holds NaN/);
    await expect(leastSquares(zeros([2, 1]), tensor([Infinity, 1], [2, 1]))).rejects.toThrow(/holds Infinity/);
    await expect(leastSquares(zeros([2, 1]), zeros([3, 1]))).rejects.toThrow(/must have 2 rows/);
  });

  it("gives the same on every backend", async () => {
    await onEveryBackend(async (backend) => {
      // the large one makes WebAssembly's memory grow on the way, which ends every view of it
      const large = [300, 300, list(150, (i) => 1 + i / 150)] as const;
      for (const [m, n, s] of [cases["tall"]!, cases["wide"]!, cases["tall and rank-deficient"]!, ...(backend === "reference" ? [] : [large])]) {
        const b = randomMatrix(m, 2);
        const { a, solution } = problem(m, n, s, b);
        expect(distance(await fromTensor((await leastSquares(toTensor(a), toTensor(b))).solution), solution)).toBeLessThan(1e-12);
      }
    });
  });
});
