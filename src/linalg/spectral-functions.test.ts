import { beforeAll, describe, expect, it } from "vitest";
import { checkGradients, leaf, sample } from "../../test/support/gradients.ts";
import { defect, distance, fromTensor, orthogonal, plain, product, toTensor, transposed, withSingularValues } from "../../test/support/matrices.ts";
import { Rng, start, sub, sumSquares, tensor, type Tensor } from "../tensor/index.ts";
import { inverseSquareRoot, kronecker, matrixSquareRoot, modeProduct, nearestKronecker, polar, pseudoInverse, tucker, tuckerReconstruct } from "./index.ts";

beforeAll(async () => {
  await start();
});

const squares = (x: Tensor): number => sumSquares([x]);
const identity = (n: number) => plain(n, n, (i, j) => (i === j ? 1 : 0));

describe("polar", () => {
  it("takes a matrix apart into the orthogonal and the positive factor it was made of", async () => {
    const q = orthogonal(12, 5, 1);
    const v = orthogonal(5, 5, 2);
    const p = product(
      plain(5, 5, (i, j) => v.values[i * 5 + j]! * [4, 3, 2, 1, 1e-3][j]!),
      transposed(v),
    );
    const { U, P } = await polar(toTensor(product(q, p)));
    expect(distance(await fromTensor(U), q)).toBeLessThan(1e-11);
    expect(distance(await fromTensor(P), p)).toBeLessThan(1e-13);
    const wide = await polar(toTensor(transposed(product(q, p)), "f32"));
    expect(defect(transposed(await fromTensor(wide.U)))).toBeLessThan(1e-6);
  });
});

describe("pseudoInverse", () => {
  it("meets Penrose's four conditions, also without full rank", async () => {
    const a = withSingularValues(9, 6, [3, 2, 1]);
    const x = await fromTensor(await pseudoInverse(toTensor(a)));
    const [ax, xa] = [product(a, x), product(x, a)];
    expect(distance(product(ax, a), a)).toBeLessThan(1e-13);
    expect(distance(product(xa, x), x)).toBeLessThan(1e-13);
    expect(distance(ax, transposed(ax))).toBeLessThan(1e-13);
    expect(distance(xa, transposed(xa))).toBeLessThan(1e-13);
  });

  it("drops what is not above rtol·σ₁", async () => {
    const a = toTensor(withSingularValues(6, 6, [4, 1, 0.1]));
    const x = await fromTensor(await pseudoInverse(a, { rtol: 0.2 }));
    expect(x.values.reduce((sum, value) => sum + value * value, 0)).toBeCloseTo(1 / 16 + 1, 10);
  });
});

describe("roots of a Gram", () => {
  const q = orthogonal(6, 6, 3);
  const gram = (values: readonly number[]) =>
    product(
      plain(6, 6, (i, j) => q.values[i * 6 + j]! * values[j]!),
      transposed(q),
    );

  it("square to the damped matrix and to its inverse", async () => {
    const g = gram([5, 4, 3, 2, 1, 0.5]);
    const root = await fromTensor(await matrixSquareRoot(toTensor(g), { damping: 0.25 }));
    const damped = plain(6, 6, (i, j) => g.values[i * 6 + j]! + (i === j ? 0.25 : 0));
    expect(distance(product(root, root), damped)).toBeLessThan(1e-13);
    const inverse = await fromTensor(await inverseSquareRoot(toTensor(g), { damping: 0.25 }));
    expect(distance(product(product(inverse, damped), inverse), identity(6))).toBeLessThan(1e-13);
  });

  it("leave the null space out of the inverse root, by a tolerance", async () => {
    const g = gram([5, 4, 3, 1e-3, 0, 0]);
    const trace = async (x: Tensor): Promise<number> => {
      const p = product(await fromTensor(x), await fromTensor(x));
      return product(p, g).values.reduce((sum, value, at) => sum + (at % 7 === 0 ? value : 0), 0);
    };
    expect(await trace(await inverseSquareRoot(toTensor(g)))).toBeCloseTo(4, 9);
    expect(await trace(await inverseSquareRoot(toTensor(g), { tolerance: 1e-2 }))).toBeCloseTo(3, 9);
    expect(distance(await fromTensor(await matrixSquareRoot(toTensor(gram([0, 0, 0, 0, 0, 0])))), toZero)).toBe(0);
  });
  const toZero = plain(6, 6, () => 0);

  it("are refused for negative eigenvalues", async () => {
    await expect(matrixSquareRoot(toTensor(gram([1, 1, 1, 1, 1, -0.5])))).rejects.toThrow(/eigenvalue -0\.\d+; none may be negative/);
  });
});

