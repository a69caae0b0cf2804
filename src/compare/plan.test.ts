import { mkdtemp, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { adapt, lora, saveAdapter } from "../adapters/index.ts";
import type { Adapter } from "../adapters/index.ts";
import { loadModel, type Model } from "../models/index.ts";
import { start } from "../tensor/index.ts";
import { chooseMethods, type Choice } from "./methods.ts";
import { planMethod } from "./plan.ts";

let model: Model;
beforeAll(async () => {
  await start();
  model = await loadModel("data/lm/stories260K");
});

const plan = async (list: string, limit: number, of: "parameters" | "bytes" = "parameters") =>
  planMethod(model, (await chooseMethods(list))[0]!, { targets: undefined }, { of, limit });

/** q_proj is 64×64 and v_proj 32×64, in five layers. */
const PER_RANK = 5 * (64 + 64 + 32 + 64);

describe("a method's size for a budget", () => {
  it("is the largest that fits, to the last parameter", async () => {
    expect(await plan("lora", 3 * PER_RANK)).toMatchObject({ options: { r: 3 }, size: { name: "r", value: 3 }, stored: 3 * PER_RANK });
    expect(await plan("lora", 3 * PER_RANK - 1)).toMatchObject({ options: { r: 2 }, stored: 2 * PER_RANK });
    expect(await plan("dora", 3 * PER_RANK)).toMatchObject({ options: { r: 2 }, stored: 2 * PER_RANK + 5 * (64 + 32) });
  });

  it("is the largest that fits, to the last byte of the file", async () => {
    const folder = join(await mkdtemp(join(tmpdir(), "strut-plan-")), "adapter");
    await saveAdapter(await adapt(model, lora, { r: 3 }), folder);
    const { size } = await stat(join(folder, "adapter_model.safetensors"));
    expect(await plan("lora", size, "bytes")).toMatchObject({ options: { r: 3 }, stored: size });
    expect(await plan("lora", size - 1, "bytes")).toMatchObject({ options: { r: 2 } });
  });

  it("ends where the matrices do", async () => {
    expect(await plan("lora", 1e9)).toMatchObject({ options: { r: 32 }, stored: 32 * PER_RANK });
  });

  it("is left as given, with a note where that is above the budget", async () => {
    expect(await plan("lora:r=4,alpha=16", 5 * PER_RANK)).toEqual(expect.not.objectContaining({ note: expect.anything() }));
    expect(await plan("lora:lora_alpha=16,r=4", 3 * PER_RANK)).toMatchObject({
      options: { r: 4, lora_alpha: 16 },
      stored: 4 * PER_RANK,
      note: "above the budget",
    });
  });

  it("is fixed where no option sets it", async () => {
    const method = {
      ...lora,
      options: lora.options.omit({ r: true }),
      init: (site: never, o: object, context: never) => lora.init(site, { ...o, r: 2 } as never, context, {}),
    } as unknown as Adapter;
    const choice: Choice = { label: "fixed", method, options: {} };
    const planned = await planMethod(model, choice, { targets: undefined }, { of: "parameters", limit: 100 });
    expect(planned).toMatchObject({ stored: 2 * PER_RANK, note: "fixed size, above the budget" });
    expect(planned).not.toHaveProperty("size");
  });

  it("does not exist where even the smallest is too large, and the row says so", async () => {
    expect(await plan("lora", 100)).toMatchObject({
      refused: "even r = 1 stores 1,120 parameters, more than the budget of 100: a budget of 1,120 would take it",
    });
  });

  it("takes ranks that follow it along, so that PST fits where its scores' rank is not given", async () => {
    expect(await plan("pst", 3 * PER_RANK)).toMatchObject({ options: { weightRank: 1 }, stored: 3 * PER_RANK });
    expect(await plan("pst", 8 * PER_RANK)).toMatchObject({ options: { weightRank: 3 }, stored: 7 * PER_RANK });
    expect(await plan("pst:maskRank=8", 3 * PER_RANK)).toMatchObject({
      refused: "even weightRank = 1 stores 11,200 parameters, more than the budget of 3,360: a budget of 11,200 would take it",
    });
  });

  it("of a method that grows is that of its end", async () => {
    // a component has a number of its own beside its row and column
    expect(await plan("increlora", 3 * (PER_RANK + 10))).toMatchObject({ size: { name: "targetRank", value: 3 }, stored: 3 * (PER_RANK + 10) });
    expect(await plan("increlora:target_rank=2", 1e4)).toMatchObject({ options: { target_rank: 2 }, stored: 2 * (PER_RANK + 10) });
  });
});

describe("a list of methods", () => {
  it("is every adapter of the catalog where none is given", async () => {
    const all = await chooseMethods();
    expect(all.map(({ label }) => label)).toEqual(expect.arrayContaining(["dora", "lora", "rslora"]));
    expect(all.every(({ method }) => method.family === "adapters")).toBe(true);
  });

  it("holds options behind a colon, with numbers, booleans and words", async () => {
    const chosen = await chooseMethods("dora, lora:alpha=16,useRslora=true, initLoraWeights=gaussian,rslora");
    expect(chosen.map(({ label, options }) => [label, options])).toEqual([
      ["dora", {}],
      ["lora:alpha=16,useRslora=true,initLoraWeights=gaussian", { alpha: 16, useRslora: true, initLoraWeights: "gaussian" }],
      ["rslora", {}],
    ]);
  });

  it.each([
    ["lorra", 'there is no adapter "lorra"', "Did you mean lora?"],
    ["adamw", "adamw is one of optimizers, not an adapter", /^Adapters: .*dora/],
    ["lora,lora", "the method lora stands twice in the list", "Name it once."],
    ["lora:ranc=4", "lora has no option ranc", /^Its options are|^Did you mean/],
    ["lora:r=none", /^lora: r is "none": /, /^r: rank of the update/],
    ["lora:r", 'lora:r: "r" is no option', "Write it as lora:NAME=VALUE,NAME=VALUE."],
    [" , ", "the list of methods is empty", "Leave it out to compare every adapter."],
  ])("%s ends in a sentence", async (list, message, hint) => {
    const error = await chooseMethods(list).catch((problem: unknown) => problem);
    expect(error).toMatchObject({ name: "StrutError" });
    expect((error as Error).message).toMatch(message);
    expect((error as { hint: string }).hint).toMatch(hint);
  });
});
