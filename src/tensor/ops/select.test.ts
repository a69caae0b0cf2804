import { beforeAll, describe, expect, it } from "vitest";
import golden from "../../../test/golden/selection.json" with { type: "json" };
import { checkGradients, leaf, sample } from "../../../test/support/gradients.ts";
import * as t from "../index.ts";

beforeAll(() => t.start());

const ints = (values: readonly number[], shape: readonly number[] = [values.length]): t.Tensor => t.tensor(values, shape, "i32");
const reals = (values: readonly number[], shape?: readonly number[], dtype: "f32" | "f64" = "f64"): t.Tensor => t.tensor(values, shape, dtype);
const numbers = async (x: t.Tensor): Promise<number[]> => Array.from(await x.data(), Number);
const y = (): t.Tensor => reals([3, 1, 2, 1, -4, 0, -1, 5, 5, 2], [2, 5]);
const close = (found: readonly number[], expected: readonly number[], within = 1e-12): void => {
  expect(found.length).toBe(expected.length);
  found.forEach((value, i) => expect(Math.abs(value - expected[i]!), `element ${i}: ${value} for ${expected[i]}`).toBeLessThan(within));
};

/** Places in order, by the comparison sort of the language. */
function places(x: readonly number[], descending = false): number[] {
  const rank = (v: number): number => (Number.isNaN(v) ? Infinity : descending ? -v : v);
  const class_ = (v: number): number => Number(Number.isNaN(v));
  return x.map((_, i) => i).sort((i, j) => class_(x[i]!) - class_(x[j]!) || (rank(x[i]!) === rank(x[j]!) ? i - j : rank(x[i]!) - rank(x[j]!)));
}

const hard = [3, NaN, 1, Infinity, -0, 0, 1, -Infinity, NaN, 1, -7, 3];

describe.each(["f32", "f64"] as const)("order in %s", (dtype) => {
  it("is stable, with NaN last and ties by place, both ways", async () => {
    for (const descending of [false, true]) {
      const expected = places(hard, descending);
      const { values, indices } = t.sort(reals(hard, undefined, dtype), { descending });
      expect(await numbers(indices)).toEqual(expected);
      expect(await numbers(values)).toEqual(expected.map((i) => hard[i]!));
      expect(await numbers(t.argsort(reals(hard, undefined, dtype), { descending }))).toEqual(expected);
    }
  });

  it("takes the first k of the order, for every k from 0 to n", async () => {
    for (const largest of [false, true])
      for (let k = 0; k <= hard.length; k++) {
        const { values, indices } = t.topk(reals(hard, undefined, dtype), k, { largest });
        const expected = places(hard, largest).slice(0, k);
        expect(await numbers(indices)).toEqual(expected);
        expect(await numbers(values)).toEqual(expected.map((i) => hard[i]!));
      }
  });

  it("finds the k-th of the order", async () => {
    for (const largest of [false, true])
      for (let k = 1; k <= hard.length; k++) {
        const { values, indices } = t.kthValue(reals(hard, undefined, dtype), k, { largest });
        expect(values.shape).toEqual([]);
        expect(await indices.item()).toBe(places(hard, largest)[k - 1]);
      }
  });
});

