import { beforeAll, describe, expect, it } from "vitest";
import { cnn } from "../../test/support/cnn.ts";
import { sample } from "../../test/support/gradients.ts";
import { mlp } from "../../test/support/mlp.ts";
import { unfreeze, type Model } from "../models/index.ts";
import type { Batch, ListLink, TapRequest } from "../nn/contracts.ts";
import { chain, scaleByLearningRate } from "../optimizers/index.ts";
import { parameters } from "../models/index.ts";
import { permute, reshape, Rng, start, sum, tensor, unfold, type Tensor } from "../tensor/index.ts";
import { classification, train, type TrainOptions } from "./index.ts";

beforeAll(() => start());

const draw = (name: string, shape: readonly number[]): Tensor => new Rng(4).fork(name).normal(shape, 0.4);
const numbers = async (x: Tensor): Promise<number[]> => [...(await x.data())].map(Number);
const close = (a: readonly number[], b: readonly number[]): void => {
  expect(a.length).toBe(b.length);
  a.forEach((x, i) => expect(x).toBeCloseTo(b[i]!, 5));
};

/** What a link that reads taps sees in a run of so many steps, as numbers by site and step. */
async function seen(model: Model, options: TrainOptions, request: TapRequest = {}) {
  const steps: { taps: Record<string, { input: number[]; outputGradient: number[] }>; gradients: Record<string, number[]>; loss: number }[] = [];
  const link: ListLink = {
    scope: "model",
    taps: request,
    init: () => ({}),
    async update(u, _s, w, t) {
      const taps: (typeof steps)[number]["taps"] = {};
      for (const [path, tap] of t.taps) taps[path] = { input: await numbers(tap.input!), outputGradient: await numbers(tap.outputGradient!) };
      const gradients = Object.fromEntries(await Promise.all(w.map(async ({ name }, i) => [name, await numbers(u[i]!)] as const)));
      steps.push({ taps, gradients, loss: t.loss });
      return u;
    },
  };
  await train(model, { task: classification, learningRate: 0.1, steps: 1, ...options, optimizer: chain(link, scaleByLearningRate()) });
  return steps;
}

const rows = sample([8, 6], 3).map((x) => x + 0.5);
const labels = [0, 1, 2, 3, 3, 2, 1, 1];
const part = (from: number, to: number): Batch => ({
  ids: [],
  inputs: { x: tensor(rows.slice(6 * from, 6 * to), [to - from, 6]), labels: tensor(labels.slice(from, to), [to - from], "i32") },
});
const network = (): Model => mlp([6, 5, 4], draw);
const mean = (of: readonly number[], width: number): number[] =>
  Array.from({ length: width }, (_, j) => of.filter((_x, k) => k % width === j).reduce((total, x) => total + x, 0) / (of.length / width));

describe("taps", () => {
  it("are the mean of the inputs, and of the output gradients what the bias gets, beside the loss", async () => {
    let loss = 0;
    const [step] = await seen(network(), { batches: [part(0, 8)], onEvent: (event) => void (event.event === "step" && (loss = event.loss)) });
    close(step!.taps["fc0"]!.input, mean(rows, 6));
    for (const path of ["fc0", "fc1"]) close(step!.taps[path]!.outputGradient, step!.gradients[`${path}.bias`]!);
    expect(step!.loss).toBe(loss);
  });

  it("of workers with half of the batch each have the mean that one worker sees, and so has a step that accumulates", async () => {
    const [whole] = await seen(network(), { batches: [part(0, 8)] });
    const [first] = await seen(network(), { batches: [part(0, 4)] });
    const [second] = await seen(network(), { batches: [part(4, 8)] });
    const [both] = await seen(network(), { batches: [part(0, 4), part(4, 8)], accumulate: 2 });
    for (const path of ["fc0", "fc1"])
      for (const kind of ["input", "outputGradient"] as const) {
        const expected = whole!.taps[path]![kind];
        close(
          first!.taps[path]![kind].map((x, i) => (x + second!.taps[path]![kind][i]!) / 2),
          expected,
        );
        close(both!.taps[path]![kind], expected);
      }
  });

  it("of a convolution are means over its patches and sums over its places", async () => {
    const shapes: Record<string, number[]> = {
      ...{ "conv1.weight": [8, 3, 3, 3], "conv1.bias": [8], "conv2.weight": [12, 4, 3, 3] },
      ...{ "conv3.weight": [16, 12, 1, 1], "conv3.bias": [16], "fc.weight": [10, 16], "fc.bias": [10] },
    };
    const model = unfreeze(cnn(new Map(Object.entries(shapes).map(([name, shape]) => [name, draw(name, shape)]))));
    const x = tensor(sample([2, 3, 6, 6], 5), [2, 3, 6, 6]);
    const [step] = await seen(model, { batches: [{ ids: [], inputs: { x, labels: tensor([1, 7], [2], "i32") } }] });
    const patches = unfold(x, [3, 3], { padding: [1, 1] });
    close(
      step!.taps["conv1"]!.input,
      (await numbers(sum(reshape(permute(patches, [0, 2, 1]), [72, 27]), { axes: [0] }))).map((total) => total / 72),
    );
    for (const path of ["conv1", "conv3", "fc"]) close(step!.taps[path]!.outputGradient, step!.gradients[`${path}.bias`]!);
  });

  it("are cut element by element where a link asks, gradients times their rows", async () => {
    const cut = (x: number, bound: number): number => Math.max(-bound, Math.min(bound, x));
    const [step] = await seen(network(), { batches: [part(0, 8)] }, { bound: 0.4 });
    close(
      step!.taps["fc0"]!.input,
      mean(
        rows.map((x) => cut(x, 0.4)),
        6,
      ),
    );
    const single = await seen(network(), { batches: [part(0, 1)] }, { bound: 0.2 });
    close(
      single[0]!.taps["fc1"]!.outputGradient,
      single[0]!.gradients["fc1.bias"]!.map((x) => cut(x, 0.2)),
    );
    expect(Math.max(...single[0]!.gradients["fc1.bias"]!.map(Math.abs))).toBeGreaterThan(0.3);
  });

  it("are taken at the steps and sites that a link asks for", async () => {
    const steps = await seen(network(), { batches: [part(0, 8)], steps: 4 }, { at: (step) => step % 2 === 1, sees: ({ path }) => path === "fc1" });
    expect(steps.map(({ taps }) => Object.keys(taps))).toEqual([[], ["fc1"], [], ["fc1"]]);
    expect(parameters(network()).size).toBe(4);
  });
});
