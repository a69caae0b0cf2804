import { beforeAll, describe, expect, it } from "vitest";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import type { Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { dense } from "../operators/index.ts";
import { add, backward, mul, noGrad, Parameter, Rng, start, sum, tensor, toBytes, zeros, type Tensor } from "../tensor/index.ts";
import { train } from "../training/index.ts";
import { adapt, adapterParameters, attachedTo, lora, merge, mos, toLora } from "./index.ts";
import { forward, type Model } from "../models/index.ts";

beforeAll(async () => {
  await start();
});

const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);
const live = { training: false, step: 0, rng: new Rng(1), values: {} };
const context = (sites: readonly Site[], seed = 1) => ({ rng: new Rng(seed), sites, dtype: "f32" as const });

/** Blocks of one kind. */
const blocks = (count: number, out: number, inner: number): Site[] =>
  Array.from({ length: count }, (_, depth) => ({
    path: `layers.${depth}.fc`,
    depth,
    role: "fc",
    kind: "linear",
    out,
    in: inner,
    weight: dense(zeros([out, inner])),
  }));

/** Indices of every block, and the pools. */
async function drawn(sites: readonly Site[], given: object) {
  const o = parseOptions(mos, given as Record<string, unknown>);
  const pools = (await mos.shared!(sites, o, context(sites))) as Record<string, Tensor>;
  const indices = await Promise.all(
    sites.map(async (site, k) => {
      const { indexA, indexB } = await mos.init(site, o, { ...context(sites), rng: new Rng(1).fork(`${k}`) }, pools);
      return { A: await numbers(indexA), B: await numbers(indexB) };
    }),
  );
  return { o, pools, indices };
}

