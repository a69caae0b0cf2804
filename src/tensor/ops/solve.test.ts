import { beforeAll, describe, expect, it } from "vitest";
import { checkGradients, leaf, sample } from "../../../test/support/gradients.ts";
import { onEveryBackend } from "../../../test/support/matrices.ts";
import * as t from "../index.ts";

beforeAll(() => t.start());

const symmetric = (x: t.Tensor): t.Tensor => t.matmul(x, t.transpose(x));
const identity = (n: number, scale = 1): t.Tensor =>
  t.tensor(
    Array.from({ length: n * n }, (_, at) => (at % (n + 1) === 0 ? scale : 0)),
    [n, n],
    "f64",
  );

/** Matrices near 3·I, of which every triangle is well-conditioned. */
const near = (x: t.Tensor): t.Tensor => t.add(x, identity(x.shape.at(-1)!, 3));

const triangular = (options: t.TriangularSolveOptions) => (a: t.Parameter, b: t.Parameter) => t.triangularSolve(near(a), b, options);

const cases: Record<string, [(...x: t.Parameter[]) => t.Tensor, () => t.Parameter[]]> = {
  "cholesky of one": [(x) => t.cholesky(near(symmetric(x!))), () => [leaf([4, 4])]],
  "cholesky of a batch": [(x) => t.cholesky(near(symmetric(x!))), () => [leaf([2, 2, 3, 3])]],
  solve: [(a, b) => t.solve(near(a!), b!), () => [leaf([2, 4, 4]), leaf([2, 4, 3], 2)]],
  "solve, one matrix for a batch": [(a, b) => t.solve(near(a!), b!), () => [leaf([3, 3]), leaf([2, 3, 2], 2)]],
  "solve, one right-hand side for a batch": [(a, b) => t.solve(near(a!), b!), () => [leaf([2, 1, 3, 3]), leaf([2, 3, 2], 2)]],
  "solve of transposed views": [(a, b) => t.solve(near(t.transpose(a!)), t.transpose(b!)), () => [leaf([3, 3]), leaf([2, 3], 2)]],
  inverse: [(a) => t.inverse(near(a!)), () => [leaf([2, 4, 4])]],
  ...Object.fromEntries(
    [false, true].flatMap((upper) =>
      [false, true].flatMap((transpose) =>
        [false, true].flatMap((unitriangular) => [
          [
            `triangularSolve ${JSON.stringify({ upper, transpose, unitriangular })}`,
            [triangular({ upper, transpose, unitriangular }), () => [leaf([2, 3, 3]), leaf([2, 3, 2], 2)]] as never,
          ],
        ]),
      ),
    ),
  ),
  "triangularSolve from the right": [triangular({ left: false }) as never, () => [leaf([3, 3]), leaf([2, 2, 3], 2)]],
  "triangularSolve of an upper one from the right": [triangular({ left: false, upper: true, transpose: true }) as never, () => [leaf([3, 3]), leaf([2, 3], 2)]],
};

const numbers = (x: t.Tensor): number[] => Array.from(t.hostNumbers(x) as Float64Array);

/** max |a − b| */
function distance(a: t.Tensor, b: t.Tensor): number {
  expect(a.shape).toEqual(b.shape);
  const other = numbers(b);
  return Math.max(0, ...numbers(a).map((value, i) => Math.abs(value - other[i]!)));
}

const random = (shape: number[], seed = 1, dtype: t.Real = "f64"): t.Tensor => t.tensor(sample(shape, seed), shape, dtype);