describe("order", () => {
  it("goes along any axis", async () => {
    const x = sample([3, 4, 2], 5);
    const { values, indices } = t.sort(reals(x, [3, 4, 2]), { axis: 1 });
    expect(values.shape).toEqual([3, 4, 2]);
    const [found, at] = [await numbers(values), await numbers(indices)];
    for (let o = 0; o < 3; o++)
      for (let i = 0; i < 2; i++) {
        const column = [0, 1, 2, 3].map((c) => x[(o * 4 + c) * 2 + i]!);
        const expected = places(column);
        expect([0, 1, 2, 3].map((c) => at[(o * 4 + c) * 2 + i])).toEqual(expected);
        expect([0, 1, 2, 3].map((c) => found[(o * 4 + c) * 2 + i])).toEqual(expected.map((c) => column[c]));
      }
    expect(t.topk(reals(x, [3, 4, 2]), 2, { axis: -2 }).indices.shape).toEqual([3, 2, 2]);
    expect(t.kthValue(reals(x, [3, 4, 2]), 1, { axis: 0 }).values.shape).toEqual([4, 2]);
  });

  it("holds for a million elements of which many are equal, and leaves nothing in the pool", async () => {
    const rng = new t.Rng(1);
    const x = Float32Array.from({ length: 1e6 }, () => Math.floor(rng.random() * 1000));
    const input = t.tensor(x, [1e6]);
    const used = t.engine().pool.usedBytes;
    await t.scope(async () => {
      const { values, indices } = t.sort(input);
      const [v, at] = [(await values.data()) as Float32Array, (await indices.data()) as Int32Array];
      for (let i = 1; i < v.length; i++) if (v[i]! < v[i - 1]! || (v[i] === v[i - 1] && at[i]! < at[i - 1]!)) throw new Error(`out of order at ${i}`);
      expect(await numbers(t.topk(input, 500).indices)).toEqual(places([...x], true).slice(0, 500));
      expect(await t.kthValue(input, 500_000).indices.item()).toBe(at[499_999]);
    });
    expect(t.engine().pool.usedBytes).toBe(used);
  });

  it("of nothing is nothing, and a k that is not there ends in a sentence", async () => {
    expect(t.sort(reals([], [0])).values.shape).toEqual([0]);
    expect(t.topk(reals([], [2, 0]), 0).values.shape).toEqual([2, 0]);
    expect(() => t.topk(y(), 6)).toThrow("topk: k is 6; the axis has 5 elements, so k must lie in 0…5");
    expect(() => t.kthValue(y(), 0)).toThrow("k must lie in 1…5");
    expect(() => t.quantile(y(), 1.2)).toThrow("q is 1.2; it must lie in [0, 1]");
    expect(() => t.sort(ints([1, 2]))).toThrow("this tensor is i32");
  });

  it("gives torch's k-th values and quantiles; NaN makes a quantile NaN", async () => {
    for (const [i, k] of [1, 3, 5].entries()) expect(await numbers(t.kthValue(y(), k).values)).toEqual(golden.kth[i]);
    for (const [i, q] of [0, 0.1, 0.5, 0.77, 1].entries()) close(await numbers(t.quantile(y(), q)), golden.quantile[i]!);
    expect(await numbers(t.quantile(reals([1, NaN, 3]), 0.5))).toEqual([NaN]);
  });

  it("chooses exactly k of several tensors, ties to the earlier", async () => {
    const list = [reals([1, 4, 4], undefined, "f32"), reals([4, 2, NaN, 4], [2, 2], "f32"), reals([], [0], "f32")];
    const all = [1, 4, 4, 4, 2, NaN, 4];
    for (const largest of [true, false])
      for (let k = 0; k <= 7; k++) {
        const masks = t.globalMasks(list, k, { largest });
        expect(masks.map(({ shape }) => shape)).toEqual(list.map(({ shape }) => shape));
        const chosen = new Set(places(all, largest).slice(0, k));
        expect((await Promise.all(masks.map(numbers))).flat()).toEqual(all.map((_, i) => Number(chosen.has(i))));
      }
    expect(t.globalKthValue(list, 3)).toEqual({ value: 4, tensor: 1, index: 0 });
    expect(() => t.globalMasks(list, 8)).toThrow("k is 8; the tensors have 7 elements together, so k must lie in 1…7");
    expect(() => t.globalKthValue([], 1)).toThrow("the tensors have 0 elements together");
  });
});

