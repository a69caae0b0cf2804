import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { defect, distance, fromTensor, onEveryBackend, plain, product, toTensor, transposed, withSingularValues } from "../../test/support/matrices.ts";
import { matmul, Rng, start, tensor, transpose, type Tensor } from "../tensor/index.ts";
import { powerIteration, randomizedSvd, svd, type ProductOperator } from "./index.ts";

beforeAll(async () => {
  await start();
});

const decaying = (n: number): number[] => Array.from({ length: n }, (_, i) => 0.8 ** i);
const operatorOf = (a: Tensor): ProductOperator => ({
  rows: a.shape[0]!,
  cols: a.shape[1]!,
  multiply: (x) => matmul(a, x),
  multiplyTransposed: (x) => matmul(transpose(a), x),
});

describe("randomizedSvd", () => {
  it.each(["subspace", "krylov"] as const)("finds the leading triples by %s, for matrices and operators alike", async (method) => {
    await onEveryBackend(async () => {
      const s = decaying(50);
      const a = toTensor(withSingularValues(70, 50, s), "f32");
      for (const source of [a, operatorOf(a)]) {
        const { U, S, Vh, residual } = await randomizedSvd(source, 6, { method });
        const [u, found, vh] = [await fromTensor(U), await fromTensor(S), await fromTensor(Vh)];
        expect([u.cols, vh.rows]).toEqual([6, 6]);
        expect(defect(u)).toBeLessThan(1e-6);
        expect(defect(transposed(vh))).toBeLessThan(1e-6);
        found.values.forEach((x, i) => expect(Math.abs(x - s[i]!), `σ${i}`).toBeLessThan(2e-6));
        expect(residual).toBeUndefined();
      }
    });
  });

  it("is as near to an f64 matrix as the best of its rank, whose squared error is Σ of the other σ²", async () => {
    const s = decaying(40);
    const a = withSingularValues(60, 40, s);
    const { U, S, Vh } = await randomizedSvd(toTensor(a), 5, { oversampling: 10, iterations: 3 });
    const [u, found, vh] = [await fromTensor(U), await fromTensor(S), await fromTensor(Vh)];
    const rebuilt = product(
      plain(60, 5, (i, j) => u.values[i * 5 + j]! * found.values[j]!),
      vh,
    );
    const error = Math.sqrt(rebuilt.values.reduce((sum, x, i) => sum + (x - a.values[i]!) ** 2, 0));
    const best = Math.hypot(...s.slice(5));
    expect(error / best).toBeGreaterThan(1 - 1e-9);
    expect(error / best).toBeLessThan(1 + 1e-6);
  });

  it("finds a rank from Krylov blocks narrower than it, and refuses blocks that cannot hold it", async () => {
    const s = Array.from({ length: 40 }, (_, i) => (i < 12 ? 0.9 ** i : 1e-4));
    const a = toTensor(withSingularValues(60, 40, s));
    const { S } = await randomizedSvd(a, 12, { method: "krylov", block: 6, iterations: 2 });
    (await fromTensor(S)).values.forEach((x, i) => expect(Math.abs(x - s[i]!), `σ${i}`).toBeLessThan(1e-6));
    await expect(randomizedSvd(a, 12, { block: 6 })).rejects.toThrow(/blocks of 6 make 6 directions, fewer than the rank 12/);
    await expect(randomizedSvd(a, 39, { method: "krylov", block: 13, iterations: 1 })).rejects.toThrow(/blocks of 13 make 26/);
    await expect(randomizedSvd(a, 2, { block: 0 })).rejects.toThrow(/blocks of 0/);
  });

  it("iterates on until the residual of every triple meets the tolerance, and says so", async () => {
    const s = Array.from({ length: 60 }, (_, i) => 1 / (1 + 0.05 * i));
    const a = withSingularValues(80, 60, s);
    const x = toTensor(a);
    const few = await randomizedSvd(x, 4, { oversampling: 2, iterations: 0 });
    const enough = await randomizedSvd(x, 4, { oversampling: 8, iterations: 0, tolerance: 1e-3 });
    expect(enough.converged).toBe(true);
    expect(enough.residual).toBeLessThanOrEqual(1e-3);
    const triples = async ({ U, S, Vh }: { U: Tensor; S: Tensor; Vh: Tensor }): Promise<number> => {
      const [u, sigma, v] = [await fromTensor(U), await fromTensor(S), transposed(await fromTensor(Vh))];
      const av = product(a, v);
      const norms = sigma.values.map((value, j) => Math.hypot(...Array.from({ length: 80 }, (_, i) => av.values[i * 4 + j]! - value * u.values[i * 4 + j]!)));
      return Math.max(...norms) / sigma.values[0]!;
    };
    expect(await triples(enough)).toBeCloseTo(enough.residual!, 10);
    expect(await triples(few)).toBeGreaterThan(1e-2);
  });

  it("says that a tolerance beyond rounding was not reached", async () => {
    const flat = toTensor(
      withSingularValues(
        40,
        40,
        new Array<number>(40).fill(1).map((x, i) => x - 0.001 * i),
      ),
      "f32",
    );
    const { converged, residual } = await randomizedSvd(flat, 3, { oversampling: 1, tolerance: 1e-9 });
    expect(converged).toBe(false);
    expect(residual).toBeGreaterThan(1e-9);
  });

  it("completes orthonormal vectors where the matrix has less rank than asked for", async () => {
    for (const s of [[2, 1], []]) {
      const { U, S, Vh } = await randomizedSvd(toTensor(withSingularValues(30, 20, s), "f32"), 5);
      expect(defect(await fromTensor(U))).toBeLessThan(1e-6);
      expect(defect(transposed(await fromTensor(Vh)))).toBeLessThan(1e-6);
      (await fromTensor(S)).values.forEach((x, i) => expect(Math.abs(x - (s[i] ?? 0))).toBeLessThan(1e-6));
    }
  });

  it("gives the same bits for the same seed, and refuses ranks that are not there", async () => {
    const a = new Rng(3).normal([30, 20], 1);
    const twice = [await randomizedSvd(a, 3, { rng: new Rng(9) }), await randomizedSvd(a, 3, { rng: new Rng(9) })];
    expect(await twice[0]!.U.data()).toEqual(await twice[1]!.U.data());
    for (const rank of [0, 21, 1.5]) await expect(randomizedSvd(a, rank)).rejects.toThrow(/between 1 and 20/);
    await expect(randomizedSvd(tensor([1, NaN, 0, 1], [2, 2]), 1)).rejects.toThrow(/must be finite/);
    await expect(randomizedSvd({ rows: 3, cols: 2, multiply: (x) => x, multiplyTransposed: (x) => x }, 1)).rejects.toThrow(/must be 3×/);
  });
});

