import { beforeAll, describe, expect, it } from "vitest";
import { cnn } from "../../test/support/cnn.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { forward, parameters, unfreeze, type Model } from "../models/index.ts";
import type { Batch, Regime, Task } from "../nn/contracts.ts";
import { sgd } from "../optimizers/index.ts";
import { meanSquaredError, noGrad, Rng, scale, scope, start, sumSquares, tensor, type Tensor } from "../tensor/index.ts";
import type { TrainingEvent } from "./events.ts";
import { classification, languageModelling, regression, train, type TrainOptions } from "./index.ts";

beforeAll(() => start());

const shapes: Record<string, number[]> = {
  "conv1.weight": [8, 3, 3, 3],
  "conv1.bias": [8],
  "conv2.weight": [12, 4, 3, 3],
  "conv3.weight": [16, 12, 1, 1],
  "conv3.bias": [16],
  "fc.weight": [10, 16],
  "fc.bias": [10],
};
const network = (): Model => unfreeze(cnn(new Map(Object.entries(shapes).map(([name, shape]) => [name, new Rng(3).fork(name).normal(shape, 0.3)]))));
const values = async (x: Tensor): Promise<number[]> => [...((await x.data()) as Float32Array)];
const weights = async (model: Model): Promise<number[]> => (await Promise.all([...parameters(model).values()].map(values))).flat();

/** Images with classes and with outputs to reach, so that both tasks can read them. */
function batch(rows: number, seed: number, labels: readonly number[] = Array.from({ length: rows }, (_, i) => (3 * i + seed) % 10)): Batch {
  const rng = new Rng(seed);
  return { ids: [], inputs: { x: rng.fork("x").normal([rows, 3, 6, 6], 1), y: rng.fork("y").normal([rows, 10], 1), labels: tensor(labels, [rows], "i32") } };
}

const outputs = async (model: Model, { inputs }: Batch): Promise<number[]> => values(noGrad(() => forward(model, inputs!["x"]!)));

/** Computed here from the outputs: the mean of −log softmax at the labels that are not −1. */
async function entropyOf(model: Model, one: Batch): Promise<number> {
  const [logits, labels] = [await outputs(model, one), await values(one.inputs!["labels"]!)];
  const terms = labels.flatMap((label, row) => {
    const own = logits.slice(10 * row, 10 * row + 10);
    return label < 0 ? [] : [Math.log(own.reduce((total, x) => total + Math.exp(x), 0)) - own[label]!];
  });
  return terms.reduce((a, b) => a + b) / terms.length;
}

async function squaredErrorOf(model: Model, one: Batch): Promise<number> {
  const [found, wanted] = [await outputs(model, one), await values(one.inputs!["y"]!)];
  return found.reduce((total, x, i) => total + (x - wanted[i]!) ** 2, 0) / found.length;
}

async function events(options: TrainOptions, model = network()): Promise<TrainingEvent[]> {
  const told: TrainingEvent[] = [];
  await train(model, { learningRate: 0.01, ...options, onEvent: (event) => told.push(event) });
  return told;
}

const losses = (told: readonly TrainingEvent[], of: "step" | "evaluation"): number[] => told.flatMap((event) => (event.event === of ? [event.loss] : []));