describe("indexing", () => {
  it("gathers and scatters as torch", async () => {
    expect(await numbers(t.gather(y(), 1, ints([0, 0, 4, 2, 1, 3], [2, 3])))).toEqual(golden.gather);
    const added = t.scatterAdd(y(), 1, ints([0, 0, 4, 2, 1, 2], [2, 3]), reals([1, 2, 3, 4, 5, 6], [2, 3]));
    expect(await numbers(added)).toEqual(golden.scatter_add);
    expect(await numbers(t.take(y(), ints([9, 0, 0])))).toEqual([2, 3, 3]);
    expect(await numbers(t.putAdd(reals([1, 2, 3, 4], [2, 2]), ints([3, 3, 0]), reals([10, 20, 5])))).toEqual([6, 2, 3, 34]);
    expect(await numbers(t.indexSelect(reals([1, 2, 3, 4, 5, 6], [2, 3]), 1, ints([2, 0, 2])))).toEqual([3, 1, 3, 6, 4, 6]);
    expect(await numbers(t.indexSelect(reals([1, 2, 3, 4, 5, 6], [2, 3]), 0, ints([1])))).toEqual([4, 5, 6]);
  });

  it("sums segments, of which some are empty", async () => {
    expect(await numbers(t.segmentSum(reals([1, 2, 3, 4, 5, 6], [3, 2]), [0, 0, 2, 3]))).toEqual([0, 0, 4, 6, 5, 6]);
    expect(() => t.segmentSum(reals([1, 2], [2, 1]), [0, 3])).toThrow("offsets must ascend");
  });

  it("keeps the NaN of what is not chosen out, forward and backward", async () => {
    const a = new t.Parameter(reals([1, NaN]), "a");
    const chosen = t.where(reals([1, 0]), a, reals([5, 6]));
    expect(await numbers(chosen)).toEqual([1, 6]);
    const root = t.where(reals([0, 1]), t.sqrt(a), reals([0, 0]));
    expect(await numbers(t.backward(t.sum(chosen)).get(a)!)).toEqual([1, 0]);
    expect(await numbers(root)).toEqual([0, NaN]);
    expect(await numbers(t.maskedFill(reals([1, 2, 3]), t.tensor([0, 1, 0], [3], "bool"), -9))).toEqual([1, -9, 3]);
  });

  it("refuses an index outside, of another dtype or shape, in a sentence", () => {
    expect(() => t.gather(y(), 1, ints([5], [1, 1]))).toThrow("does not fit to [2,5] along axis 1");
    expect(() => t.gather(y(), 1, ints([5, 0], [2, 1]))).toThrow("index 5 at position 0 does not lie in 0…4");
    expect(() => t.take(y(), reals([0]))).toThrow("an index must be i32, got f64");
    expect(() => t.scatterAdd(y(), 0, ints([0, 0, 0, 0, 0], [1, 5]), reals([1]))).toThrow("they must agree");
  });
});

describe("running sums and norms", () => {
  it("are torch's", async () => {
    expect(await numbers(t.cumulativeSum(y()))).toEqual(golden.cumsum);
    expect(await numbers(t.cumulativeSum(reals([1, 2, 3, 4], [2, 2]), { axis: 0, reverse: true }))).toEqual([4, 6, 3, 4]);
    close(await numbers(t.logsumexp(y())), golden.logsumexp);
    expect(t.logsumexp(y(), { axis: 0, keepAxes: true }).shape).toEqual([1, 5]);
  });

  it("do not overflow, and know infinity", async () => {
    expect(await numbers(t.logsumexp(reals([1000, 1000])))).toEqual([1000 + Math.log(2)]);
    expect(await numbers(t.logsumexp(reals([-Infinity, -Infinity])))).toEqual([-Infinity]);
    expect(await numbers(t.logsumexp(reals([Infinity, 0])))).toEqual([Infinity]);
    expect(await numbers(t.logsumexp(reals([NaN, 0])))).toEqual([NaN]);
  });

  it("have torch's gradients", async () => {
    const functions = [(x: t.Tensor) => t.logsumexp(x), (x: t.Tensor) => t.quantile(x, 0.3), (x: t.Tensor) => t.cumulativeNorm(x, { reverse: true })];
    for (const [i, f] of functions.entries()) {
      const x = new t.Parameter(y(), "x");
      close(await numbers(t.backward(t.sum(f(x))).get(x)!), golden.gradients[i]!);
    }
  });

  it("have gradient 0 where a norm is 0", async () => {
    const x = new t.Parameter(reals([0, 0, 3, 4]), "x");
    expect(await numbers(t.norm(x))).toEqual([5]);
    expect(await numbers(t.cumulativeNorm(x))).toEqual([0, 0, 3, 5]);
    const g = await numbers(t.backward(t.sum(t.cumulativeNorm(x))).get(x)!);
    close(g, [0, 0, 1 + 3 / 5, 4 / 5]);
    const zero = new t.Parameter(reals([0, 0]), "zero");
    expect(await numbers(t.backward(t.norm(zero)).get(zero)!)).toEqual([0, 0]);
  });
});

