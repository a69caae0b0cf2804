import { readFile } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { start, toBytes, TorchRng, type DrawnType, type Tensor } from "./index.ts";

interface Exact {
  values: number[];
  /** Of all bit patterns as signed numbers, modulo 2³². */
  sum: number;
}
type Golden = {
  torch: string;
  cases: ({ seed: number; size: number } & Record<string, unknown>)[];
  kaiming: (Exact & { shape: number[]; a: number; dtype: DrawnType })[];
};
/** Made by torch-rng.py beside it. */
const golden = JSON.parse(await readFile("test/golden/torch-rng.json", "utf8")) as Golden;
const types = ["f32", "bf16", "f16"] as const;

beforeAll(async () => {
  await start();
});

/** The numbers at the places that the golden file keeps. */
async function kept(x: Tensor): Promise<number[]> {
  const [n, data] = [x.size, await x.data()];
  return Array.from(data as ArrayLike<number | bigint>, Number).filter((_, i) => n <= 17 || i < 2 || i % 37 === 0 || i >= n - 9);
}

async function expectExactly(x: Tensor, { values, sum }: Exact): Promise<void> {
  const bytes = toBytes(x).buffer;
  let total = 0;
  for (const bits of x.dtype === "f32" ? new Int32Array(bytes) : new Int16Array(bytes)) total += bits;
  expect(((total % 2 ** 32) + 2 ** 32) % 2 ** 32).toBe(sum);
  expect(await kept(x)).toEqual(values.map((value) => Math.fround(value)));
}

/** Within a few units in the last place of f32, and within one step of a 16-bit type, which such a unit can tip. */
async function expectNearly(x: Tensor, values: number[]): Promise<void> {
  const step = { f32: 2 ** -21, bf16: 2 ** -7, f16: 2 ** -10 }[x.dtype as DrawnType];
  (await kept(x)).forEach((value, i) => expect(Math.abs(value - values[i]!)).toBeLessThanOrEqual(step * Math.max(0.5, Math.abs(values[i]!))));
}

describe.each(golden.cases)("TorchRng with seed $seed, $size numbers", (wanted) => {
  const { seed, size } = wanted;

  it.each(types)("draws torch's uniform %s numbers in every bit", async (dtype) => {
    const rng = new TorchRng(seed);
    await expectExactly(rng.rand([size], dtype), wanted[`rand ${dtype}`] as Exact);
    await expectExactly(rng.uniform([size], -0.3, 1.7, dtype), wanted[`uniform ${dtype}`] as Exact);
  });

  it.each(types)("draws torch's normal %s numbers, and leaves the generator where torch leaves it", async (dtype) => {
    const rng = new TorchRng(seed);
    await expectNearly(rng.normal([size], 0.5, 2, dtype), wanted[`normal ${dtype}`] as number[]);
    await expectNearly(rng.normal([3]), wanted[`after ${dtype}`] as number[]);
  });

  it("draws torch's integers of 32 and of 64 bits, and its permutation", async () => {
    const rng = new TorchRng(0).manualSeed(seed);
    expect(await kept(rng.randint(-5, 1000, [size]))).toEqual(wanted["randint"]);
    expect(await kept(rng.randint(0, 2 ** 28, [size]))).toEqual(wanted["randint long"]);
    const order = rng.randperm(size);
    expect([...order].sort((a, b) => a - b)).toEqual([...order.keys()]);
    expect([...order].filter((_, i) => size <= 17 || i < 2 || i % 37 === 0 || i >= size - 9)).toEqual(wanted["randperm"]);
  });
});

describe("TorchRng", () => {
  it.each(golden.kaiming)("initialises as kaiming_uniform_ with a = $a does for shape $shape in $dtype", async ({ shape, a, dtype, ...exact }) => {
    const x = new TorchRng(1).kaimingUniform(shape, { a, dtype });
    expect(x.shape).toEqual(shape);
    await expectExactly(x, exact);
  });

  it("draws the integers that torch gives for seeds 0 and 42 below 10¹⁰", async () => {
    expect(Number(await new TorchRng(0).randint(0, 1e10).item())).toBe(3749065263);
    expect(Number(await new TorchRng(42n).randint(0, 1e10).item())).toBe(7428952499);
  });

  it("looks at the low 32 bits of the seed only, and forgets a spare normal number when seeded again", async () => {
    const first = async (seed: number | bigint) => new TorchRng(seed).random32();
    expect(await first(2 ** 40 + 5)).toBe(await first(5));
    expect(await first(-1)).toBe(await first(2n ** 32n - 1n));
    const rng = new TorchRng(3);
    const [one] = (await rng.normal([1]).data()) as Float32Array;
    const [again] = (await rng.manualSeed(3).normal([1]).data()) as Float32Array;
    expect(again).toBe(one);
  });

  it("refuses what torch refuses", () => {
    const rng = new TorchRng(1);
    expect(() => new TorchRng(0.5)).toThrow(/seed 0.5/);
    expect(() => rng.uniform([2], 1, 0)).toThrow(/uniform: 1 … 0/);
    expect(() => rng.normal([2], 0, -1)).toThrow(/standard deviation is -1/);
    expect(() => rng.randint(3, 3)).toThrow(/randint: 3 … 3/);
    expect(() => rng.randperm(-1)).toThrow(/n = -1/);
    expect(() => rng.kaimingUniform([4])).toThrow(/shape \[4\] has no rows/);
  });
});