describe("powerIteration", () => {
  it("finds the largest singular triple of a matrix and of an operator", async () => {
    const a = toTensor(withSingularValues(20, 12, [5, 2, 1]));
    const top = await svd(a);
    const { sigma, u, v, converged } = await powerIteration(a, { tolerance: 1e-12 });
    expect(converged).toBe(true);
    expect(sigma).toBeCloseTo(5, 10);
    const [left, right] = [await fromTensor(top.U), await fromTensor(top.Vh)];
    const turned = Math.sign(((await u.data())[0] as number) * left.values[0]!);
    expect(
      distance(
        await fromTensor(u),
        plain(20, 1, (i) => turned * left.values[i * 12]!),
      ),
    ).toBeLessThan(1e-6);
    expect(
      distance(
        await fromTensor(v),
        plain(12, 1, (i) => turned * right.values[i]!),
      ),
    ).toBeLessThan(1e-6);
    const single = toTensor(withSingularValues(20, 12, [5, 2, 1]), "f32");
    expect((await powerIteration(operatorOf(single))).sigma).toBeCloseTo(5, 4);
  });

  it("stops after its iterations and says that it did not converge; zero has σ = 0", async () => {
    const close = toTensor(
      withSingularValues(
        30,
        30,
        sample([30], 1).map((x) => 1 + 0.001 * x),
      ),
    );
    const { iterations, converged } = await powerIteration(close, { iterations: 3, tolerance: 1e-14 });
    expect([iterations, converged]).toEqual([3, false]);
    expect((await powerIteration(tensor([0, 0, 0, 0], [2, 2]))).sigma).toBe(0);
  });
});
