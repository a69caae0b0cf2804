import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { distance, fromTensor, orthogonal, plain, product, toTensor, transposed, withSingularValues } from "../../test/support/matrices.ts";
import { start, tensor, type Tensor } from "../tensor/index.ts";
import { eigh, eighBackward, svd, svdBackward } from "./index.ts";

beforeAll(async () => {
  await start();
});

/** Σ weights ∘ outputs, a loss that sees every number. */
async function loss(outputs: readonly Tensor[], weights: readonly number[][]): Promise<number> {
  let total = 0;
  for (const [k, output] of outputs.entries()) ((await output.data()) as Float64Array).forEach((x, i) => (total += x * weights[k]![i]!));
  return total;
}

const STEP = 1e-6;

describe("svdBackward", () => {
  it.each([
    [5, 5],
    [7, 4],
    [4, 7],
  ] as const)("matches finite differences of a loss of U, S and Vh for %i×%i", async (m, n) => {
    const r = Math.min(m, n);
    const a = withSingularValues(m, n, [5, 4, 2.5, 1, 0.5].slice(0, r));
    const weights = [sample([m, r], 1), sample([r], 2), sample([r, n], 3)];
    const run = async (values: Float64Array) => svd(tensor(values, [m, n], "f64"));
    const decomposed = await run(a.values);
    const [U, S, Vh] = [tensor(weights[0]!, [m, r], "f64"), tensor(weights[1]!, [r], "f64"), tensor(weights[2]!, [r, n], "f64")];
    const gradient = (await svdBackward(decomposed, { U, S, Vh }).data()) as Float64Array;
    for (let i = 0; i < m * n; i++) {
      const at = async (by: number): Promise<number> => {
        const moved = await run(a.values.map((x, j) => (j === i ? x + by : x)));
        return loss([moved.U, moved.S, moved.Vh], weights);
      };
      expect(((await at(STEP)) - (await at(-STEP))) / (2 * STEP)).toBeCloseTo(gradient[i]!, 6);
    }
  });

  it("gives U·Vh for the nuclear norm, also where singular values are equal", async () => {
    const [u, v] = [orthogonal(6, 3, 1), orthogonal(4, 3, 2)];
    const a = product(
      plain(6, 3, (i, j) => u.values[i * 3 + j]! * [2, 2, 2][j]!),
      transposed(v),
    );
    const { U, S, Vh } = await svd(toTensor(a));
    const gradient = svdBackward({ U, S, Vh }, { S: tensor([1, 1, 1, 0], [4], "f64") });
    expect(distance(await fromTensor(gradient), product(u, transposed(v)))).toBeLessThan(1e-12);
  });

  it("passes nothing, rather than infinity, to the vectors of a cluster", async () => {
    const decomposed = await svd(toTensor(withSingularValues(4, 4, [1, 1, 1, 0])));
    const g = tensor(sample([4, 4], 1), [4, 4], "f64");
    const gradient = await fromTensor(svdBackward(decomposed, { U: g, Vh: g }, { cluster: 1e-9 }));
    expect(Math.max(...gradient.values.map(Math.abs))).toBeLessThan(10);
  });
});

describe("eighBackward", () => {
  it("matches finite differences along symmetric directions", async () => {
    const n = 5;
    const q = orthogonal(n, n, 4);
    const a = product(
      plain(n, n, (i, j) => q.values[i * n + j]! * [3, -2, 1, 0.4, -0.7][j]!),
      transposed(q),
    );
    const weights = [sample([n], 1), sample([n, n], 2)];
    const run = async (values: Float64Array) => eigh(tensor(values, [n, n], "f64"));
    const gradient = (await eighBackward(await run(a.values), {
      eigenvalues: tensor(weights[0]!, [n], "f64"),
      eigenvectors: tensor(weights[1]!, [n, n], "f64"),
    }).data()) as Float64Array;
    for (let i = 0; i < n; i++)
      for (let j = 0; j <= i; j++) {
        const at = async (by: number): Promise<number> => {
          const moved = await run(a.values.map((x, k) => (k === i * n + j || k === j * n + i ? x + by : x)));
          return loss([moved.eigenvalues, moved.eigenvectors], weights);
        };
        const expected = gradient[i * n + j]! + (i === j ? 0 : gradient[j * n + i]!);
        expect(((await at(STEP)) - (await at(-STEP))) / (2 * STEP)).toBeCloseTo(expected, 6);
      }
  });

  it("is exact for a loss that does not see the basis of a cluster, and finite for one that does", async () => {
    const same = await eigh(tensor([2, 0, 0, 2], [2, 2], "f64"));
    const trace = await fromTensor(eighBackward(same, { eigenvalues: tensor([1, 1], [2], "f64") }));
    expect(
      distance(
        trace,
        plain(2, 2, (i, j) => (i === j ? 1 : 0)),
      ),
    ).toBeLessThan(1e-15);
    const vectors = await fromTensor(eighBackward(same, { eigenvectors: tensor([1, 2, 3, 4], [2, 2], "f64") }));
    expect(Math.max(...vectors.values.map(Math.abs))).toBe(0);
  });
});
