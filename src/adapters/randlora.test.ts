import { readdir, readFile } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { checkGradients, leaf } from "../../test/support/gradients.ts";
import { baseOf, inFolder, scaffolds } from "../../test/laws/scaffolds.ts";
import { stir } from "../../test/laws/subject.ts";
import { openSafetensorsFile } from "../formats/safetensors-folder.ts";
import { singularValues } from "../linalg/index.ts";
import type { Model } from "../models/index.ts";
import { readTensor } from "../models/stored.ts";
import type { Live, Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { dense } from "../operators/index.ts";
import { backward, Parameter, Rng, start, sum, toBytes, zeros, type Tensor } from "../tensor/index.ts";
import { train } from "../training/index.ts";
import { adapt, attachedTo, loadAdapter, merge, randlora, saveAdapter, toLora } from "./index.ts";

let base: Model;
beforeAll(async () => {
  await start();
  base = (await baseOf(scaffolds[0]!)).model;
});

const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);
const live: Live = { training: false, step: 0, rng: new Rng(0), values: {} };
const siteOf = (out: number, inner: number): Site => ({ path: "q", depth: 0, role: "q", kind: "linear", out, in: inner, weight: dense(zeros([out, inner])) });
const contextOf = (sites: readonly Site[], dtype: "f32" | "f64" = "f32") => ({ rng: new Rng(1), sites, dtype });
const bankOf = async (sites: readonly Site[], given: Record<string, unknown>, dtype: "f32" | "f64" = "f32") =>
  randlora.shared!(sites, parseOptions(randlora, given), contextOf(sites, dtype));
const bankBytes = (model: Model) => Object.entries(attachedTo(model, "default")!.shared).map(([key, value]) => [key, toBytes(value)]);

/** ΔW by loops; `pair` says which λ[k, j] and γ[j] meet column i of the bases. */
async function byLoops(p: { lambda: Tensor; gamma: Tensor }, bank: { A: Tensor; B: Tensor }, site: Site, scale: number, pair: "peft" | "paper") {
  const [lambda, gamma, A, B] = await Promise.all([p.lambda, p.gamma, bank.A, bank.B].map(numbers));
  const [r, n] = p.lambda.shape as [number, number];
  const [d, D] = [Math.min(site.out, site.in), Math.max(site.out, site.in)];
  const [width, N] = [bank.A.shape[2]!, bank.B.shape[1]!];
  const result = new Array<number>(site.out * site.in).fill(0);
  for (let i = 0; i < r * n; i++) {
    const [basis, column] = [Math.floor(i / r), i % r];
    const [k, j] = pair === "peft" ? [Math.floor(i / n), i % n] : [column, basis];
    for (let row = 0; row < D; row++)
      for (let c = 0; c < d; c++) {
        const value = scale * B![(row * N + basis) * r + column]! * lambda![k * n + j]! * A![k * width + c]! * gamma![j * d + c]!;
        const at = d === site.in ? row * site.in + c : c * site.in + row;
        result[at]! += value;
      }
  }
  return result;
}

const filled = (site: Site, r: number) => {
  const d = Math.min(site.out, site.in);
  const n = Math.ceil(d / r);
  return { lambda: new Rng(2).normal([r, n], 1, "f64"), gamma: new Rng(3).normal([n, d], 1, "f64") };
};

