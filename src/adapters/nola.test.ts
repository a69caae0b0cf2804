import { readFile, writeFile } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { baseOf, inFolder, scaffolds } from "../../test/laws/scaffolds.ts";
import { stir } from "../../test/laws/subject.ts";
import { singularValues } from "../linalg/index.ts";
import type { Model } from "../models/index.ts";
import type { Live, Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { dense } from "../operators/index.ts";
import { backward, concat, mul, Parameter, reshape, Rng, start, sum, tensor, TorchRng, zeros, type Tensor } from "../tensor/index.ts";
import { train } from "../training/index.ts";
import { adapt, attachedTo, loadAdapter, nola, saveAdapter, toLora } from "./index.ts";

let base: Model;
beforeAll(async () => {
  await start();
  base = (await baseOf(scaffolds[0]!)).model;
});

type Options = Parameters<typeof nola.init>[1];
type Params = Parameters<NonNullable<typeof nola.update>>[0];
const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);
const live: Live = { training: false, step: 0, rng: new Rng(0), values: {} };
const siteOf = (out: number, inner: number): Site => ({ path: "q", depth: 0, role: "q", kind: "linear", out, in: inner, weight: dense(zeros([out, inner])) });
const optionsOf = (given: Record<string, unknown>): Options => parseOptions(nola, given);
const initial = (site: Site, o: Options, path = "q") => nola.init(site, o, { rng: new Rng(1).fork(path), sites: [site], dtype: "f64" }, {}) as Params;
const factors = (p: Params, site: Site, o: Options) => nola.update!(p, site, o, live, {}) as unknown as { A: Tensor; B: Tensor; toDense(): Tensor };
const seedOf = (value: number): Tensor => tensor([value], [1], "i32");

/** The bases of a seed as the authors draw them: all in one go, basis by basis, row by row. */
const bases = (seed: number, k: number, size: number): Promise<number[]> => numbers(new TorchRng(seed).uniform([k, size], -1, 1));

