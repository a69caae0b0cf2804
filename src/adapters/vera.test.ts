import { beforeAll, describe, expect, it } from "vitest";
import { baseOf, inFolder, scaffolds } from "../../test/laws/scaffolds.ts";
import { stir } from "../../test/laws/subject.ts";
import { openSafetensorsFile } from "../formats/safetensors-folder.ts";
import type { Model } from "../models/index.ts";
import { readTensor } from "../models/stored.ts";
import type { Live, Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { dense } from "../operators/index.ts";
import { Parameter, Rng, start, toBytes, zeros, type Tensor } from "../tensor/index.ts";
import { train } from "../training/index.ts";
import { adapt, adapterParameters, attachedTo, loadAdapter, saveAdapter, toLora, vera } from "./index.ts";

let base: Model;
beforeAll(async () => {
  await start();
  base = (await baseOf(scaffolds[0]!)).model;
});

const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);
const live: Live = { training: false, step: 0, rng: new Rng(0), values: {} };
const siteOf = (out: number, inner: number, path = "q_proj"): Site => ({
  path,
  depth: 0,
  role: path,
  kind: "linear",
  out,
  in: inner,
  weight: dense(zeros([out, inner])),
});
const contextOf = (sites: readonly Site[]) => ({ rng: new Rng(1), sites, dtype: "f32" as const });
const bankOf = async (sites: readonly Site[], given: Record<string, unknown>) => vera.shared!(sites, parseOptions(vera, given), contextOf(sites));
const bankBytes = (model: Model) => Object.entries(attachedTo(model, "default")!.shared).map(([key, value]) => [key, toBytes(value)]);

describe("vera", () => {
  it("draws the bank that PEFT draws again for its own file, in every bit, at the largest sides of all sites", async () => {
    const folder = "test/interop/peft/vera-noproj/regenerated_projections.safetensors";
    const file = await openSafetensorsFile(folder);
    const { A, B } = await bankOf([siteOf(64, 64), siteOf(32, 64), siteOf(172, 64)], { r: 32, projectionPrngKey: 5 });
    expect(toBytes(A)).toEqual(toBytes(await readTensor(file, "vera_A", "f32", folder)));
    expect(toBytes(B)).toEqual(toBytes(await readTensor(file, "vera_B", "f32", folder)));
    await file.close();
  });

  it("is diag(b)·B[:out]·diag(d)·A[:, :in], by loops", async () => {
    const [site, o] = [siteOf(3, 4), parseOptions(vera, { r: 5 })];
    const bank = await bankOf([site, siteOf(6, 2), siteOf(2, 7)], { r: 5 });
    const p = { b: new Rng(2).normal([3], 1), d: new Rng(3).normal([5], 1) };
    const [b, d, A, B] = await Promise.all([p.b, p.d, bank.A, bank.B].map(numbers));
    const got = await numbers(vera.update!(p, site, o, live, bank).toDense());
    for (let i = 0; i < 3; i++)
      for (let j = 0; j < 4; j++) {
        let sum = 0;
        for (let k = 0; k < 5; k++) sum += b![i]! * B![i * 5 + k]! * d![k]! * A![k * 7 + j]!;
        expect(got[i * 4 + j]).toBeCloseTo(sum, 5);
      }
  });

  it("starts with b zero and d at 0.1, so that the update is zero in every number", async () => {
    const [site, o] = [siteOf(6, 4), parseOptions(vera, { r: 3 })];
    const bank = await bankOf([site], { r: 3 });
    const p = await vera.init(site, o, contextOf([site]), bank);
    expect(await numbers(p.b)).toEqual(Array(6).fill(0));
    expect(await numbers(p.d)).toEqual(Array(3).fill(Math.fround(0.1)));
    expect((await numbers(vera.update!(p, site, o, live, bank).toDense())).every((x) => x === 0)).toBe(true);
  });

  it("holds one bank a model, however many sites there are, and counts and trains only b and d", async () => {
    const tuned = await adapt(base, vera, { r: 6 }, { targets: "all-linear" });
    const all = [...adapterParameters(attachedTo(tuned, "default")!)];
    expect(all.filter(([, p]) => !p.trainable).map(([name]) => name)).toEqual(["default/shared/A", "default/shared/B"]);
    const before = bankBytes(tuned);
    const { model } = await train(tuned, { batches: () => ({ ids: [[1, 2, 3, 4, 5]] }), steps: 3, learningRate: 1e-2 });
    expect(bankBytes(model)).toEqual(before);
    for (const { b, d } of attachedTo(model, "default")!.entries.values() as Iterable<{ b: Tensor; d: Tensor }>) {
      expect((await numbers(b)).some((x) => x !== 0)).toBe(true);
      expect((await numbers(d)).some((x) => x !== 0.1)).toBe(true);
    }
  });

  it.each([true, false])("with saveProjection %s the file holds the bank or not, and loading gives the same one", async (saveProjection) => {
    const tuned = stir(await adapt(base, vera, { r: 6, projectionPrngKey: 9, saveProjection }));
    await inFolder(async (folder) => {
      await saveAdapter(tuned, `${folder}/a`);
      const file = await openSafetensorsFile(`${folder}/a/adapter_model.safetensors`);
      expect([...file.entries.keys()].filter((key) => /vera_[AB]$/.test(key))).toEqual(saveProjection ? ["base_model.vera_A", "base_model.vera_B"] : []);
      await file.close();
      const loaded = await loadAdapter(base, `${folder}/a`, { methods: [vera] });
      expect(bankBytes(loaded)).toEqual(bankBytes(tuned));
      expect(Object.values(attachedTo(loaded, "default")!.shared).some((p) => (p as Parameter).trainable)).toBe(false);
    });
  });

  it("converts to a LoRA of its rank exactly: B = diag(b)·B, A = diag(d)·A", async () => {
    const { error } = await toLora(stir(await adapt(base, vera, { r: 3 })), { rank: 3 });
    expect(error.total).toBeLessThan(1e-12);
  });
});
