import { beforeAll, describe, expect, it } from "vitest";
import { numbers, stir } from "../../test/laws/subject.ts";
import { sample } from "../../test/support/gradients.ts";
import { linearSite, reloaded } from "../../test/support/site.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { forward, randomModel } from "../models/index.ts";
import type { LayerSpec } from "../models/model.ts";
import type { Live } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { noGrad, ones, Rng, scope, start, sumSquares, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { train } from "../training/index.ts";
import { adapt, attachedTo, merge } from "./index.ts";
import { bottleneck, serialDefaults } from "./bottleneck.ts";

beforeAll(async () => {
  await start();
});

const live: Live = { training: false, step: 0, rng: new Rng(4), values: {} };
const optionsOf = (given: object) => parseOptions(bottleneck, given as Record<string, unknown>);

const activations = {
  relu: (x: number) => Math.max(0, x),
  swish: (x: number) => x / (1 + Math.exp(-x)),
  gelu_new: (x: number) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};
const linearOf = (x: readonly number[], W: readonly number[], b: readonly number[]): number[] =>
  b.map((bias, o) => x.reduce((total, value, i) => total + value * W[o * x.length + i]!, bias));
const normOf = (x: readonly number[], weight: readonly number[], bias: readonly number[]): number[] => {
  const mean = x.reduce((a, b) => a + b, 0) / x.length;
  const variance = x.reduce((a, b) => a + (b - mean) ** 2, 0) / x.length;
  return x.map((value, i) => ((value - mean) / Math.sqrt(variance + 1e-5)) * weight[i]! + bias[i]!);
};

describe("bottleneck", () => {
  it.each(["relu", "swish", "gelu_new"] as const)("gives y + up(f(down(y))), normed before and after where told to: %s", async (nonLinearity) => {
    const site = linearSite(zeros([6, 4], "f64"));
    const o = optionsOf({ width: 3, nonLinearity, addLayerNormBefore: true, addLayerNormAfter: true });
    const shapes = { downWeight: [3, 6], downBias: [3], upWeight: [6, 3], upBias: [6], beforeWeight: [6], beforeBias: [6], afterWeight: [6], afterBias: [6] };
    const values = Object.fromEntries(Object.entries(shapes).map(([name, shape], seed) => [name, sample(shape, seed + 1)])) as Record<
      keyof typeof shapes,
      number[]
    >;
    const p = Object.fromEntries(Object.entries(shapes).map(([name, shape]) => [name, tensor(values[name as keyof typeof shapes], shape, "f64")]));
    const y = sample([6], 20);
    const input = normOf(y, values.beforeWeight, values.beforeBias);
    const middle = linearOf(input, values.downWeight, values.downBias).map(activations[nonLinearity]);
    const expected = normOf(linearOf(middle, values.upWeight, values.upBias), values.afterWeight, values.afterBias).map((value, i) => value + y[i]!);
    const found = await numbers(bottleneck.forward!(zeros([1, 4], "f64"), tensor(y, [1, 6], "f64"), p, site, o, live, {}));
    expected.forEach((value, i) => expect(found[i]).toBeCloseTo(value, 12));
  });

  it("draws both matrices with standard deviation .01 and zero biases, so that it starts near the identity", async () => {
    const site = linearSite(zeros([768, 4], "f64"));
    const p = (await bottleneck.init(site, optionsOf({}), { rng: new Rng(3), dtype: "f64", sites: [site] }, {})) as Record<string, Tensor>;
    expect(p["downWeight"]!.shape).toEqual([24, 768]);
    for (const name of ["downWeight", "upWeight"]) expect(Math.sqrt(sumSquares([p[name]!]) / p[name]!.size) / 0.01).toBeCloseTo(1, 1);
    const y = tensor(sample([1, 768], 2), [1, 768], "f64");
    const moved = await numbers(bottleneck.forward!(y, y, p, site, optionsOf({}), live, {}));
    const before = await numbers(y);
    const largest = Math.max(...moved.map((value, i) => Math.abs(value - before[i]!)));
    expect(largest).toBeGreaterThan(0);
    expect(largest).toBeLessThan(0.05);
  });

  it("sits behind attention and feed-forward part of every block, or one of them, and trains the norms with it", async () => {
    const gpt2 = randomModel({ model_type: "gpt2", vocab_size: 11, n_embd: 8, n_head: 2, n_layer: 1, n_positions: 8 }, (_, shape) => ones(shape));
    for (const [model, attention, feedForward, norms] of [
      [tinyModel(), "self_attn.o_proj", "mlp.down_proj", 5],
      [gpt2, "attn.c_proj", "mlp.c_proj", 3],
    ] as const)
      for (const given of [{}, { mhAdapter: false }, { outputAdapter: false, unfreezeLayerNorms: false }]) {
        const adapted = await adapt(model, bottleneck, { width: 2, ...given });
        const { entries, copies } = attachedTo(adapted, "default")!;
        const ends = [...("mhAdapter" in given ? [] : [attention]), ...("outputAdapter" in given ? [] : [feedForward])];
        const expected = model.sites.map(({ path }) => path).filter((path) => ends.some((end) => path.endsWith(end)));
        expect([...entries.keys()].sort()).toEqual(expected.sort());
        expect([...copies.keys()].filter((name) => name.endsWith("weight"))).toHaveLength("unfreezeLayerNorms" in given ? 0 : norms);
      }
  });

  it("knows the sublayers of BERT and T5 by their names, and not T5's cross-attention", () => {
    const named = (...paths: string[]): LayerSpec[] => paths.map((path) => ({ path, kind: "linear", shape: [8, 8], bias: true, depth: 0 }));
    const bert = named("encoder.layer.0.attention.self.query", "encoder.layer.0.attention.output.dense", "encoder.layer.0.output.dense");
    const t5 = named("block.0.layer.0.SelfAttention.o", "block.0.layer.1.EncDecAttention.o", "block.0.layer.2.DenseReluDense.wo");
    const targets = (layers: LayerSpec[], given: object) => serialDefaults(optionsOf(given), layers).targets;
    expect(targets(bert, {})).toEqual(["encoder.layer.0.attention.output.dense", "encoder.layer.0.output.dense"]);
    expect(targets(bert, { mhAdapter: false })).toEqual(["encoder.layer.0.output.dense"]);
    expect(targets(t5, {})).toEqual(["block.0.layer.0.SelfAttention.o", "block.0.layer.2.DenseReluDense.wo"]);
  });

  it("is no matrix: merging ends in a sentence", async () => {
    await expect(adapt(tinyModel(), bottleneck, { width: 2 }).then((model) => merge(model))).rejects.toThrow(/merge/);
  });

  it("trains, and is the same after saving and loading, norms included", async () => {
    const base = tinyModel();
    const adapted = await adapt(base, bottleneck, { width: 2, addLayerNormBefore: true });
    const losses: number[] = [];
    const { model } = await train(adapted, {
      batches: () => tinyBatches(1)[0]!,
      steps: 30,
      learningRate: 1e-2,
      seed: 1,
      onEvent: (event) => event.event === "step" && losses.push(event.loss),
    });
    expect(losses.at(-1)).toBeLessThan(0.95 * losses[0]!);
    const { model: again, names } = await reloaded(base, model, bottleneck);
    expect(names).toContain("base_model.model.model.layers.1.mlp.down_proj.adapter_down.weight");
    const ids = tensor([3, 1, 4, 1, 5], [1, 5], "i32");
    const answer = (of: typeof model) => numbers(noGrad(() => scope(() => forward(of, ids))));
    expect(await answer(again)).toEqual(await answer(model));
    expect(await answer(again)).not.toEqual(await answer(base));
  });

  it.each([
    [{}, /reductionFactor 32 leaves no bottleneck at model.layers.0.self_attn.o_proj, whose output is 8 wide/],
    [{ width: 0 }, /width/],
    [{ width: 2, nonLinearity: "tanh" }, /nonLinearity/],
    [{ width: 2, mhAdapter: false, outputAdapter: false }, /targets \[\] match no layer/],
  ])("refuses %o in a sentence", async (given, sentence) => {
    await expect(adapt(tinyModel(), bottleneck, given as never)).rejects.toThrow(sentence);
  });
});
