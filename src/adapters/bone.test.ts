import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { leaf, sample } from "../../test/support/gradients.ts";
import { liveOf, numbers, siteOf } from "../../test/support/site.ts";
import { tinyModel } from "../../test/support/tiny-model.ts";
import { svd } from "../linalg/index.ts";
import { forward, randomModel, type Model } from "../models/index.ts";
import { parseOptions } from "../nn/options.ts";
import { dense } from "../operators/index.ts";
import { backward, mul, noGrad, ones, Rng, start, sum, tensor, zeros, type Parameter, type Tensor } from "../tensor/index.ts";
import { adapt, adapterParameters, attachedTo, bone, loadAdapter, merge, saveAdapter, unmerge } from "./index.ts";

beforeAll(async () => {
  await start();
});

const optionsOf = (given: Record<string, unknown> = {}) => parseOptions(bone, given);
const context = { rng: new Rng(3), dtype: "f64", sites: [] } as const;
const delta = (block: Tensor, site: ReturnType<typeof siteOf>): Promise<number[]> =>
  numbers(noGrad(() => bone.update!({ block }, site, optionsOf(), liveOf(false), {}).toDense()));
const output = (block: Tensor, site: ReturnType<typeof siteOf>, x: Tensor, y: Tensor, o = optionsOf(), live = liveOf(false)): Tensor =>
  noGrad(() => bone.forward!(x, y, { block }, site, o, live, {}));
const logits = (model: Model) => numbers(noGrad(() => forward(model, tensor([1, 2, 3], [1, 3], "i32"))));
const far = (a: readonly number[], b: readonly number[]): number => Math.max(...a.map((value, i) => Math.abs(value - b[i]!)));

/** A tiny model with a Bone whose blocks are not zero. */
async function stirredBone(given: Record<string, unknown>, seed = 1): Promise<{ base: Model; tuned: Model }> {
  const base = tinyModel(seed);
  const tuned = await adapt(base, bone, given, { targets: ["q_proj", "down_proj"] });
  for (const { block } of attachedTo(tuned, "default")!.entries.values() as Iterable<{ block: Parameter }>)
    block.assign(tensor(sample(block.shape, 4, 0.2), block.shape));
  return { base, tuned };
}

