import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { distance, fromTensor, onEveryBackend, plain, product, toTensor, transposed, withSingularValues, type Plain } from "../../test/support/matrices.ts";
import { div, matmul, ones, start, tensor, type Tensor } from "../tensor/index.ts";
import { conjugateGradients } from "./index.ts";

beforeAll(async () => {
  await start();
});

/** Q·diag(values)·Qᵀ */
function positive(values: readonly number[], seed: number): Plain {
  const root = withSingularValues(values.length, values.length, values.map(Math.sqrt), seed);
  return product(root, transposed(root));
}

/** A system with a known solution. */
function system(values: readonly number[], seed: number): { a: Plain; x: Plain; b: Plain } {
  const x: Plain = { rows: values.length, cols: 1, values: Float64Array.from(sample([values.length], seed)) };
  const a = positive(values, seed);
  return { a, x, b: product(a, x) };
}

const times =
  (a: Tensor) =>
  (v: Tensor): Tensor =>
    matmul(a, v);

describe("conjugateGradients", () => {
  it("finds the solution that the right side was made from, on every backend", async () => {
    await onEveryBackend(async () => {
      const { a, x, b } = system(
        Array.from({ length: 40 }, (_, i) => 1 + i),
        3,
      );
      const found = await conjugateGradients(times(toTensor(a)), toTensor(b), { tolerance: 1e-12 });
      expect(found.converged).toBe(true);
      expect(found.residual).toBeLessThanOrEqual(1e-12);
      expect(distance(await fromTensor(found.x), x)).toBeLessThan(1e-10);
      const narrow = await conjugateGradients(times(toTensor(a, "f32")), toTensor(b, "f32"));
      expect(narrow.x.dtype).toBe("f32");
      expect(narrow.converged).toBe(true);
      expect(distance(await fromTensor(narrow.x), x)).toBeLessThan(1e-3);
    });
  });

  it("needs as many iterations as A has different eigenvalues", async () => {
    const { a, b } = system(
      Array.from({ length: 30 }, (_, i) => [1, 5, 25][i % 3]!),
      5,
    );
    expect((await conjugateGradients(times(toTensor(a)), toTensor(b), { tolerance: 1e-10 })).iterations).toBe(3);
  });

  it("keeps the error in A's norm below 2·((√κ − 1)/(√κ + 1))ᵏ of the first one", async () => {
    const kappa = 100;
    const { a, x, b } = system(
      Array.from({ length: 60 }, (_, i) => 1 + ((kappa - 1) * i) / 59),
      7,
    );
    const energy = (y: Plain): number => {
      const e = plain(60, 1, (i) => y.values[i]! - x.values[i]!);
      return Math.sqrt(product(transposed(e), product(a, e)).values[0]!);
    };
    const first = energy(plain(60, 1, () => 0));
    for (const iterations of [5, 15, 30]) {
      const found = await conjugateGradients(times(toTensor(a)), toTensor(b), { iterations, tolerance: 0 });
      expect(found.iterations).toBe(iterations);
      expect(found.converged).toBe(false);
      expect(energy(await fromTensor(found.x)) / first).toBeLessThan(2 * ((Math.sqrt(kappa) - 1) / (Math.sqrt(kappa) + 1)) ** iterations);
    }
  });

  it("takes one iteration with the inverse as preconditioner, which may be asynchronous", async () => {
    const d = tensor(
      Array.from({ length: 50 }, (_, i) => 10 ** (i / 10)),
      [50],
      "f64",
    );
    const b = tensor(sample([50], 4), [50], "f64");
    const apply = (v: Tensor): Tensor => div(v, div(ones([50], "f64"), d));
    const found = await conjugateGradients(apply, b, { preconditioner: async (v) => div(v, d), tolerance: 1e-12 });
    expect(found.iterations).toBe(1);
    const bare = await conjugateGradients(apply, b, { tolerance: 1e-12, iterations: 10 });
    expect(bare.converged).toBe(false);
    expect(bare.residual).toBeGreaterThan(1e-12);
  });

  it("starts from x0 and tells of every iteration", async () => {
    const { a, x, b } = system([1, 2, 3, 4, 5, 6], 2);
    expect((await conjugateGradients(times(toTensor(a)), toTensor(b), { x0: toTensor(x) })).iterations).toBe(0);
    const seen: number[] = [];
    const found = await conjugateGradients(times(toTensor(a)), toTensor(b), {
      tolerance: 1e-10,
      onIteration: ({ iteration, residual }) => {
        expect(iteration).toBe(seen.length + 1);
        seen.push(residual);
      },
    });
    expect(seen.length).toBe(found.iterations);
    expect(seen.at(-1)).toBeLessThanOrEqual(1e-10);
  });

  it("reports a residual that really holds when f32 cannot reach the tolerance", async () => {
    const { a, b } = system(
      Array.from({ length: 30 }, (_, i) => 10 ** (i / 6)),
      9,
    );
    const found = await conjugateGradients(times(toTensor(a, "f32")), toTensor(b, "f32"), { tolerance: 1e-12, iterations: 500 });
    expect(found.converged).toBe(false);
    const x = await fromTensor(found.x);
    const image = product(a, x);
    const off = Math.sqrt(image.values.reduce((sum, value, i) => sum + (value - b.values[i]!) ** 2, 0)) / Math.hypot(...b.values);
    expect(off).toBeGreaterThan(1e-12);
    expect(Math.abs(off - found.residual)).toBeLessThan(1e-5);
  });

  it("gives 0 for b = 0, whatever the start", async () => {
    const found = await conjugateGradients(times(toTensor(positive([1, 2, 3], 1))), tensor([0, 0, 0], [3, 1], "f64"), { x0: ones([3, 1], "f64") });
    expect([...((await found.x.data()) as Float64Array)]).toEqual([0, 0, 0]);
    expect(found).toMatchObject({ residual: 0, iterations: 0, converged: true });
  });

  it("refuses matrices that are not positive definite, NaN and other shapes", async () => {
    const b = tensor([1, 1], [2, 1], "f64");
    await expect(conjugateGradients(times(tensor([1, 0, 0, -2], [2, 2], "f64")), b)).rejects.toThrow(/A must be symmetric positive definite/);
    await expect(conjugateGradients(times(tensor([NaN, 0, 0, 1], [2, 2], "f64")), b)).rejects.toThrow(/is NaN/);
    await expect(conjugateGradients((v) => v, b, { preconditioner: times(tensor([-1, 0, 0, -1], [2, 2], "f64")) })).rejects.toThrow(/preconditioner must be/);
    await expect(conjugateGradients((v) => v, tensor([1, Infinity]))).rejects.toThrow(/b holds NaN, infinity/);
    await expect(conjugateGradients(times(ones([3, 2], "f64")), b)).rejects.toThrow(/the result of apply is f64\[3,1\]/);
  });
});
