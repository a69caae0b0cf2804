import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import {
  defect,
  distance,
  fromTensor,
  onEveryBackend,
  plain,
  product,
  toTensor,
  transposed,
  withSingularValues,
  type Plain,
} from "../../test/support/matrices.ts";
import { start, tensor } from "../tensor/index.ts";
import { singularValues, svd } from "./index.ts";

beforeAll(async () => {
  await start();
});

async function check(a: Plain, values: readonly number[] | undefined, dtype: "f32" | "f64"): Promise<void> {
  const x = toTensor(a, dtype);
  const exact = await fromTensor(x);
  const { U, S, Vh } = await svd(x);
  const [u, s, vh, alone] = [await fromTensor(U), await fromTensor(S), await fromTensor(Vh), await fromTensor(await singularValues(x))];
  const r = Math.min(a.rows, a.cols);
  expect([u.cols, s.rows, vh.rows]).toEqual([r, r, r]);
  const size = s.values[0]! || 1;
  const rounding = dtype === "f64" ? 1e-15 * (20 + Math.max(a.rows, a.cols)) : 4e-7;
  expect(defect(u)).toBeLessThan(dtype === "f64" ? rounding : 1e-6);
  expect(defect(transposed(vh))).toBeLessThan(dtype === "f64" ? rounding : 1e-6);
  const rebuilt = product(
    plain(a.rows, r, (i, j) => u.values[i * r + j]! * (s.values[j]! / size)),
    vh,
  );
  expect(distance(rebuilt, { ...exact, values: exact.values.map((value) => value / size) })).toBeLessThan(rounding);
  expect([...s.values]).toEqual([...s.values].sort((p, q) => q - p));
  expect(Math.min(...s.values)).toBeGreaterThanOrEqual(0);
  expect(distance(alone, s) / size).toBeLessThan(rounding);
  if (values) {
    const expected = [...values].map(Math.abs).sort((p, q) => q - p);
    for (let i = 0; i < r; i++) expect(Math.abs(s.values[i]! - (expected[i] ?? 0)) / size, `σ${i}`).toBeLessThan(rounding);
  }
  for (let j = 0; j < r; j++) {
    let top = 0;
    for (let i = 0; i < a.rows; i++) if (Math.abs(u.values[i * r + j]!) > Math.abs(top)) top = u.values[i * r + j]!;
    expect(top).toBeGreaterThan(0);
  }
}

const spectra: Record<string, (n: number) => number[]> = {
  random: (n) => sample([n], 3).map(Math.abs),
  "rank-deficient": (n) => sample([Math.ceil(n / 3)], 4),
  clustered: (n) => Array.from({ length: n }, (_, i) => 1 + (i % 3) + 1e-13 * i),
  "graded to a condition of 1e12": (n) => Array.from({ length: n }, (_, i) => 10 ** ((-12 * i) / Math.max(1, n - 1))),
  "all equal": (n) => new Array<number>(n).fill(2.5),
  "of rank 1": () => [3],
};
const shapes = [
  [1, 1],
  [1, 9],
  [9, 1],
  [12, 7],
  [7, 12],
  [40, 40],
  [90, 34],
] as const;

describe.each(["f32", "f64"] as const)("svd of %s", (dtype) => {
  it.each(Object.entries(spectra))("finds the singular values it was built from, to the dtype's rounding of σ₁: %s", async (_, values) => {
    for (const [m, n] of shapes) {
      const s = values(Math.min(m, n)).slice(0, Math.min(m, n));
      await check(withSingularValues(m, n, s, m), s, dtype);
    }
  });

  it("gives orthonormal vectors for zero", async () => {
    for (const [m, n] of shapes)
      await check(
        plain(m, n, () => 0),
        [],
        dtype,
      );
  });

  it("keeps its relative errors for huge and tiny matrices", async () => {
    for (const scale of dtype === "f64" ? [1e-300, 1e-160, 1e160, 1e300] : [1e-36, 1e36]) {
      const s = sample([8], 3).map((x) => Math.abs(x) * scale);
      await check(withSingularValues(20, 8, s), s, dtype);
    }
  });

  it("leaves the zeros of a diagonal matrix with repeated and missing entries", async () => {
    await check(
      plain(9, 6, (i, j) => (i === j ? [2, 0, 2, 0, 1, 5][i]! : 0)),
      [2, 0, 2, 0, 1, 5],
      dtype,
    );
  });

  it("gives the same on every backend", async () => {
    await onEveryBackend(async () => {
      for (const name of ["rank-deficient", "graded to a condition of 1e12"])
        await check(withSingularValues(24, 17, spectra[name]!(17)), spectra[name]!(17), dtype);
    });
  });

  it("says what is wrong with NaN and infinity", async () => {
    for (const bad of [NaN, Infinity, -Infinity]) {
      await expect(svd(tensor([1, 2, bad, 4], [2, 2], dtype))).rejects.toThrow(/must be finite/);
      await expect(singularValues(tensor([bad], [1, 1], dtype))).rejects.toThrow(/must be finite/);
    }
  });
});

describe("singular values of f64", () => {
  it("are relatively accurate where columns are graded, as one-sided Jacobi promises", async () => {
    // well conditioned times diagonal
    const scales = [1, 1e-6, 1e-12];
    const base = withSingularValues(30, 3, [2, 1.5, 1]);
    const graded = plain(30, 3, (i, j) => base.values[i * 3 + j]! * scales[j]!);
    // σ₁σ₂σ₃ = √det(AᵀA), of which the base's is 3
    const s = await fromTensor(await singularValues(toTensor(graded)));
    expect(s.values.reduce((p, x) => p * x, 1) / (3 * 1e-18)).toBeCloseTo(1, 9);
  });
});