describe("mos", () => {
  it("puts rows together as the sheet's example does", async () => {
    const [site] = blocks(1, 6, 6) as [Site];
    const pool = (): Parameter =>
      new Parameter(
        tensor(
          Array.from({ length: 24 }, (_, i) => i),
          [12, 2],
        ),
      );
    const index = tensor([5, 0, 7, 3, 10, 11], [6], "i32");
    const o = parseOptions(mos, { r: 2, validR: 4, numChunkPerVec: 3, alpha: 2 });
    const rows = [
      [10, 11, 0, 1, 14, 15],
      [6, 7, 20, 21, 22, 23],
    ];
    const pools = { "fc_6x6.pool_A": pool(), "fc_6x6.pool_B": pool() };
    const update = mos.update!({ indexA: index, indexB: index }, site, o, live, pools);
    const dense = await numbers(noGrad(() => update.toDense()));
    expect(dense).toEqual(Array.from({ length: 36 }, (_, at) => rows.reduce((total, row) => total + row[Math.floor(at / 6)]! * row[at % 6]!, 0)));
  });

  it("draws indices without repetition inside a matrix, apart for A and B, from the public shards and the site's own", async () => {
    const sites = blocks(4, 8, 12);
    const { indices } = await drawn(sites, { r: 5, validR: 3, privateR: 1, numChunkPerVec: 2 });
    const open = (3 - 1) * 4 * 2;
    indices.forEach((own, k) => {
      const private_ = [open + 2 * k, open + 2 * k + 1];
      for (const index of [own.A, own.B]) {
        expect(index.length).toBe(10);
        expect(new Set(index).size, "each shard once").toBe(10);
        expect(index.slice(8), "the last ranks are its own, paired").toEqual(private_);
        for (const shard of index.slice(0, 8)) expect(shard >= 0 && shard < open).toBe(true);
      }
      expect(own.A, "pair dissociation").not.toEqual(own.B);
    });
    expect(indices[0]!.A).not.toEqual(indices[1]!.A);
    const { indices: paired } = await drawn(sites, { r: 5, validR: 3, numChunkPerVec: 2, pairDissociation: false });
    for (const { A, B } of paired) expect(A).toEqual(B);
  });

  it.each([
    [4, { r: 3, validR: 2, numChunkPerVec: 2 }],
    [5, { r: 7, validR: 2, numChunkPerVec: 1 }],
    [3, { r: 5, validR: 3, privateR: 1, numChunkPerVec: 4 }],
    [3, { r: 2, validR: 2 }],
    [2, { r: 4, validR: 2, numChunkPerVec: 2 }],
  ])("balanced uses every public shard of %i blocks, and all as often as each other or once more: %o", async (count, given) => {
    const { privateR, r, validR, numChunkPerVec: l } = parseOptions(mos, given);
    const { indices } = await drawn(blocks(count, 8, 12), { ...given, balanced: true });
    const open = (validR - privateR) * count * l;
    const least = Math.floor((count * (r - privateR) * l) / open);
    for (const key of ["A", "B"] as const) {
      const uses = Array<number>(open).fill(0);
      for (const own of indices) {
        expect(new Set(own[key]).size, "each shard once a matrix").toBe(r * l);
        for (const shard of own[key]) if (shard < open) uses[shard]!++;
      }
      expect(Math.min(...uses)).toBe(least);
      expect(Math.max(...uses)).toBeLessThanOrEqual(least + 1);
    }
    if (count > 2) expect(indices.map(({ A }) => A)).not.toEqual(indices.map(({ B }) => B));
    // drawn one by one some shards are left out
    const { indices: free } = await drawn(blocks(12, 8, 12), { r: 2, validR: 2 });
    expect(new Set(free.flatMap(({ A }) => A)).size).toBeLessThan(24);
  });

  it("shares everything at r = e·L with one shard a row and one draw for both", async () => {
    const { indices } = await drawn(blocks(3, 8, 12), { r: 6, validR: 2, pairDissociation: false });
    for (const { A } of indices) expect(A.toSorted((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5]);
  });

  it("stores as much whatever r, l and p are, and draws A within 1/√in with B zero", async () => {
    const sites = blocks(4, 8, 16);
    for (const given of [
      { r: 2, validR: 2 },
      { r: 8, validR: 2, numChunkPerVec: 4 },
      { r: 4, validR: 2, privateR: 1, numChunkPerVec: 2 },
    ]) {
      const { pools } = await drawn(sites, given);
      expect(Object.values(pools).reduce((total, { size }) => total + size, 0)).toBe(2 * 4 * (8 + 16));
      const a = await numbers(pools["fc_8x16.pool_A"]!);
      const most = Math.max(...a.map(Math.abs));
      expect(most).toBeLessThanOrEqual(1 / 4);
      expect(most).toBeGreaterThan(0.9 / 4);
      expect((await numbers(pools["fc_8x16.pool_B"]!)).every((value) => value === 0)).toBe(true);
    }
  });

  it("with p = e = r and one shard a row is a LoRA with the same A and B, bit for bit", async () => {
    const sites = blocks(3, 8, 12);
    const { o, pools, indices } = await drawn(sites, { r: 2, validR: 2, privateR: 2, alpha: 3 });
    const B = new Parameter(new Rng(4).normal([6, 8], 1));
    const all = { ...pools, "fc_8x12.pool_B": B };
    const x = new Rng(5).normal([7, 12], 1);
    for (const [k, site] of sites.entries()) {
      expect(indices[k]!.A).toEqual([2 * k, 2 * k + 1]);
      const [a, b] = [await numbers(pools["fc_8x12.pool_A"]!), await numbers(B)];
      const own = {
        A: tensor(a.slice(24 * k, 24 * (k + 1)), [2, 12]),
        B: tensor(
          Array.from({ length: 16 }, (_, at) => b[(2 * k + (at % 2)) * 8 + Math.floor(at / 2)]!),
          [8, 2],
        ),
      };
      const index = tensor(indices[k]!.A, [2], "i32");
      const y = zeros([7, 8]);
      const mine = mos.forward!(x, y, { indexA: index, indexB: index }, site, o, live, all);
      const theirs = lora.forward!(x, y, own, site, { ...parseOptions(lora, { r: 2, alpha: 3 }) }, live, {});
      expect(await numbers(mine)).toEqual(await numbers(theirs));
    }
  });

  it("gives a shard of the pool the sum of its gradients over all places it is used in", async () => {
    const sites = blocks(3, 4, 6);
    const { o, indices } = await drawn(sites, { r: 3, validR: 1, numChunkPerVec: 2, alpha: 3 });
    const pools = { "fc_4x6.pool_A": new Parameter(new Rng(2).normal([6, 3], 1)), "fc_4x6.pool_B": new Parameter(new Rng(3).normal([6, 2], 1)) };
    const g = new Rng(6).normal([4, 6], 1);
    const index = (values: number[]): Tensor => tensor(values, [values.length], "i32");
    const total = sites
      .map((site, k) => mos.update!({ indexA: index(indices[k]!.A), indexB: index(indices[k]!.B) }, site, o, live, pools))
      .map((update) => sum(mul(update.toDense(), g)))
      .reduce(add);
    const b = await numbers(pools["fc_4x6.pool_B"]);
    const gg = await numbers(g);
    const expected = Array(18).fill(0) as number[];
    for (const own of indices)
      for (let j = 0; j < 3; j++)
        for (let part = 0; part < 2; part++)
          for (let c = 0; c < 3; c++) {
            let grown = 0;
            for (let i = 0; i < 4; i++) grown += b[own.B[2 * j + Math.floor(i / 2)]! * 2 + (i % 2)]! * gg[i * 6 + part * 3 + c]!;
            expected[own.A[2 * j + part]! * 3 + c]! += grown;
          }
    const found = await numbers(backward(total).get(pools["fc_4x6.pool_A"])!);
    found.forEach((value, i) => expect(value).toBeCloseTo(expected[i]!, 4));
  });

  it.each([
    [{ r: 9, validR: 2 }, /cannot be built from the pool of 4 sites/],
    [{ r: 8, validR: 2, privateR: 1 }, /at most \(valid − private\)·4/],
    [{ r: 2, validR: 2, privateR: 3 }, /cannot be built/],
    [{ r: 2, validR: 2, numChunkPerVec: 5 }, /does not divide the 8×12 matrix/],
  ])("refuses %o with a sentence", async (given, says) => {
    await expect(drawn(blocks(4, 8, 12), given)).rejects.toThrow(says);
  });

  it("trains pools and leaves indices alone; merged and as a LoRA it answers the same", async () => {
    const before = await adapt(tinyModel(), mos, { r: 4, validR: 2, numChunkPerVec: 2, alpha: 4, dropout: 0 }, { targets: ["q_proj", "o_proj"] });
    const indices = (model: Model) => [...attachedTo(model, "default")!.entries.values()].flatMap(({ indexA, indexB }) => [toBytes(indexA!), toBytes(indexB!)]);
    const start = indices(before);
    const { model } = await train(before, { batches: tinyBatches(3), steps: 3, learningRate: 0.05 });
    expect(indices(model)).toEqual(start);
    expect([...adapterParameters(attachedTo(model, "default")!).keys()].filter((key) => key.includes("pool")).length, "each pool once").toBe(4);
    const answer = (of: Model): Promise<number[]> => numbers(noGrad(() => forward(of, tensor([1, 2, 3], [1, 3], "i32"))));
    const [own, base] = [await answer(model), await answer(tinyModel())];
    expect(Math.max(...own.map((value, i) => Math.abs(value - base[i]!)))).toBeGreaterThan(1e-3);
    const converted = (await toLora(model, { rank: 4 })).model;
    for (const other of [merge(model), converted]) (await answer(other)).forEach((value, i) => expect(value).toBeCloseTo(own[i]!, 4));
  });
});