describe("randlora", () => {
  it.each([
    [
      "randlora-noproj",
      { r: 8, projectionPrngKey: 3 },
      [
        [64, 64],
        [32, 64],
        [172, 64],
      ],
    ],
    [
      "randlora-very-sparse",
      { r: 8, projectionPrngKey: 11, verySparse: true },
      [
        [64, 64],
        [32, 64],
      ],
    ],
  ])("draws the bank that PEFT draws again for its own %s, to the last place", async (name, given, shapes) => {
    const folder = `test/interop/peft/${name}/regenerated_projections.safetensors`;
    const file = await openSafetensorsFile(folder);
    const bank = await bankOf(
      shapes.map(([out, inner]) => siteOf(out!, inner!)),
      given,
    );
    for (const key of ["A", "B"] as const) {
      const [ours, theirs] = [bank[key], await readTensor(file, `randlora_${key}`, "f32", folder)];
      expect(ours.shape).toEqual(theirs.shape);
      const [a, b] = [await numbers(ours), await numbers(theirs)];
      expect(Math.max(...a.map((x, i) => Math.abs(x - b[i]!) / Math.max(1, Math.abs(b[i]!))))).toBeLessThan(2 ** -22);
    }
    await file.close();
  });

  it("draws the sparse bank that PEFT stored: a third of its numbers is not 0, and its deviation is 1", async () => {
    const folder = "test/interop/peft/randlora-sparse/adapter_model.safetensors";
    const file = await openSafetensorsFile(folder);
    const bank = await bankOf([siteOf(64, 64), siteOf(32, 64)], { r: 10, projectionPrngKey: 11, sparse: true });
    for (const key of ["A", "B"] as const) {
      const [a, b] = [await numbers(bank[key]), await numbers(await readTensor(file, `base_model.randlora_${key}`, "f32", folder))];
      expect(Math.max(...a.map((x, i) => Math.abs(x - b[i]!)))).toBeLessThan(2 ** -21);
      expect(a.filter((x) => x !== 0).length / a.length).toBeCloseTo(1 / 3, 1);
    }
    await file.close();
  });

  it.each([
    [7, 5],
    [5, 7],
    [6, 6],
  ])("pairs bases and scales at %i×%i as PEFT flattens them, by loops, which is not the paper's pairing", async (out, inner) => {
    const [site, o] = [siteOf(out, inner), parseOptions(randlora, { r: 2, randloraAlpha: 3 })];
    const bank = await bankOf([site, siteOf(8, 9)], { r: 2 }, "f64");
    const p = filled(site, 2);
    const got = await numbers(randlora.update!(p, site, o, live, bank).toDense());
    const largest = (expected: number[]): number => Math.max(...got.map((x, i) => Math.abs(x - expected[i]!)));
    expect(largest(await byLoops(p, bank, site, 1.5, "peft"))).toBeLessThan(1e-12);
    expect(largest(await byLoops(p, bank, site, 1.5, "paper"))).toBeGreaterThan(1e-3);
    const paper = await numbers(randlora.update!(p, site, { ...o, pairing: "paper" }, live, bank).toDense());
    const expected = await byLoops(p, bank, site, 1.5, "paper");
    expect(Math.max(...paper.map((x, i) => Math.abs(x - expected[i]!)))).toBeLessThan(1e-12);
  });

  it("with r = d has one basis, where both pairings are one", async () => {
    const [site, o] = [siteOf(6, 4), parseOptions(randlora, { r: 4, randloraAlpha: 4 })];
    const bank = await bankOf([site], { r: 4 }, "f64");
    const p = filled(site, 4);
    expect(p.lambda.shape).toEqual([4, 1]);
    const [got, paper] = [await numbers(randlora.update!(p, site, o, live, bank).toDense()), await byLoops(p, bank, site, 1, "paper")];
    expect(Math.max(...got.map((x, i) => Math.abs(x - paper[i]!)))).toBeLessThan(1e-12);
  });

  it("starts with an update of zeros; γ has no gradient there, λ has", async () => {
    const [site, o] = [siteOf(7, 5), parseOptions(randlora, { r: 2 })];
    const bank = await bankOf([site], { r: 2 });
    const made = await randlora.init(site, o, contextOf([site]), bank);
    expect((await numbers(made.gamma)).every((x) => x === Math.fround(1 / 5))).toBe(true);
    const p = { lambda: new Parameter(made.lambda, "lambda"), gamma: new Parameter(made.gamma, "gamma") };
    const update = randlora.update!(p, site, o, live, bank).toDense();
    expect((await numbers(update)).every((x) => x === 0)).toBe(true);
    const gradients = backward(sum(update));
    expect((await numbers(gradients.get(p.gamma)!)).every((x) => x === 0)).toBe(true);
    expect((await numbers(gradients.get(p.lambda)!)).every((x) => x !== 0)).toBe(true);
  });

  it("gives λ and γ the gradients of finite differences", async () => {
    const [site, o] = [siteOf(5, 4), parseOptions(randlora, { r: 3, randloraAlpha: 3 })];
    const bank = await bankOf([site], { r: 3 }, "f64");
    await checkGradients((lambda, gamma) => randlora.update!({ lambda, gamma }, site, o, live, bank).toDense(), [leaf([3, 2], 4), leaf([2, 4], 5)]);
  });

  it("has full rank for random λ and γ, though each product has rank 2", async () => {
    const site = siteOf(9, 8);
    const bank = await bankOf([site], { r: 2 }, "f64");
    const update = randlora.update!(filled(site, 2), site, parseOptions(randlora, { r: 2 }), live, bank);
    const values = await numbers(await singularValues(update.toDense()));
    expect(values).toHaveLength(8);
    expect(values.at(-1)! / values[0]!).toBeGreaterThan(1e-6);
  });

  it("holds one bank a model, which training leaves as it is", async () => {
    const tuned = await adapt(base, randlora, { r: 2, randloraAlpha: 4 }, { targets: "all-linear" });
    expect(Object.keys(attachedTo(tuned, "default")!.shared)).toEqual(["A", "B"]);
    const before = bankBytes(tuned);
    const { model } = await train(tuned, { batches: () => ({ ids: [[1, 2, 3, 4, 5]] }), steps: 3, learningRate: 1e-2 });
    expect(bankBytes(model)).toEqual(before);
    for (const { lambda } of attachedTo(model, "default")!.entries.values() as Iterable<{ lambda: Tensor }>)
      expect((await numbers(lambda)).some((x) => x !== 0)).toBe(true);
  });

  it.each([{}, { sparse: true }, { verySparse: true }, { saveProjection: false }, { saveProjection: false, sparse: true }])(
    "with %o is the same after saving and loading, and its file holds the bank once or not at all",
    async (given) => {
      const tuned = stir(await adapt(base, randlora, { r: 3, randloraAlpha: 3, projectionPrngKey: 9, ...given }));
      await inFolder(async (folder) => {
        await saveAdapter(tuned, `${folder}/a`);
        const file = await openSafetensorsFile(`${folder}/a/adapter_model.safetensors`);
        const stored = "saveProjection" in given ? [] : ["base_model.randlora_A", "base_model.randlora_B"];
        expect([...file.entries.keys()].filter((key) => /randlora_[AB]$/.test(key))).toEqual(stored);
        await file.close();
        expect(bankBytes(await loadAdapter(base, `${folder}/a`, { methods: [randlora] }))).toEqual(bankBytes(tuned));
      });
    },
  );

  it("with the paper's pairing is no adapter of PEFT's: strut.json alone says what it is, while PEFT's own says nothing of a pairing", async () => {
    await inFolder(async (folder) => {
      for (const pairing of ["peft", "paper"] as const) {
        const tuned = stir(await adapt(base, randlora, { r: 3, randloraAlpha: 3, pairing }));
        await saveAdapter(tuned, `${folder}/${pairing}`);
        const loaded = await loadAdapter(base, `${folder}/${pairing}`, { methods: [randlora] });
        expect(attachedTo(loaded, "default")!.options).toEqual(attachedTo(tuned, "default")!.options);
        const [a, b] = [merge(loaded), merge(tuned)];
        for (const [path, { weight }] of a.layers) expect(toBytes(weight)).toEqual(toBytes(b.layers.get(path)!.weight));
      }
      expect((await readdir(`${folder}/paper`)).sort()).toEqual(["adapter_model.safetensors", "strut.json"]);
      expect((await readdir(`${folder}/peft`)).sort()).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
      expect(await readFile(`${folder}/peft/adapter_config.json`, "utf8")).not.toContain("pairing");
    });
  });

  it("converts to a LoRA of the matrices' own rank exactly, and merges", async () => {
    const tuned = stir(await adapt(base, randlora, { r: 3, randloraAlpha: 3 }));
    expect((await toLora(tuned, { rank: 8 })).error.total).toBeLessThan(1e-12);
    expect(merge(tuned).adapters.size).toBe(0);
  });
});
