import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { activate, combine, loadAdapter, lora, merge, type Adapter, type Combination, type CombineOptions } from "../../src/adapters/index.ts";
import { openSafetensorsFile } from "../../src/formats/index.ts";
import { loadModel, type Model } from "../../src/models/index.ts";
import { start, tensor, type Tensor } from "../../src/tensor/index.ts";
import { logitDifference, type Inputs, type Logits } from "./logits.ts";

// Results of add_weighted_adapter in PEFT 0.21.0; masks.safetensors holds what dare drew there.
const root = "test/interop/combine";
const methods = [lora as unknown as Adapter];

interface Expected {
  adapters: string[];
  weights: number[];
  args: { combination_type: Combination; density?: number; svd_rank?: number; svd_clamp?: number; majority_sign_method?: "total" | "frequency" };
  inputs: Inputs;
  logits: Logits;
  error?: string;
}

const expectedOf = async (name: string): Promise<Expected> => JSON.parse(await readFile(join(root, name, "expected.json"), "utf8")) as Expected;
let model: Model;

beforeAll(async () => {
  await start();
  model = await loadModel("data/lm/stories260K");
  for (const name of await readdir(join(root, "in"))) model = await loadAdapter(model, join(root, "in", name), { methods, name });
});

async function masksOf(name: string): Promise<CombineOptions["mask"]> {
  const file = await openSafetensorsFile(join(root, name, "masks.safetensors"));
  const masks = new Map<string, Tensor>();
  for (const [key, { shape }] of file.entries) masks.set(key, tensor(Array.from(await file.read(key)), shape));
  await file.close();
  return ({ path, part, adapter }) => masks.get(`${path}.${part === "delta" ? "delta" : `lora_${part}`}.${adapter}`)!;
}

async function combined(name: string, { adapters, weights, args }: Expected): Promise<Model> {
  return combine(model, adapters, weights, {
    as: "out",
    type: args.combination_type,
    ...(args.density === undefined ? {} : { density: args.density }),
    ...(args.svd_rank === undefined ? {} : { rank: args.svd_rank }),
    ...(args.svd_clamp === undefined ? {} : { clamp: args.svd_clamp }),
    ...(args.majority_sign_method === undefined ? {} : { majoritySign: args.majority_sign_method }),
    ...(args.combination_type.startsWith("dare") ? { mask: (await masksOf(name))! } : {}),
  });
}

/** PEFT keeps use_rslora of the first adapter and is √r off: ours is the weighted sum. */
const wrong = ["cat-rslora", "linear-rslora-mixed"];
/** Which numbers are beyond the quantile depends on the signs of singular vectors, which are free. */
const free = ["svd-clamp"];

describe("several adapters as one, beside PEFT", async () => {
  const cases = (await readdir(root)).filter((name) => name !== "in" && name !== "error-linear-ranks");

  it.each(cases.filter((name) => !wrong.includes(name) && !free.includes(name)))("%s gives PEFT's logits", async (name) => {
    const expected = await expectedOf(name);
    expect(await logitDifference(await combined(name, expected), expected.inputs, expected.logits)).toBeLessThan(1e-4);
  });

  it("cat of rsLoRAs is the weighted sum of the updates, where PEFT is √6 too large", async () => {
    const expected = await expectedOf("cat-rslora");
    const ours = merge(await combined("cat-rslora", expected));
    const [first, second] = ["rs1", "rs2"].map((name) => merge(activate(model, [name])));
    for (const [path, { weight }] of model.layers) {
      const values = await Promise.all(
        [weight, first!.layers.get(path)!.weight, second!.layers.get(path)!.weight, ours.layers.get(path)!.weight].map(async (w) =>
          [...(await w.data())].map(Number),
        ),
      );
      const [base, one, two, out] = values as [number[], number[], number[], number[]];
      out.forEach((value, i) => expect(Math.abs(value - base[i]! - 0.7 * (one[i]! - base[i]!) - 0.4 * (two[i]! - base[i]!))).toBeLessThan(1e-6));
    }
    expect(await logitDifference(await combined("cat-rslora", expected), expected.inputs, expected.logits), "PEFT's stored logits").toBeGreaterThan(0.1);
  });

  it("linear of an rsLoRA and a LoRA has scale 1, where PEFT has √4", async () => {
    const expected = await expectedOf("linear-rslora-mixed");
    const set = (await combined("linear-rslora-mixed", expected)).adapters.get("out")!;
    expect([set.options["useRslora"], set.options["alpha"]]).toEqual([false, set.options["r"]]);
  });

  it("svd with a clamp ends both factors at one quantile of their numbers", async () => {
    const expected = await expectedOf("svd-clamp");
    const set = (await combined("svd-clamp", { ...expected, args: { ...expected.args, svd_clamp: 0.7 } })).adapters.get("out")!;
    for (const params of set.entries.values()) {
      const numbers = async (name: string): Promise<number[]> => [...(await params[name]!.data())].map(Number);
      const [up, down] = [await numbers("B"), await numbers("A")];
      const [most, least] = [Math.max(...up), Math.min(...up)];
      expect([Math.max(...down), Math.min(...down)]).toEqual([most, least]);
      expect(least).toBe(-most);
      const share = [...up, ...down].filter((x) => x === most).length / (up.length + down.length);
      expect(Math.abs(share - 0.3)).toBeLessThan(0.01);
    }
  });

  it("ends in a sentence for what does not go together", async () => {
    const { adapters, weights } = await expectedOf("error-linear-ranks");
    await expect(combine(model, adapters, weights, { as: "x", type: "linear" })).rejects.toThrow(/linear needs adapters of one rank, .* they have 4 and 6/);
    await expect(combine(model, ["a", "b"], [1], { as: "x" })).rejects.toThrow(/2 adapters and 1 weights/);
    await expect(combine(model, ["a", "b"], [1, 1], { as: "x", type: "ties" })).rejects.toThrow(/ties needs a density/);
    await expect(combine(model, ["a", "b"], [1, Number.NaN], { as: "x" })).rejects.toThrow(/must be finite/);
    await expect(combine(model, ["a", "zz"], [1, 1], { as: "x" })).rejects.toThrow(/no adapter named zz/);
    await expect(combine(model, ["a", "b"], [1, 1], { as: "x", type: "sum" as never })).rejects.toThrow(/there is no combination "sum"/);
  });

  it("dare keeps about the given share, the same for the same seed", async () => {
    const draw = async (seed: number): Promise<number[]> =>
      [
        ...(await (
          await combine(model, ["a", "b"], [1, 0], { as: "x", type: "dare_linear", density: 0.3, seed })
        ).adapters
          .get("x")!
          .entries.values()
          .next()
          .value!["A"]!.data()),
      ].map(Number);
    const [one, again, other] = [await draw(1), await draw(1), await draw(2)];
    expect(one).toEqual(again);
    expect(one).not.toEqual(other);
    const kept = one.filter((x) => x !== 0).length / one.length;
    expect(Math.abs(kept - 0.3)).toBeLessThan(0.1);
  });
});
