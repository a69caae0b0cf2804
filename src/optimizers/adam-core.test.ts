import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { stepper } from "../../test/support/optimizer.ts";
import type { State } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { bytesOf, matmul, start, sub, sumSquares, Tensor, tensor, transpose } from "../tensor/index.ts";
import { adamw, galore } from "./index.ts";

beforeAll(() => start());

const inBlocks = { state: "8bit", min8bitSize: 0 };
const adamOf = (options: Record<string, unknown>) => adamw.build(parseOptions(adamw, options));

const bytesIn = (state: State): number =>
  Object.values(state).reduce<number>((sum, x) => sum + (x instanceof Tensor ? x.size * bytesOf(x.dtype) : typeof x === "number" ? 0 : bytesIn(x)), 0);

describe("averages in 8-bit blocks", () => {
  it("give the golden weights, codes and scales of bitsandbytes' rule", async () => {
    const run = stepper(adamOf(inBlocks), [1, 300], { weightDecay: 0.01, dtype: "f32" });
    for (let t = 1; t <= 5; t++)
      await run.step(
        tensor(
          Array.from({ length: 300 }, (_, i) => Math.sin(0.37 * (i + 2) * t + 0.5 * i) * (1 + (i % 7))),
          [1, 300],
        ),
      );
    const p = await run.weight();
    [0.409881, 0.562281, -0.487849, -0.760166, 0.10841, 1.05779].forEach((x, i) => expect(Math.abs(p[i]! - x)).toBeLessThan(1e-4));
    [0.999783, 1.06966, -0.132869].forEach((x, i) => expect(Math.abs(p[256 + i]! - x)).toBeLessThan(1e-4));
    expect(p.reduce((sum, x) => sum + x, 0)).toBeCloseTo(0.568108, 3);
    const { m, v } = run.states()[0] as { m: Record<string, Tensor>; v: Record<string, Tensor> };
    expect([...(await m["codes"]!.data())].slice(0, 8)).toEqual([177, 77, 186, 61, 73, 157, 58, 165]);
    expect([...(await v["codes"]!.data())].slice(0, 8)).toEqual([67, 105, 135, 150, 172, 200, 209, 70]);
    const tops = [...(await m["largest"]!.data()), ...(await v["largest"]!.data())].map(Number);
    [2.142659, 1.919943, 0.149111, 0.153591].forEach((x, i) => expect(tops[i]).toBeCloseTo(x, 5));
  });

  it("begin at 0, and a gradient of 0 moves nothing", async () => {
    const run = stepper(adamOf(inBlocks), [3, 100], { dtype: "f32" });
    const before = await run.weight();
    await run.step(tensor(new Array<number>(300).fill(0), [3, 100]));
    expect(await run.weight()).toEqual(before);
  });

  it("are one byte a number and four a block, of tensors of at least min8bitSize numbers", async () => {
    const bytes = async (shape: readonly number[], options: Record<string, unknown>): Promise<number> => {
      const run = stepper(adamOf(options), shape, { dtype: "f32" });
      await run.step();
      return bytesIn(run.states()[0]!);
    };
    expect(await bytes([64, 64], { state: "8bit" })).toBe(2 * (4096 + 4 * 16));
    expect(await bytes([64, 65], { state: "8bit" })).toBe(2 * (4160 + 4 * 17));
    expect(await bytes([63, 65], { state: "8bit" })).toBe(2 * 4 * 4095);
    expect(await bytes([63, 65], { state: "bf16" })).toBe(2 * 2 * 4095);
  });

  it("take the directions of other forms and of f64 gradients too", async () => {
    const f32 = stepper(adamOf({}), [1, 40]);
    const blocks = stepper(adamOf(inBlocks), [1, 40]);
    await f32.step();
    await blocks.step();
    // the direction comes before the averages are rounded, so the first step is the same
    const expected = await f32.weight();
    (await blocks.weight()).forEach((x, i) => expect(x).toBeCloseTo(expected[i]!, 6));
  });
});

/** Held-out losses ‖H·(W − T)ᵀ − noise‖² of 48×32 weights on the way down, every gradient on 24 rows of its own. */
async function descent(optimizer: Parameters<typeof stepper>[0], steps: number): Promise<number[]> {
  const target = tensor(sample([48, 32], 1), [48, 32]);
  const run = stepper(optimizer, [48, 32], { dtype: "f32", learningRate: 0.05, schedule: (t) => 1 - t / steps });
  const at = (rows: Tensor, seed: number): Tensor => sub(matmul(rows, transpose(sub(run.w, target))), tensor(sample([24, 48], seed), [24, 48]));
  const rowsOf = (seed: number): Tensor => tensor(sample([24, 32], seed), [24, 32]);
  const losses: number[] = [];
  for (let t = 0; t < steps; t++) {
    losses.push(sumSquares([at(rowsOf(50), 51)]));
    const rows = rowsOf(100 + t);
    await run.step(matmul(transpose(at(rows, 500 + t)), rows));
  }
  return losses;
}

describe("training with small averages", () => {
  const inGalore = (options: Record<string, unknown>) =>
    galore.build(parseOptions(galore, { rank: 8, updateProjGap: 20, scale: 1, targetModules: "w" }), adamw.core!(parseOptions(adamw, options)));

  it.each([
    ["adamw in 8 bits", adamOf, inBlocks],
    ["adamw in bf16", adamOf, { state: "bf16" }],
    ["galore around 8 bits", inGalore, inBlocks],
    ["galore around bf16", inGalore, { state: "bf16" }],
  ])("%s follows f32 within 2 %", async (_, optimizer, options) => {
    const [small, full] = [await descent(optimizer(options), 150), await descent(optimizer({}), 150)];
    for (const t of [50, 100, 149]) expect(Math.abs(small[t]! / full[t]! - 1), `step ${t}: ${small[t]} against ${full[t]}`).toBeLessThan(0.02);
    expect(full[149]).toBeLessThan(0.5 * full[0]!);
    expect(small).not.toEqual(full);
  });

  it("of galore takes 2·r·max bytes, 8 a block, and the projector", async () => {
    const run = stepper(inGalore(inBlocks), [48, 32], { dtype: "f32" });
    await run.step();
    expect(bytesIn(run.states()[0]!)).toBe(2 * 8 * 48 + 2 * 4 * Math.ceil((8 * 48) / 256) + 4 * 8 * 32);
  });

  it("in bf16 falls when gradients do, which nearest rounding would not", async () => {
    const run = stepper(adamOf({ state: "bf16" }), [64, 64], { dtype: "f32" });
    await run.step(tensor(new Array<number>(4096).fill(1), [64, 64]));
    for (let t = 0; t < 300; t++) await run.step(tensor(new Array<number>(4096).fill(0), [64, 64]));
    const v = await ((run.states()[0] as { v: Tensor }).v.data() as Promise<Float32Array>);
    const mean = v.reduce((sum, x) => sum + x, 0) / v.length;
    expect(mean / (0.001 * 0.999 ** 300)).toBeCloseTo(1, 1.7);
  });
});