describe("bone", () => {
  it.each([
    [{ r: 4 }, [4, 8]],
    [{ r: 2, initWeights: "bat" }, [4, 2, 2]],
    [{ r: 4, miniR: 2, initWeights: "mini" }, [4, 2]],
  ])("has a block of zeros, %o", async (given, shape) => {
    const { block } = await bone.init(siteOf(8, 12), optionsOf(given), context, {});
    expect(block.shape).toEqual(shape);
    expect(new Set(await numbers(block))).toEqual(new Set([0]));
  });

  it("shares D by i mod r, not by contiguous shards, and the last shard may be short: ΔW[o, i] = D[i mod r, o]", async () => {
    const block = leaf([4, 3], 1);
    const D = await numbers(block);
    (await delta(block, siteOf(3, 10))).forEach((value, k) => expect(value).toBe(D[((k % 10) % 4) * 3 + Math.floor(k / 10)]));
  });

  it("has rank r at most", async () => {
    const S = await numbers((await svd(tensor(await delta(leaf([3, 12], 1), siteOf(12, 20)), [12, 20], "f64"))).S);
    expect(S[2]).toBeGreaterThan(1e-2);
    expect(S[3]).toBeLessThan(1e-12);
  });

  it.each([8, 10])("computes with summed shards what its matrix says, of %i inputs", async (inner) => {
    const [block, site, x] = [leaf([4, 3], 1), siteOf(3, inner), tensor(sample([2, inner], 2), [2, inner], "f64")];
    const expected = await numbers(noGrad(() => bone.update!({ block }, site, optionsOf(), liveOf(false), {}).apply(x)));
    expect(far(await numbers(output(block, site, x, zeros([2, 3], "f64"))), expected)).toBeLessThan(1e-12);
  });

  it("repeats a mini block along the output; as wide as the output it is the default", async () => {
    const block = leaf([2, 3], 1);
    const D = await numbers(block);
    (await delta(block, siteOf(6, 4))).forEach((value, k) => expect(value).toBe(D[((k % 4) % 2) * 3 + (Math.floor(k / 4) % 3)]));
    expect((await bone.init(siteOf(6, 4), optionsOf({ r: 2, miniR: 6, initWeights: "mini" }), context, {})).block.shape).toEqual([2, 6]);
  });

  it("has the block sums of the full gradient as its gradient at the start: dD[k, o] = Σ G[o, i] over i mod r = k", async () => {
    const [block, site] = [leaf([2, 3], 1), siteOf(3, 5)];
    const [x, weights] = [tensor(sample([4, 5], 2), [4, 5], "f64"), tensor(sample([4, 3], 3), [4, 3], "f64")];
    const loss = sum(mul(bone.forward!(x, zeros([4, 3], "f64"), { block }, site, optionsOf(), liveOf(false), {}), weights));
    const found = await numbers(backward(loss).get(block)!);
    const [X, G] = [await numbers(x), await numbers(weights)];
    for (let k = 0; k < 2; k++)
      for (let o = 0; o < 3; o++) {
        let expected = 0;
        for (let i = k; i < 5; i += 2) for (let n = 0; n < 4; n++) expected += G[n * 3 + o]! * X[n * 5 + i]!;
        expect(found[k * 3 + o]).toBeCloseTo(expected, 12);
      }
  });

  it("is W·(I + b_j) + b_j by blocks as bat", async () => {
    const [block, site] = [leaf([3, 2, 2], 1), siteOf(6, 4)];
    const [b, W] = [await numbers(block), await numbers(site.weight.toDense())];
    (await delta(block, site)).forEach((value, k) => {
      const [o, i] = [Math.floor(k / 4), k % 4];
      const [j, row, col, left] = [Math.floor(o / 2), o % 2, i % 2, i - (i % 2)];
      const at = (p: number, q: number): number => b[(j * 2 + p) * 2 + q]!;
      expect(value).toBeCloseTo(W[o * 4 + left]! * at(0, col) + W[o * 4 + left + 1]! * at(1, col) + at(row, col), 12);
    });
  });

  it("depends on the base as bat, where the other forms do not: the same block on another W is another ΔW", async () => {
    const other = { ...siteOf(4, 4), weight: dense(tensor(sample([4, 4], 5), [4, 4], "f64")) };
    const bat = leaf([2, 2, 2], 1);
    expect(far(await delta(bat, siteOf(4, 4)), await delta(bat, other))).toBeGreaterThan(0.1);
    expect(await delta(leaf([2, 4], 1), siteOf(4, 4))).toEqual(await delta(leaf([2, 4], 1), other));
  });

  it("reaches full rank as bat", async () => {
    const S = await numbers((await svd(tensor(await delta(leaf([4, 2, 2], 1), siteOf(8, 8)), [8, 8], "f64"))).S);
    expect(S[7]).toBeGreaterThan(1e-3);
  });

  it.each([{ r: 3 }, { r: 2, initWeights: "bat" }, { r: 4, miniR: 2, initWeights: "mini" }])(
    "comes back to the base when unmerged, its forward leaves the base as it was, %o",
    async (given) => {
      const { base, tuned } = await stirredBone(given);
      const before = await Promise.all([...base.layers.values()].map(({ weight }) => numbers(weight)));
      const adapted = await logits(tuned);
      expect(await Promise.all([...base.layers.values()].map(({ weight }) => numbers(weight)))).toEqual(before);
      expect(far(adapted, await logits(base))).toBeGreaterThan(1e-2);
      expect(far(await logits(merge(tuned)), adapted)).toBeLessThan(1e-5);
      const back = unmerge(merge(tuned), tuned);
      for (const [path, { weight }] of base.layers) expect(far(await numbers(back.layers.get(path)!.weight), await numbers(weight)), path).toBeLessThan(1e-5);
    },
  );

  it("drops inputs of the update in training, not of the base; as bat it drops nothing, as in PEFT", async () => {
    const [site, x] = [siteOf(4, 64), ones([1, 64], "f64")];
    const o = optionsOf({ r: 4, missDropout: 0.5 });
    const y = noGrad(() => site.weight.apply(x));
    const run = (block: Tensor, training: boolean) => numbers(output(block, site, x, y, o, liveOf(training)));
    expect(await run(zeros([4, 4], "f64"), true)).toEqual(await numbers(y));
    expect(far(await run(leaf([4, 4], 1), true), await run(leaf([4, 4], 1), false))).toBeGreaterThan(1e-2);
    expect(await run(leaf([1, 4, 4], 1), true)).toEqual(await run(leaf([1, 4, 4], 1), false));
  });

  it("is bat by its tensor, whatever the config says of it, and is written as MISS", async () => {
    const { base, tuned } = await stirredBone({ r: 2, initWeights: "bat" });
    const folder = await mkdtemp(join(tmpdir(), "strut-bone-"));
    try {
      await saveAdapter(tuned, folder);
      const file = join(folder, "adapter_config.json");
      const config = JSON.parse(await readFile(file, "utf8")) as Record<string, unknown>;
      expect(config).toMatchObject({ peft_type: "MISS", init_weights: "bat", r: 2 });
      await writeFile(file, JSON.stringify({ ...config, init_weights: true }));
      expect(await logits(await loadAdapter(base, folder, { methods: [bone] }))).toEqual(await logits(tuned));
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it.each(["MiSS_only", "bone_only"])("reads the biases of its modules where the config says %s", async (bias) => {
    const gpt2 = { model_type: "gpt2", vocab_size: 16, n_embd: 8, n_head: 2, n_layer: 1, n_positions: 8 };
    const base = randomModel(gpt2, (name, shape) => new Rng(2).fork(name).normal(shape, 0.3));
    const tuned = await adapt(base, bone, { r: 4 }, { targets: ["c_attn"], bias: "lora_only" });
    for (const w of adapterParameters(attachedTo(tuned, "default")!).values()) w.assign(tensor(sample(w.shape, 4, 0.2), w.shape));
    const folder = await mkdtemp(join(tmpdir(), "strut-bone-"));
    try {
      await saveAdapter(tuned, folder);
      const file = join(folder, "adapter_config.json");
      await writeFile(file, JSON.stringify({ ...(JSON.parse(await readFile(file, "utf8")) as object), bias }));
      const loaded = await loadAdapter(base, folder, { methods: [bone] });
      expect(attachedTo(loaded, "default")!.copies.size).toBe(1);
      expect(await logits(loaded)).toEqual(await logits(tuned));
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it.each([
    [{ r: 3, initWeights: "bat" }, /r 3 does not divide the 8 inputs/],
    [{ r: 4, miniR: 3, initWeights: "mini" }, /miniR 3 does not divide the 8 outputs/],
  ])("says which extent does not fit: %o", async (given, sentence) => {
    await expect(adapt(tinyModel(), bone, given, { targets: ["q_proj"] })).rejects.toThrow(sentence);
  });
});
