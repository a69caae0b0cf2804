import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, it } from "vitest";
import { adapt, attachedTo, coverage, lora, type AdaptOptions } from "../adapters/index.ts";
import { loadModel, type Model } from "../models/index.ts";
import { start } from "../tensor/index.ts";
import { inFolder } from "../../test/laws/scaffolds.ts";
import { calibration, ranksOf, rowsOf } from "../../test/support/starts.ts";
import { throughDisk } from "../../test/support/through-disk.ts";
import { tinyModel } from "../../test/support/tiny-model.ts";
import { eva, saveEvaState } from "./index.ts";

let base: Model;

beforeAll(async () => {
  await start();
  base = await loadModel("data/lm/stories260K");
});

const targets = ["q_proj", "v_proj", "down_proj"];
type Options = Readonly<Record<string, unknown>>;
const begin = (given: Options, options: Options, more: Partial<AdaptOptions> = {}): Promise<Model> =>
  adapt(base, lora, given, { targets, calibration, initializer: { method: eva, options }, ...more });
const { ids } = JSON.parse(readFileSync("test/golden/eva.json", "utf8")) as { readonly ids: number[][][] };
const plain = ids.map((rows) => ({ ids: rows }));

describe("files of EVA", () => {
  it("writes patterns by full name and the modules that are left, and reads them back", async () => {
    // two layers that read nothing but zeros get no rank: the embedding's rows of these ids are blank
    const tiny = tinyModel();
    const model = await adapt(
      tiny,
      lora,
      { r: 1, alpha: 3 },
      {
        targets: "all-linear",
        calibration: [{ ids: [Array.from({ length: 12 }, (_, i) => i)] }],
        initializer: { method: eva, options: { rho: 4, metric: "raw" } },
      },
    );
    const set = attachedTo(model, "default")!;
    const dropped = set.coverage.matched.length;
    expect(dropped, "some sites have no rank").toBeLessThan(14);
    const { loaded, json } = await throughDisk(model, tiny, [lora]);
    const config = json["adapter_config.json"]!;
    expect(config["target_modules"]).toEqual(set.coverage.matched);
    expect(config["init_lora_weights"]).toBe("eva");
    expect(config["eva_config"]).toEqual({ rho: 4, tau: 0.99, use_label_mask: true, label_mask_value: -100, whiten: false, adjust_scaling_factors: true });
    expect(ranksOf(loaded)).toEqual(ranksOf(model));
    expect(Object.fromEntries(attachedTo(loaded, "default")!.siteOptions)).toMatchObject(
      Object.fromEntries([...set.siteOptions].filter(([path]) => set.entries.has(path)).map(([path, { r, alpha }]) => [path, { r, alpha }])),
    );
  });

  it("names many modules that are left by their shortest endings, which select them and no others", async () => {
    const model = await begin({ r: 1 }, { rho: 8, metric: "raw" }, { targets: "all-linear", calibration: plain });
    const { matched } = attachedTo(model, "default")!.coverage;
    expect(matched.length).toBeGreaterThanOrEqual(20);
    expect(matched.length).toBeLessThan(35);
    const { json } = await throughDisk(model, base, [lora]);
    const names = json["adapter_config.json"]!["target_modules"] as string[];
    expect(names.length).toBeLessThan(matched.length);
    expect(coverage(base, lora, { targets: names }).matched.toSorted()).toEqual(matched.toSorted());
  });

  it("starts from components that were saved, with their ranks and without batches", async () => {
    await inFolder(async (folder) => {
      const file = `${folder}/components.safetensors`;
      const first = await begin({ r: 1, alpha: 3 }, { rho: 8, metric: "raw" });
      await saveEvaState(first, file);
      const read = (path: string, more: Partial<AdaptOptions> = {}): Promise<Model> =>
        adapt(base, lora, { r: 1, alpha: 3 }, { targets, initializer: { method: eva, options: { state: path } }, ...more });
      const second = await read(file);
      expect(Object.values(ranksOf(second)).length, "a site without a rank stays without").toBeLessThan(15);
      expect(await rowsOf(second)).toEqual(await rowsOf(first));
      expect(attachedTo(second, "default")!.siteOptions).toEqual(attachedTo(first, "default")!.siteOptions);
      await expect(read(file, { targets: ["gate_proj"] })).rejects.toThrow(/has components of none of the targets/);
      await saveEvaState(await adapt(tinyModel(), lora, { r: 2 }, { targets: ["q_proj"] }), file);
      await expect(read(file)).rejects.toThrow(/has \[2,8\] as model.layers.0.self_attn.q_proj.eva, expected rows of 64 features/);
      await expect(saveEvaState(base, file)).rejects.toThrow(/no adapter named default with factors A/);
    });
  });
});
