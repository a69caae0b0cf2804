import { beforeAll, describe, expect, it } from "vitest";
import { numbers, reloaded, tinyResnet } from "../../test/support/site.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { forward, parameters, randomModel, unfreeze, type Model } from "../models/index.ts";
import { noGrad, Rng, start, tensor } from "../tensor/index.ts";
import { train, type TrainOptions } from "../training/index.ts";
import { adapt, adapterParameters, attachedTo, bitfit, fullFineTuning, merge } from "./index.ts";

beforeAll(() => start());

const settings: TrainOptions = { batches: tinyBatches(3), steps: 5, learningRate: 0.01, weightDecay: 0.1 };
const logits = (model: Model): Promise<number[]> => numbers(noGrad(() => forward(model, tensor([3, 1, 4, 1, 5], [1, 5], "i32"))));
const trainedOf = (model: Model): string[] => [...adapterParameters(attachedTo(model, "default")!).keys()].map((name) => name.slice("default/".length));
const leaves = async (model: Model): Promise<Map<string, number[]>> => {
  const found = new Map<string, number[]>();
  for (const [name, w] of parameters(model)) if (!name.includes("/")) found.set(name, await numbers(w));
  return found;
};
const gpt2 = (): Model =>
  randomModel({ architectures: ["GPT2LMHeadModel"], model_type: "gpt2", vocab_size: 16, n_embd: 8, n_head: 2, n_layer: 1, n_positions: 8 }, (name, shape) =>
    new Rng(2).fork(name).normal(shape, 0.3),
  );
const without = (model: Model): Model => ({ ...model, active: [] });

describe("full fine-tuning as an adapter", () => {
  it("ends, without targets, where the trained model itself does: every weight, bias and norm", async () => {
    for (const make of [tinyModel, gpt2]) {
      const adapted = await adapt(make(), fullFineTuning);
      await train(adapted, settings);
      const { model } = await train(unfreeze(make()), settings);
      expect(await logits(adapted)).toEqual(await logits(model));
      const [merged, expected] = [await leaves(merge(adapted)), await leaves(model)];
      expect([...merged.keys()].sort()).toEqual([...expected.keys()].sort());
      for (const [name, values] of expected) expect(merged.get(name), name).toEqual(values);
    }
  });

  it("leaves the base as it was", async () => {
    const adapted = await adapt(tinyModel(), fullFineTuning);
    await train(adapted, settings);
    expect(await logits(adapted)).not.toEqual(await logits(tinyModel()));
    expect(await logits(without(adapted))).toEqual(await logits(tinyModel()));
  });

  it("trains the targeted matrices alone where there are targets, with their biases", async () => {
    expect(trainedOf(await adapt(tinyModel(), fullFineTuning, {}, { targets: ["q_proj"] }))).toEqual([
      "model.layers.0.self_attn.q_proj.weight",
      "model.layers.1.self_attn.q_proj.weight",
    ]);
    expect(trainedOf(await adapt(gpt2(), fullFineTuning, {}, { targets: ["c_attn"] })).sort()).toEqual(
      ["h.0.attn.c_attn.bias", "h.0.attn.c_attn.weight"].map((name) => `transformer.${name}`),
    );
  });

  it("keeps tied embedding and head one matrix", async () => {
    const adapted = await adapt(tinyModel(), fullFineTuning);
    await train(adapted, settings);
    const { layers } = merge(adapted);
    expect(await numbers(layers.get("lm_head")!.weight)).toEqual(await numbers(layers.get("model.embed_tokens")!.weight));
  });

  it("is saved and loaded, of convolutions too", async () => {
    const adapted = await adapt(gpt2(), fullFineTuning);
    await train(adapted, settings);
    expect(await logits((await reloaded(gpt2(), adapted, fullFineTuning)).model)).toEqual(await logits(adapted));
    const images = await adapt(tinyResnet(), fullFineTuning);
    for (const w of adapterParameters(attachedTo(images, "default")!).values()) w.assign(new Rng(1).fork(w.name).normal(w.shape, 0.3, "f64"));
    const answer = (model: Model) => numbers(noGrad(() => forward(model, new Rng(3).normal([2, 3, 8, 8], 1, "f64"))));
    const expected = await answer(images);
    expect(expected).not.toEqual(await answer(tinyResnet()));
    expect(await answer((await reloaded(tinyResnet(), images, fullFineTuning)).model)).toEqual(expected);
  });

  it("has no options", async () => {
    await expect(adapt(tinyModel(), fullFineTuning, { r: 4 })).rejects.toThrow(/r/);
  });
});

describe("BitFit", () => {
  it("trains every bias and nothing else, which after training are all that differs from the base", async () => {
    const adapted = await adapt(gpt2(), bitfit);
    expect(trainedOf(adapted).every((name) => name.endsWith(".bias"))).toBe(true);
    await train(adapted, settings);
    const [before, after] = [await leaves(gpt2()), await leaves(merge(adapted))];
    for (const [name, values] of before)
      if (name.endsWith(".bias")) expect(after.get(name), name).not.toEqual(values);
      else expect(after.get(name), name).toEqual(values);
  });

  it("is full fine-tuning in which only biases move", async () => {
    const adapted = await adapt(gpt2(), bitfit);
    await train(adapted, settings);
    const { model } = await train(
      unfreeze(gpt2(), (name) => name.endsWith(".bias")),
      settings,
    );
    expect(await logits(adapted)).toEqual(await logits(model));
  });

  it("is saved and loaded", async () => {
    const adapted = await adapt(gpt2(), bitfit);
    await train(adapted, settings);
    const { model, names } = await reloaded(gpt2(), adapted, bitfit);
    expect(names.every((name) => name.endsWith(".bias"))).toBe(true);
    expect(await logits(model)).toEqual(await logits(adapted));
  });

  it("says so where a model has no biases", async () => {
    await expect(adapt(tinyModel(), bitfit)).rejects.toThrow("bitfit trains biases, and none of the modules has any");
  });
});