describe("nola", () => {
  it("starts with an update of zeros, where A's coefficients have no gradient and B's have", async () => {
    const [site, o] = [siteOf(7, 5), optionsOf({ r: 2, numBasis: 6 })];
    const made = initial(site, o);
    const p = { ...made, a: new Parameter(made.a, "a"), b: new Parameter(made.b, "b") };
    const update = factors(p, site, o).toDense();
    expect((await numbers(update)).every((x) => x === 0)).toBe(true);
    const gradients = backward(sum(mul(update, new Rng(3).normal([7, 5], 1, "f64"))));
    expect((await numbers(gradients.get(p.a)!)).every((x) => x === 0)).toBe(true);
    expect((await numbers(gradients.get(p.b)!)).every((x) => x !== 0)).toBe(true);
  });

  it("mixes the matrices that torch draws from a seed on a CPU", async () => {
    // torch.manual_seed(s); W = torch.zeros(40, 2, 3).uniform_(-1, 1) / √40; einsum("i,ijk->jk", (arange(40) − 20) / 10, W), torch 2.13
    const golden = [-0.07712280750274658, 0.0515265166759491, -0.1811886429786682, 0.12180601060390472, -0.04488015174865723, -0.3195306658744812];
    const seed = 3749065263 - 2 ** 32; // the same low 32 bits
    const o = optionsOf({ r: 2, numBasis: 40, generator: "torch-cpu", baseFactor: "none" });
    const a = tensor(
      Array.from({ length: 40 }, (_, i) => (i - 20) / 10),
      [40],
    );
    const { A } = factors({ a, b: zeros([40]), seedA: seedOf(seed), seedB: seedOf(1) }, siteOf(4, 3), o);
    (await numbers(A)).forEach((x, i) => expect(x).toBeCloseTo(golden[i]!, 5));
  });

  it("streamed is the sum written out, over more matrices than are drawn at a time, and its gradient is ⟨Āᵢ, G⟩", async () => {
    const [site, k] = [siteOf(4, 3), 70];
    const o = optionsOf({ r: 2, numBasis: k, generator: "torch-cpu", alpha: 2 });
    const p = { ...initial(site, o), a: new Parameter(new Rng(4).normal([k], 1, "f64"), "a"), b: new Parameter(new Rng(5).normal([k], 1, "f64"), "b") };
    const { A, B } = factors({ ...p, seedA: seedOf(11), seedB: seedOf(12) }, site, o);
    const [W, V, a, b, A0, gotA, gotB] = await Promise.all([bases(11, k, 6), bases(12, k, 8), ...[p.a, p.b, p.A0!, A, B].map(numbers)]);
    const mixed = (c: number[], X: number[], size: number, at: number): number => c.reduce((total, x, i) => total + (x * X[i * size + at]!) / Math.sqrt(k), 0);
    gotA!.forEach((x, at) => expect(x).toBeCloseTo(A0![at]! + mixed(a!, W!, 6, at), 10));
    gotB!.forEach((x, at) => expect(x).toBeCloseTo(mixed(b!, V!, 8, at), 10));
    const G = new Rng(6).normal([2, 3], 1, "f64");
    const [gradient, g] = [await numbers(backward(sum(mul(A, G))).get(p.a)!), await numbers(G)];
    gradient.forEach((x, i) =>
      expect(x).toBeCloseTo(
        g.reduce((total, value, at) => total + (value * W![i * 6 + at]!) / Math.sqrt(k), 0),
        10,
      ),
    );
  });

  it("gives the same numbers at every call, whatever its caller draws between them", async () => {
    const [site, o] = [siteOf(7, 5), optionsOf({ r: 2, numBasis: 40 })];
    const p = { ...initial(site, o), a: new Rng(4).normal([40], 1, "f64"), b: new Rng(5).normal([40], 1, "f64") };
    const caller = new Rng(8);
    const first = await numbers(factors(p, site, o).toDense());
    const after = caller.random();
    expect(await numbers(factors(p, site, o).toDense())).toEqual(first);
    expect(after).toBe(new Rng(8).random());
  });

  it.each(["strut", "torch-cpu"] as const)("answers and learns the same with its matrices cached (%s)", async (generator) => {
    const site = siteOf(7, 5);
    const given = { r: 2, numBasis: 70, generator };
    const p = { ...initial(site, optionsOf(given)), a: new Parameter(new Rng(4).normal([70], 1, "f64")), b: new Parameter(new Rng(5).normal([70], 1, "f64")) };
    const results = [];
    for (const cacheBases of [false, true, true]) {
      const update = factors(p, site, optionsOf({ ...given, cacheBases })).toDense();
      const change = await numbers(update);
      const gradients = backward(sum(mul(update, new Rng(3).normal([7, 5], 1, "f64"))));
      results.push([change, await numbers(gradients.get(p.a)!), await numbers(gradients.get(p.b)!)]);
    }
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
  });

  it("has rank r at most, however many matrices are mixed", async () => {
    const [site, o] = [siteOf(9, 8), optionsOf({ r: 2, numBasis: 60 })];
    const p = { ...initial(site, o), a: new Rng(4).normal([60], 1, "f64"), b: new Rng(5).normal([60], 1, "f64") };
    const values = await numbers(await singularValues(factors(p, site, o).toDense()));
    expect(values[1]! / values[0]!).toBeGreaterThan(1e-3);
    expect(values[2]! / values[0]!).toBeLessThan(1e-12);
  });

  it.each(["strut", "torch-cpu"] as const)("spans every A with r·in matrices, and every B with r·out of them (%s)", async (generator) => {
    const [site, k] = [siteOf(6, 6), 12];
    const o = optionsOf({ r: 2, numBasis: k, generator, baseFactor: "none" });
    const p = initial(site, o);
    const units = Array.from({ length: k }, (_, i) =>
      tensor(
        Array.from({ length: k }, (__, j) => Number(i === j)),
        [k],
        "f64",
      ),
    );
    for (const key of ["A", "B"] as const) {
      const rows = units.map((unit) => reshape(factors({ ...p, a: unit, b: unit }, site, o)[key], [1, k]));
      const values = await numbers(await singularValues(concat(rows, 0)));
      expect(values.at(-1)! / values[0]!).toBeGreaterThan(1e-6);
    }
  });

  it("has matrices of its own at every site, or with sharedSeed the same ones", async () => {
    const site = siteOf(7, 5);
    const seeds = async (sharedSeed: boolean, path: string) => {
      const { seedA, seedB } = initial(site, optionsOf({ r: 2, sharedSeed }), path);
      return [await numbers(seedA), await numbers(seedB)].flat();
    };
    expect(await seeds(false, "q")).not.toEqual(await seeds(false, "v"));
    expect(await seeds(true, "q")).toEqual(await seeds(true, "v"));
    expect(new Set(await seeds(true, "q")).size).toBe(2);
  });

  it("trains nothing but coefficients", async () => {
    const tuned = await adapt(base, nola, { r: 2, numBasis: 8 });
    const { model } = await train(tuned, { batches: () => ({ ids: [[1, 2, 3, 4, 5]] }), steps: 3, learningRate: 1e-2 });
    const fresh = attachedTo(await adapt(base, nola, { r: 2, numBasis: 8 }), "default")!;
    for (const [path, p] of attachedTo(model, "default")!.entries) {
      const start = fresh.entries.get(path)!;
      for (const name of ["A0", "seedA", "seedB"]) expect(await numbers(p[name]!), name).toEqual(await numbers(start[name]!));
      for (const name of ["a", "b"]) expect(await numbers(p[name]!), name).not.toEqual(await numbers(start[name]!));
    }
  });

  it("is the same after saving and loading; a generator that strut does not have ends in a sentence", async () => {
    const tuned = stir(await adapt(base, nola, { r: 2, numBasis: 8 }));
    await inFolder(async (folder) => {
      await saveAdapter(tuned, `${folder}/a`);
      const loaded = attachedTo(await loadAdapter(base, `${folder}/a`, { methods: [nola] }), "default")!;
      for (const [path, p] of attachedTo(tuned, "default")!.entries)
        for (const [name, value] of Object.entries(p)) expect(await numbers(loaded.entries.get(path)![name]!), name).toEqual(await numbers(value));
      const config = JSON.parse(await readFile(`${folder}/a/strut.json`, "utf8")) as { options: Record<string, unknown> };
      config.options["generator"] = "torch-cuda";
      await writeFile(`${folder}/a/strut.json`, JSON.stringify(config));
      await expect(loadAdapter(base, `${folder}/a`, { methods: [nola] })).rejects.toThrow(/generator/);
    });
  });

  it("converts to a LoRA of its rank exactly", async () => {
    const { error } = await toLora(stir(await adapt(base, nola, { r: 2, numBasis: 9 })), { rank: 2 });
    expect(error.total).toBeLessThan(1e-12);
  });
});