describe("kronecker", () => {
  it("has block i, j equal to a_ij·b, and gradients of both", async () => {
    const [a, b] = [leaf([2, 3], 1), leaf([3, 2], 2)];
    const [x, y, k] = [await fromTensor(a), await fromTensor(b), await fromTensor(kronecker(a, b))];
    expect(
      distance(
        k,
        plain(6, 6, (i, j) => x.values[Math.floor(i / 3) * 3 + Math.floor(j / 2)]! * y.values[(i % 3) * 2 + (j % 2)]!),
      ),
    ).toBe(0);
    await checkGradients((p, q) => kronecker(p!, q!), [a, b]);
  });

  it("is found again by nearestKronecker, and a perturbation of size ε costs at most ε", async () => {
    const [a, b] = [tensor(sample([3, 2], 4), [3, 2], "f64"), tensor(sample([4, 5], 5), [4, 5], "f64")];
    const exact = kronecker(a, b);
    const { left, right, error } = await nearestKronecker(exact, [3, 2]);
    expect(error).toBeLessThan(1e-14);
    expect(distance(await fromTensor(kronecker(left, right)), await fromTensor(exact))).toBeLessThan(1e-14);
    const noise = sample([12, 10], 6, 1e-3);
    const noisy = tensor(
      ((await exact.data()) as Float64Array).map((x, i) => x + noise[i]!),
      [12, 10],
      "f64",
    );
    const near = await nearestKronecker(noisy, [3, 2]);
    const found = Math.sqrt(squares(sub(noisy, kronecker(near.left, near.right))) / squares(noisy));
    expect(found).toBeCloseTo(near.error, 10);
    expect(found).toBeLessThanOrEqual(Math.hypot(...noise) / Math.sqrt(squares(noisy)));
    await expect(nearestKronecker(exact, [5, 2])).rejects.toThrow(/does not divide/);
  });
});

describe("tucker", () => {
  it("multiplies along a mode as the sum says", async () => {
    const [x, m] = [leaf([2, 3, 2], 1), leaf([4, 3], 2)];
    const [a, b] = [(await x.data()) as Float64Array, (await m.data()) as Float64Array];
    const y = modeProduct(x, m, 1);
    expect(y.shape).toEqual([2, 4, 2]);
    const expected = Float64Array.from({ length: 16 }, (_, at) => {
      const [i, j, k] = [Math.floor(at / 8), Math.floor(at / 2) % 4, at % 2];
      return [0, 1, 2].reduce((sum, r) => sum + b[j * 3 + r]! * a[i * 6 + r * 2 + k]!, 0);
    });
    ((await y.data()) as Float64Array).forEach((value, at) => expect(value).toBeCloseTo(expected[at]!, 12));
    expect(() => modeProduct(x, m, 0)).toThrow(/does not fit axis 0/);
  });

  it("is exact at the ranks a tensor has, and keeps everything at full rank", async () => {
    const rng = new Rng(1);
    const built = tuckerReconstruct({
      core: rng.normal([2, 3, 2], 1, "f64"),
      factors: [rng.normal([6, 2], 1, "f64"), rng.normal([5, 3], 1, "f64"), rng.normal([7, 2], 1, "f64")],
    });
    const { core, factors } = await tucker(built, [2, 3, 2]);
    expect(core.shape).toEqual([2, 3, 2]);
    for (const factor of factors) expect(defect(await fromTensor(factor))).toBeLessThan(1e-13);
    const size = squares(built);
    expect(squares(sub(built, tuckerReconstruct({ core, factors }))) / size).toBeLessThan(1e-26);
    const random = rng.normal([4, 3, 5], 1, "f64");
    expect(squares(sub(random, tuckerReconstruct(await tucker(random, [4, 3, 5]))))).toBeLessThan(1e-24);
  });

  it("loses no more with each sweep of orthogonal iteration", async () => {
    const x = new Rng(5).normal([6, 7, 8], 1);
    const errors: number[] = [];
    for (const sweeps of [0, 1, 4]) errors.push(squares(sub(x, tuckerReconstruct(await tucker(x, [2, 2, 2], { sweeps })))));
    expect(errors[1]!).toBeLessThan(errors[0]!);
    expect(errors[2]!).toBeLessThanOrEqual(errors[1]! * (1 + 1e-6));
    await expect(tucker(x, [2, 2])).rejects.toThrow(/2 ranks for 3 axes/);
    await expect(tucker(x, [7, 2, 2])).rejects.toThrow(/not between 1 and 6/);
  });
});