describe("a task", () => {
  it("is language modelling, bit for bit, unless another is named", async () => {
    const options = { batches: tinyBatches(3), steps: 4, evaluate: { every: 2, data: tinyBatches(2, 9) } };
    const [plain, named] = [unfreeze(tinyModel()), unfreeze(tinyModel())];
    const [told, again] = [await events(options, plain), await events({ ...options, task: languageModelling }, named)];
    expect([losses(again, "step"), losses(again, "evaluation")]).toEqual([losses(told, "step"), losses(told, "evaluation")]);
    expect(await weights(named)).toEqual(await weights(plain));
  });

  it("has a perplexity only where it predicts text", async () => {
    const perplexities = (told: readonly TrainingEvent[]): unknown[] => told.flatMap((event) => (event.event === "evaluation" ? [event.perplexity] : []));
    const text = await events({ batches: tinyBatches(3), steps: 2, evaluate: { every: 2, data: tinyBatches(2, 9) } }, unfreeze(tinyModel()));
    expect(perplexities(text)).toEqual(losses(text, "evaluation").map(Math.exp));
    expect(perplexities(await events({ task: regression, batches: [batch(8, 1)], steps: 2, evaluate: { every: 2, data: [batch(8, 2)] } }))).toEqual([
      undefined,
    ]);
  });

  it.each([
    ["classification", classification, entropyOf],
    ["regression", regression, squaredErrorOf],
  ] as const)("%s minimises its loss, which is what is reported", async (_name, task, expected) => {
    const [one, fresh, trained] = [batch(8, 1), network(), network()];
    const told = losses(await events({ task, batches: [one], steps: 60 }, trained), "step");
    expect(told[0]).toBeCloseTo(await expected(fresh, one), 5);
    expect(await expected(trained, one)).toBeLessThan(0.7 * told[0]!);
  });

  it("is what evaluation measures, each batch by its scored targets", async () => {
    const data = [batch(6, 2, [1, -1, -1, 4, -1, 0]), batch(2, 3)];
    const model = network();
    const told = await events({ task: classification, batches: [batch(4, 1)], steps: 1, learningRate: 0, evaluate: { every: 1, data } }, model);
    const [first, second] = [await entropyOf(model, data[0]!), await entropyOf(model, data[1]!)];
    expect(losses(told, "evaluation")[0]).toBeCloseTo((3 * first + 2 * second) / 5, 5);
    expect(told.find(({ event }) => event === "evaluation")).toMatchObject({ tokens: 5 });
  });

  it("ends early by its evaluations", async () => {
    const options = { task: regression, batches: [batch(4, 1)], learningRate: 0, evaluate: { every: 1, data: [batch(4, 2)] } };
    const told = await events({ ...options, steps: 9, earlyStopping: { patience: 2 } });
    expect(told.at(-1)).toMatchObject({ event: "end", reason: "early-stopping", step: 3 });
  });

  it("averages the gradients of accumulated batches", async () => {
    const [a, b] = [batch(4, 1), batch(4, 2)];
    const both = Object.fromEntries(
      await Promise.all(
        Object.entries(a.inputs!).map(async ([name, x]) => {
          const all = [...(await values(x)), ...(await values(b.inputs![name]!))];
          return [name, tensor(all, [8, ...x.shape.slice(1)], x.dtype as "f32" | "i32")] as const;
        }),
      ),
    );
    const [split, joined] = [network(), network()];
    const step = { task: classification, optimizer: sgd, learningRate: 1, steps: 1 };
    await train(split, { ...step, batches: [a, b], accumulate: 2 });
    await train(joined, { ...step, batches: [{ ids: [], inputs: both }] });
    const [found, expected] = [await weights(split), await weights(joined)];
    found.forEach((x, i) => expect(x).toBeCloseTo(expected[i]!, 5));
  });

  it("is what a regime's passes run, on validation batches too, with gradients", async () => {
    const [own, validation, model] = [batch(4, 1), batch(4, 2), network()];
    const seen: number[] = [];
    const regime: Regime = {
      wants: ["validation"],
      async beforeForward(t) {
        seen.push((await t.pass(t.validationBatch()!)).loss);
        const { loss, gradients } = await t.pass(t.batch, { backward: true });
        seen.push(loss, sumSquares([...gradients!.values()]));
      },
    };
    await train(model, { task: regression, batches: [own], validation: [validation], steps: 1, learningRate: 0, regimes: [regime] });
    expect(seen[0]).toBeCloseTo(await squaredErrorOf(model, validation), 5);
    expect(seen[1]).toBeCloseTo(await squaredErrorOf(model, own), 5);
    expect(seen[2]).toBeGreaterThan(0);
  });

  it("may be one's own, such as the distance to a teacher's outputs", async () => {
    const teacher = network();
    const task: Task = {
      name: "imitation",
      loss: (model, { inputs }, run) => {
        const found = forward(model as Model, inputs!["x"]!, run);
        const wanted = noGrad(() => scope(() => forward(teacher, inputs!["x"]!)));
        return meanSquaredError(found, wanted);
      },
      scored: ({ inputs }) => inputs!["x"]!.shape[0]!,
    };
    const student = network();
    for (const w of parameters(student).values()) w.assign(noGrad(() => scope(() => scale(w, 0.8))));
    const told = losses(await events({ task, batches: [batch(4, 1)], steps: 60 }, student), "step");
    expect(told.at(-1)).toBeLessThan(0.1 * told[0]!);
  });

  it("says which input a batch lacks", async () => {
    await expect(train(network(), { task: classification, batches: [{ ids: [] }], steps: 1 })).rejects.toThrow(
      "a batch of the task classification needs inputs.x, this one has none",
    );
    await expect(train(network(), { task: regression, batches: [{ ids: [], inputs: { x: batch(2, 1).inputs!["x"]! } }], steps: 1 })).rejects.toThrow(
      "a batch of the task regression needs inputs.y, this one has x",
    );
  });
});
