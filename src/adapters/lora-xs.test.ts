import { rm, writeFile } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { baseOf, inFolder, scaffolds } from "../../test/laws/scaffolds.ts";
import { stir } from "../../test/laws/subject.ts";
import { openSafetensorsFile } from "../formats/safetensors-folder.ts";
import { singularValues } from "../linalg/index.ts";
import type { Model } from "../models/index.ts";
import type { Live, Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { dense } from "../operators/index.ts";
import { matmul, Rng, start, sub, transpose, type Tensor } from "../tensor/index.ts";
import { train } from "../training/index.ts";
import { adapt, adapterParameters, attachedTo, loadAdapter, lora, loraXs, saveAdapter, toLora } from "./index.ts";

let base: Model;
beforeAll(async () => {
  await start();
  base = (await baseOf(scaffolds[0]!)).model;
});

type Core = { B: Tensor; A: Tensor; R: Tensor };
const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);
const square = async (t: Tensor): Promise<number> => (await numbers(t)).reduce((total, x) => total + x * x, 0);
const live: Live = { training: false, step: 0, rng: new Rng(0), values: {} };
const siteOf = (W: Tensor): Site => ({ path: "q", depth: 0, role: "q", kind: "linear", out: W.shape[0]!, in: W.shape[1]!, weight: dense(W) });
const initial = async (site: Site, given: Record<string, unknown>): Promise<Core> =>
  loraXs.init(site, parseOptions(loraXs, given), { rng: new Rng(1), sites: [site], dtype: "f64" }, {});

describe("lora-xs", () => {
  it.each(["exact", "randomized"])("takes B = U_r, orthonormal, and B·A = the best approximation of W of rank r (%s)", async (svd) => {
    const W = new Rng(7).normal([24, 16], 1, "f64");
    const { B, A } = await initial(siteOf(W), { r: 4, svd });
    (await numbers(matmul(transpose(B), B))).forEach((x, i) => expect(x).toBeCloseTo(i % 5 === 0 ? 1 : 0, 10));
    const sigma = await numbers(await singularValues(W));
    const best = sigma.slice(4).reduce((total, x) => total + x * x, 0);
    const lost = await square(sub(W, matmul(B, A)));
    expect(lost).toBeGreaterThan(best * (1 - 1e-9));
    expect(lost).toBeLessThan(best * (1 + (svd === "exact" ? 1e-9 : 1e-4)));
    const rows = await numbers(matmul(A, transpose(A)));
    sigma.slice(0, 4).forEach((x, i) => expect(Math.sqrt(rows[i * 5]!)).toBeCloseTo(x, svd === "exact" ? 9 : 3));
  });

  it("draws R normally with standard deviation 1e-5, so that it starts next to the base", async () => {
    const { R } = await initial(siteOf(new Rng(7).normal([64, 64], 1, "f64")), { r: 64 });
    expect(Math.sqrt((await square(R)) / R.size) / 1e-5).toBeCloseTo(1, 1);
  });

  it("is (alpha / r)·B·R·A", async () => {
    const [site, o] = [siteOf(new Rng(7).normal([5, 4], 1, "f64")), parseOptions(loraXs, { r: 2, alpha: 6 })];
    const p = { ...(await initial(site, { r: 2 })), R: new Rng(3).normal([2, 2], 1, "f64") };
    const got = await numbers(loraXs.update!(p, site, o, live, {}).toDense());
    const expected = await numbers(matmul(matmul(p.B, p.R), p.A));
    got.forEach((x, i) => expect(x).toBeCloseTo(3 * expected[i]!, 12));
  });

  it("trains R alone", async () => {
    const tuned = await adapt(base, loraXs, { r: 3 });
    const set = attachedTo(tuned, "default")!;
    const trained = [...adapterParameters(set)].filter(([, p]) => p.trainable);
    expect(trained.every(([name, p]) => name.endsWith("/R") && p.size === 9)).toBe(true);
    expect(trained.length).toBe(set.entries.size);
    const before = new Map(await Promise.all([...adapterParameters(set)].map(async ([name, p]) => [name, await numbers(p)] as const)));
    await train(tuned, { batches: () => ({ ids: [[1, 2, 3, 4, 5]] }), steps: 2, learningRate: 1e-2 });
    for (const [name, p] of adapterParameters(set))
      if (name.endsWith("/R")) expect(await numbers(p), name).not.toEqual(before.get(name));
      else expect(await numbers(p), name).toEqual(before.get(name));
  });

  it("reads a checkpoint of the authors' code: a LORA directory of PEFT's with `_lora_latent_mapping.weight` behind the path", async () => {
    const tuned = stir(await adapt(base, loraXs, { r: 2, alpha: 3 }, { targets: ["q_proj"] }));
    await inFolder(async (folder) => {
      await saveAdapter(tuned, `${folder}/a`);
      const file = await openSafetensorsFile(`${folder}/a/adapter_model.safetensors`);
      const path = "base_model.model.model.layers.0.self_attn.q_proj";
      expect([...file.entries.keys()].filter((key) => key.startsWith(path)).sort()).toEqual([
        `${path}.lora_A.weight`,
        `${path}.lora_B.weight`,
        `${path}_lora_latent_mapping.weight`,
      ]);
      await file.close();
      await rm(`${folder}/a/strut.json`);
      await writeFile(
        `${folder}/a/adapter_config.json`,
        JSON.stringify({ peft_type: "LORA", r: 2, lora_alpha: 3, lora_dropout: 0, target_modules: ["q_proj"], init_lora_weights: true }),
      );
      const loaded = attachedTo(await loadAdapter(base, `${folder}/a`, { methods: [lora, loraXs] }), "default")!;
      expect(loaded.method).toBe("lora-xs");
      expect(loaded.options).toMatchObject({ r: 2, alpha: 3 });
      for (const [site, p] of attachedTo(tuned, "default")!.entries)
        for (const [name, value] of Object.entries(p)) expect(await numbers(loaded.entries.get(site)![name]!), name).toEqual(await numbers(value));
      expect([...adapterParameters(loaded)].filter(([, p]) => p.trainable).every(([name]) => name.endsWith("/R"))).toBe(true);
    });
  });

  it("converts to a LoRA of its rank exactly: R goes into B", async () => {
    expect((await toLora(stir(await adapt(base, loraXs, { r: 3 })), { rank: 3 })).error.total).toBeLessThan(1e-12);
  });
});