describe("small solves", () => {
  it.each(Object.entries(cases))("%s has the gradient of finite differences", async (_, [f, inputs]) => {
    await checkGradients(f, inputs());
  });

  it("solve what they say, in f32 and f64, for up to 128 rows, on every backend", async () => {
    await onEveryBackend(async (backend) => {
      for (const n of backend === "reference" ? [1, 7] : [1, 2, 17, 64, 128])
        for (const dtype of ["f32", "f64"] as const) {
          const tolerance = (dtype === "f32" ? 2 ** -23 : 2 ** -52) * 10 * n;
          const eye = t.cast(identity(n), dtype);
          const a = t.add(random([3, n, n], n, dtype), t.scale(eye, Math.sqrt(n)));
          const b = random([3, n, 5], 2, dtype);
          const x = t.solve(a, b);
          expect(distance(t.matmul(a, x), b)).toBeLessThan(tolerance * Math.max(1, t.sumSquares([x])));
          expect(distance(t.matmul(a, t.inverse(a)), t.expand(eye, [3, n, n]))).toBeLessThan(tolerance * Math.max(1, t.sumSquares([t.inverse(a)])));
          const p = t.add(t.scale(t.matmul(a, t.transpose(a)), 1 / n), eye);
          const L = t.cholesky(p);
          expect(distance(t.matmul(L, t.transpose(L)), p)).toBeLessThan(tolerance * 4);
          expect(distance(t.matmul(L, t.triangularSolve(L, b)), b)).toBeLessThan(tolerance * 10);
          expect(distance(t.matmul(t.transpose(L), t.triangularSolve(L, b, { transpose: true })), b)).toBeLessThan(tolerance * 10);
        }
    });
  });

  it("exchange rows where a pivot is 0", async () => {
    const a = t.tensor([0, 1, 0, 0, 0, 1, 1, 0, 0], [3, 3]);
    expect([...(await t.inverse(a).data())]).toEqual([0, 0, 1, 1, 0, 0, 0, 1, 0]);
    expect([...(await t.solve(a, t.tensor([1, 2, 3], [3, 1])).data())]).toEqual([3, 1, 2]);
  });

  it("work on nothing: no rows, no matrices, no right-hand sides", () => {
    expect(t.solve(t.zeros([0, 0]), t.zeros([0, 3])).shape).toEqual([0, 3]);
    expect(t.inverse(t.zeros([0, 4, 4])).shape).toEqual([0, 4, 4]);
    expect(t.cholesky(t.zeros([2, 0, 0])).shape).toEqual([2, 0, 0]);
    expect(t.triangularSolve(t.ones([3, 3]), t.zeros([3, 0])).shape).toEqual([3, 0]);
  });

  it("name the matrix of the batch that is not positive definite, or singular", () => {
    const values = t.tensor([1, 0, 0, 1, 1, 2, 2, 1, 1, 1, 1, 1], [3, 2, 2]);
    expect(() => t.cholesky(values)).toThrow(/matrix 1 of the batch is not positive definite/);
    expect(() => t.inverse(values)).toThrow(/inverse: matrix 2 of the batch is singular/);
    expect(() => t.solve(t.zeros([2, 2]), t.zeros([2, 1]))).toThrow(/solve: the matrix is singular, it has no pivot in column 0/);
    expect(() => t.triangularSolve(t.tensor([1, 0, 1, 1, 1, 0, 1, 0], [2, 2, 2]), t.zeros([2, 1]))).toThrow(/matrix 1 of the batch is singular, entry 1/);
    expect(() => t.cholesky(t.tensor([NaN], [1, 1]))).toThrow(/not positive definite/);
    expect(() => t.inverse(t.tensor([Infinity], [1, 1]))).toThrow(/singular/);
  });

  it("say what does not fit", () => {
    expect(() => t.inverse(t.zeros([129, 129]))).toThrow(/up to 128 rows, these have 129/);
    expect(() => t.solve(t.zeros([2, 3]), t.zeros([2, 3]))).toThrow(/square/);
    expect(() => t.solve(t.zeros([2, 2]), t.zeros([3, 1]))).toThrow(/do not fit/);
    expect(() => t.triangularSolve(t.zeros([2, 2]), t.zeros([2, 1], "f64"))).toThrow(/do not fit/);
  });
});