const operations: Record<string, [(...x: t.Parameter[]) => t.Tensor, () => t.Parameter[]]> = {
  sort: [(x) => t.sort(x!, { axis: 0, descending: true }).values, () => [leaf([4, 3])]],
  topk: [(x) => t.topk(x!, 2).values, () => [leaf([2, 5])]],
  kthValue: [(x) => t.kthValue(x!, 2).values, () => [leaf([2, 5])]],
  quantile: [(x) => t.quantile(x!, 0.37, 0), () => [leaf([4, 2])]],
  gather: [(x) => t.gather(x!, 0, ints([0, 2, 2, 1], [2, 2])), () => [leaf([3, 2])]],
  scatterAdd: [(x, s) => t.scatterAdd(x!, 0, ints([0, 2, 2, 1], [2, 2]), s!), () => [leaf([3, 2]), leaf([2, 2], 2)]],
  take: [(x) => t.take(x!, ints([3, 1, 3])), () => [leaf([2, 2])]],
  putAdd: [(x, v) => t.putAdd(x!, ints([3, 1, 3]), v!), () => [leaf([2, 2]), leaf([3], 2)]],
  indexSelect: [(x) => t.indexSelect(x!, 1, ints([2, 0, 2])), () => [leaf([2, 3, 2])]],
  segmentSum: [(x) => t.segmentSum(x!, [0, 2, 2, 4]), () => [leaf([4, 3])]],
  "segmentSum of some rows": [(x) => t.segmentSum(x!, [1, 2, 3]), () => [leaf([4, 3])]],
  "where broadcasts": [(a, b) => t.where(reals([1, 0, 1]), a!, b!), () => [leaf([2, 3]), leaf([1], 2)]],
  "cumulativeSum in reverse": [(x) => t.cumulativeSum(x!, { axis: 1, reverse: true }), () => [leaf([2, 4, 3])]],
  cumulativeNorm: [(x) => t.cumulativeNorm(x!, { axis: 0 }), () => [leaf([4, 2])]],
  norm: [(x) => t.norm(x!, { axes: [1] }), () => [leaf([3, 4])]],
  logsumexp: [(x) => t.logsumexp(x!, { axis: 0 }), () => [leaf([4, 2], 1, 3)]],
  weightGradient: [(x, g) => t.weightGradient(x!, g!), () => [leaf([2, 3, 4]), leaf([2, 3, 5], 2)]],
};

describe("gradients agree with central differences in f64", () => {
  for (const [name, [f, inputs]] of Object.entries(operations)) it(name, () => checkGradients(f as never, inputs()));

  it("and weightGradient is what backward gives a weight", async () => {
    const [x, w] = [leaf([2, 3, 4]), leaf([5, 4], 2)];
    const g = reals(sample([2, 3, 5], 7), [2, 3, 5]);
    const expected = t.backward(t.sum(t.mul(t.linear(x, w), g))).get(w)!;
    close(await numbers(t.weightGradient(x, g)), await numbers(expected));
    expect(() => t.weightGradient(x, reals([1, 2]))).toThrow("all axes but the last");
  });
});
