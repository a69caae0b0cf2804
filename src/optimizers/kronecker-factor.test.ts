import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { eigh } from "../linalg/index.ts";
import { start, tensor, transpose, type Tensor } from "../tensor/index.ts";
import { copyOf } from "../tensor/tensor.ts";
import { absorb, identityFactor, multiply, type FactorRule } from "./kronecker-factor.ts";

beforeAll(() => start());

const official = (keep = 0.95): FactorRule => ({ keep, scale: 1, weight: (vPv) => -1 / (1 + vPv) });
const column = (n: number, seed: number): Tensor =>
  tensor(
    sample([n, 1], seed, 2).map((x) => x + 0.5),
    [n, 1],
    "f64",
  );
const identity = (n: number): Tensor =>
  tensor(
    Array.from({ length: n * n }, (_, k) => (k % (n + 1) === 0 ? 1 : 0)),
    [n, n],
    "f64",
  );
const numbers = async (x: Tensor): Promise<number[]> => [...(await x.data())].map(Number);
const matrix = async (x: Tensor): Promise<number[][]> => {
  const [flat, n] = [await numbers(x), x.shape[1]!];
  return Array.from({ length: x.shape[0]! }, (_, i) => flat.slice(i * n, (i + 1) * n));
};
const times = (a: number[][], b: number[][]): number[][] => a.map((row) => b[0]!.map((_, j) => row.reduce((sum, x, k) => sum + x * b[k]![j]!, 0)));

/** A factor after so many updates. */
async function grown(n: number, rule: FactorRule, updates: number, ring: boolean): Promise<Tensor> {
  const F = identityFactor(n, "f64", rule, ring);
  for (let k = 0; k < updates; k++) await absorb(F, column(n, k + 1), rule, k);
  return F;
}

describe("a factor of the official rule", () => {
  it("is the inverse of the blend before plus v·vᵀ, symmetric, with eigenvalues in (0, 1]", async () => {
    const n = 6;
    const F = await grown(n, official(), 12, false);
    const P = (await matrix(F)).map((row, i) => row.map((x, j) => 0.95 * x + (i === j ? 0.05 : 0)));
    const { eigenvalues: values, eigenvectors: vectors } = await eigh(tensor(P.flat(), [n, n], "f64"));
    const [w, Q] = [await numbers(values), await matrix(vectors)];
    const v = await numbers(column(n, 13));
    const inner = Q.map((qi, i) => Q.map((qj, j) => qi.reduce((sum, x, k) => sum + (x * qj[k]!) / w[k]!, 0) + v[i]! * v[j]!));
    await absorb(F, column(n, 13), official(), 12);
    const after = await matrix(F);
    times(after, inner).forEach((row, i) => row.forEach((x, j) => expect(x).toBeCloseTo(i === j ? 1 : 0, 4)));
    expect(after).toEqual(after[0]!.map((_, j) => after.map((row) => row[j]!)));
    for (const x of await numbers((await eigh(F)).eigenvalues)) {
      expect(x).toBeGreaterThan(0);
      expect(x).toBeLessThanOrEqual(1);
    }
  });

  it("that is wide is a ring of rows, the same factor, also when the ring comes round", async () => {
    // rows for keep 0.2: ⌈log 2⁻¹¹ / log 0.2⌉ = 5
    const [n, rule] = [40, official(0.2)];
    for (const updates of [1, 4, 5, 6, 30]) {
      const [whole, ring] = [await grown(n, rule, updates, false), await grown(n, rule, updates, true)];
      expect([whole.shape, ring.shape]).toEqual([
        [n, n],
        [5, n],
      ]);
      const dense = await numbers(multiply(whole, [identity(n)], updates)[0]!);
      (await numbers(multiply(ring, [identity(n)], updates)[0]!)).forEach((x, i) =>
        expect(Math.abs(x - dense[i]!)).toBeLessThan(updates > 5 ? 2 ** -11 : 1e-12),
      );
    }
    expect(identityFactor(299, "f32", official(), true).shape).toEqual([149, 299]);
    expect(identityFactor(298, "f32", official(), true).shape).toEqual([298, 298]);
  });

  it("multiplies blocks of rows, in either layout, as it multiplies the whole", async () => {
    for (const ring of [false, true]) {
      const [n, rule] = [30, official(0.2)];
      const F = await grown(n, rule, 4, ring);
      const x = sample([n, 5], 9);
      const whole = await numbers(multiply(F, [tensor(x, [n, 5], "f64")], 4)[0]!);
      const upper = (): Tensor => tensor(x.slice(0, 29 * 5), [29, 5], "f64");
      const lower = (): Tensor => tensor(x.slice(29 * 5), [1, 5], "f64");
      for (const block of [upper(), transpose(copyOf(transpose(upper())))]) {
        const parts = await Promise.all(multiply(F, [block, lower()], 4).map(numbers));
        parts.flat().forEach((y, i) => expect(y).toBeCloseTo(whole[i]!, 12));
      }
    }
  });
});

describe("a factor of the paper's rule", () => {
  const paper = (ζ: number, γ = 0.95): FactorRule => ({ keep: ζ, scale: γ, weight: (x) => (1 - γ) / (γ ** 2 * (1 + γ * (1 - γ) * x)) });

  it("follows its recursion", async () => {
    const [γ, ζ, n] = [0.95, 0.4, 4];
    let F = await matrix(identity(n));
    for (let k = 0; k < 5; k++) {
      const v = (await numbers(column(n, k + 1))).map((x) => [x]);
      const stable = F.map((row, i) => row.map((x, j) => ζ * x + (i === j ? 1 - ζ : 0)));
      const p = times(stable, v);
      const s = v.reduce((sum, [x], i) => sum + x! * p[i]![0]!, 0);
      F = stable.map((row, i) => row.map((x, j) => γ * x + ((1 - γ) / (γ * γ * (1 + γ * (1 - γ) * s))) * p[i]![0]! * p[j]![0]!));
    }
    (await numbers(await grown(n, paper(ζ), 5, false))).forEach((x, i) => expect(x).toBeCloseTo(F.flat()[i]!, 12));
  });

  it("stays bounded below ζ = 1 / (γ + γ⁻³) and explodes above it, for inputs that point one way", async () => {
    const after = async (ζ: number): Promise<number> => {
      const F = identityFactor(3, "f64", paper(ζ), false);
      for (let k = 0; k < 2000; k++) await absorb(F, tensor([100, 0, 0], [3, 1], "f64"), paper(ζ), k);
      return (await numbers(F))[0]!;
    };
    expect(await after(0.46)).toBeLessThan(100);
    expect(await after(0.48)).toBeGreaterThan(1e10);
  });
});
