import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { cnn } from "../../test/support/cnn.ts";
import { sample } from "../../test/support/gradients.ts";
import { mlp } from "../../test/support/mlp.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { parameters, unfreeze, type Model } from "../models/index.ts";
import type { Batch, ListLink, State, Transform } from "../nn/contracts.ts";
import { copyOf, Rng, start, sumSquares, tensor, transpose, type Tensor } from "../tensor/index.ts";
import { classification, regression, train, type TrainingEvent, type TrainOptions } from "../training/index.ts";
import { chain, mkor, sgd } from "./index.ts";
import { linksOf } from "./optimizer.ts";

beforeAll(() => start());

const base = { method: sgd, options: { lr: 0.1, momentum: 0.9 } };
const weightsOf = async (model: Model): Promise<number[]> =>
  (await Promise.all([...parameters(model).values()].map(async (w) => [...(await w.data())].map(Number)))).flat();

/** MKOR before SGD, and a look at its state, and at gradients before and after it. */
function watched(options: object, inner: Transform = sgd.build(sgd.options.parse({}))) {
  const [link, ...rest] = linksOf(mkor.build(mkor.options.parse(options), inner)) as [ListLink];
  const seen: { state: State; norms: [number, number][] } = { state: {}, norms: [] };
  const spied: ListLink = {
    ...link,
    async update(u, s, w, t) {
      const layers = (of: readonly Tensor[]): number => of.reduce((sum, x) => sum + Math.sqrt(sumSquares([x])), 0);
      const before = layers(u);
      const moved = await link.update(u, s, w, t);
      seen.state = s;
      seen.norms.push([before, layers(moved)]);
      return moved;
    },
  };
  return { transform: chain(spied, ...rest), seen };
}

const draw =
  (seed: number, scale = 0.4, dtype: "f32" | "f64" = "f32") =>
  (name: string, shape: readonly number[]): Tensor =>
    new Rng(seed).fork(name).normal(shape, scale, dtype);

const classes = (k: number, rows = 16, width = 6): Batch => ({
  ids: [],
  inputs: {
    x: tensor(
      sample([rows, width], k + 1).map((x) => x + 0.5),
      [rows, width],
    ),
    labels: tensor(
      Array.from({ length: rows }, (_, i) => (i * 7 + k) % 4),
      [rows],
      "i32",
    ),
  },
});
const network = (): Model => mlp([6, 9, 4], draw(1));
const course: TrainOptions = { task: classification, batches: (k) => classes(k), steps: 12, learningRate: 0.1 };

describe("golden values of the official code", () => {
  it("Linear 3→2, mean squared error, SGD 0.1, an update at every step", async () => {
    const fill = (shape: readonly number[], f: (i: number, j: number) => number): number[] =>
      Array.from({ length: shape[0]! * shape[1]! }, (_, k) => f(Math.floor(k / shape[1]!), k % shape[1]!));
    const model = mlp([3, 2], (name, shape) =>
      name.endsWith("bias")
        ? tensor([0, 0], [2], "f64")
        : tensor(
            fill(shape, (i, j) => Math.sin(1 + 2.7 * i + 1.3 * j)),
            shape,
            "f64",
          ),
    );
    const batches = (t: number): Batch => ({
      ids: [],
      inputs: {
        x: tensor(
          fill([4, 3], (i, j) => Math.sin(0.37 * (i + 1) * (j + 2) * (t + 1) + 0.5 * j)),
          [4, 3],
          "f64",
        ),
        y: tensor(
          fill([4, 2], (i, j) => Math.cos(0.6 * (i + 1) + 1.1 * j + t)),
          [4, 2],
          "f64",
        ),
      },
    });
    const { transform, seen } = watched({ invFreq: 1 });
    const losses: number[] = [];
    await train(model, {
      ...{ task: regression, batches, steps: 4, learningRate: 0.1, optimizer: transform },
      onEvent: (event) => event.event === "step" && losses.push(event.loss),
    });
    const near = (found: ArrayLike<number | bigint>, expected: readonly number[]): void => {
      expected.forEach((x, i) => expect(Math.abs(Number(found[i]) - x), `${i}: ${found[i]} against ${x}`).toBeLessThan(2e-6));
    };
    near(losses, [0.974569, 0.794978, 1.020583, 0.883792]);
    near(await weightsOf(model), [0.717575, 0.581584, -0.340705, -0.479167, -0.608689, -0.020844, -0.10865, -0.039965]);
    const [R, L] = [seen.state["AA_inv.fc0"], seen.state["GG_inv.fc0"]] as [Tensor, Tensor];
    const diagonal = (await R.data()).filter((_, i) => i % 5 === 0);
    near(diagonal, [0.965163, 0.978261, 0.984881, 0.274394]);
    near(await L.data(), [0.510899, -0.092053, -0.092053, 0.625157]);
  });
});

describe("gradients", () => {
  it("keep the sum of the norms of a layer's two parts", async () => {
    for (const options of [{ invFreq: 2 }, { invFreq: 1, variant: "paper", stabilization: 0.4 }]) {
      const { transform, seen } = watched(options);
      await train(mlp([6, 4], draw(1)), { ...course, optimizer: transform });
      for (const [before, after] of seen.norms) expect(Math.abs(after / before - 1)).toBeLessThan(1e-6);
    }
  });

  it("are those of the base optimiser at the first step, and where all layers keep theirs", async () => {
    const run = async (options: Record<string, unknown>, steps: number): Promise<number[]> => {
      const model = network();
      await train(model, { ...course, steps, optimizer: { method: mkor, options, inner: base } });
      return weightsOf(model);
    };
    const plain = async (steps: number): Promise<number[]> => {
      const model = network();
      await train(model, { ...course, steps, optimizer: base });
      return weightsOf(model);
    };
    expect(await run({ invFreq: 1 }, 1)).toEqual(await plain(1));
    expect(await run({ invFreq: 1 }, 3)).not.toEqual(await plain(3));
    expect(await run({ invFreq: 1, sgdLayers: ["fc0", "^fc1$"] }, 3)).toEqual(await plain(3));
    expect(await run({ invFreq: 1, sgdLayers: "fc[01]" }, 3)).toEqual(await plain(3));
  });

  it("go through the whole of an inner optimiser, its rate and decay included", async () => {
    const run = async (options: Partial<TrainOptions>): Promise<number[]> => {
      const model = network();
      const { learningRate: _, ...rest } = course;
      await train(model, { ...rest, ...options });
      return weightsOf(model);
    };
    const inner = { method: sgd, options: { lr: 0.02, weightDecay: 0.3 } };
    expect(await run({ optimizer: { method: mkor, options: { sgdLayers: "fc." }, inner } })).toEqual(await run({ optimizer: inner }));
    const zero = { optimizer: { ...inner, options: { lr: 0 } } };
    expect(await run({ optimizer: inner })).not.toEqual(await run(zero));
  });

  it("of a layer in×out are treated like those of one out×in, and kernels as matrices of patches", async () => {
    const run = async (transposed: boolean, statDecay: number): Promise<number[]> => {
      const model = mlp([6, 9, 4], draw(1), transposed);
      await train(model, { ...course, optimizer: watched({ invFreq: 2, statDecay }).transform });
      const weights = [...parameters(model).values()].map((w) => (transposed && w.shape.length === 2 ? copyOf(transpose(w)) : w));
      return (await Promise.all(weights.map(async (w) => [...((await w.data()) as Float32Array)]))).flat();
    };
    // at a decay of .01 the factors are rings of two rows
    for (const statDecay of [0.95, 0.01]) {
      const expected = await run(false, statDecay);
      (await run(true, statDecay)).forEach((x, i) => expect(x).toBeCloseTo(expected[i]!, 5));
    }
    const kernels: Record<string, number[]> = {
      ...{ "conv1.weight": [8, 3, 3, 3], "conv1.bias": [8], "conv2.weight": [12, 4, 3, 3] },
      ...{ "conv3.weight": [16, 12, 1, 1], "conv3.bias": [16], "fc.weight": [10, 16], "fc.bias": [10] },
    };
    const images = unfreeze(cnn(new Map(Object.entries(kernels).map(([name, shape]) => [name, draw(2, 0.3)(name, shape)]))));
    const x = (k: number): Batch => ({ ids: [], inputs: { x: tensor(sample([4, 3, 6, 6], k + 1), [4, 3, 6, 6]), labels: tensor([0, 3, 6, 9], [4], "i32") } });
    const convolutions = watched({ invFreq: 1 });
    await train(images, { ...course, batches: x, optimizer: convolutions.transform });
    expect((convolutions.seen.state["AA_inv.conv1"] as Tensor).shape).toEqual([28, 28]);
    expect((convolutions.seen.state["AA_inv.conv2"] as Tensor).shape).toEqual([36, 36]);
  });

  it("are clipped after MKOR, by the norm that it leaves", async () => {
    const norms: number[] = [];
    const spy: Transform = {
      scope: "model",
      init: () => ({}),
      update: (u) => {
        norms.push(Math.sqrt(sumSquares(u)));
        return u;
      },
    };
    const { transform, seen } = watched({ invFreq: 1 }, chain(spy, sgd.build(sgd.options.parse({}))));
    await train(network(), { ...course, clip: 0.01, optimizer: transform });
    norms.forEach((norm) => expect(norm).toBeCloseTo(0.01, 6));
    expect(Math.min(...seen.norms.map(([before]) => before))).toBeGreaterThan(0.1);
    const model = network();
    const groups = [{ parameters: [parameters(model).get("fc0.bias")!], optimizer: sgd.build(sgd.options.parse({})) }];
    await expect(train(model, { ...course, clip: 1, groups, optimizer: { method: mkor } })).rejects.toThrow(/one of several chains clips after/);
  });

  it("cannot be used one at a time in backward", async () => {
    await expect(train(network(), { ...course, updateInBackward: true, optimizer: mkor })).rejects.toThrow(/several tensors together/);
  });
});

describe("the factors", () => {
  it("are m² + (n + 1)² numbers a layer, constant between updates", async () => {
    const { transform, seen } = watched({ invFreq: 5 });
    const factors: number[][] = [];
    await train(network(), {
      ...course,
      optimizer: transform,
      regimes: [{ afterStep: async () => void factors.push([...(await (seen.state["AA_inv.fc1"] as Tensor).data())].map(Number)) }],
    });
    const changed = factors.map((F, i) => i > 0 && String(F) !== String(factors[i - 1]));
    expect(changed.flatMap((yes, i) => (yes ? [i] : []))).toEqual([5, 10]);
    const numbers = Object.values(seen.state).reduce<number>((sum, x) => sum + (typeof x === "number" ? 0 : (x as Tensor).size), 0);
    expect(numbers).toBe(9 ** 2 + 7 ** 2 + 4 ** 2 + 10 ** 2);
    const warming = watched({ invFreq: 5, warmupSteps: 4 });
    await train(network(), { ...course, optimizer: warming.transform });
    expect(warming.seen.state["updates"]).toBe(5);
  });

  it("stay as they are, with a warning, where inputs are not finite", async () => {
    const { transform, seen } = watched({ invFreq: 1 });
    const told: string[] = [];
    const link = linksOf(transform)[0] as ListLink;
    const poisoned: ListLink = {
      ...link,
      update: (u, s, w, t) =>
        link.update(
          u,
          s,
          w,
          t.step === 2
            ? {
                ...t,
                taps: new Map([["fc0", { input: tensor(new Array<number>(6).fill(NaN), [6]), outputGradient: tensor(new Array<number>(9).fill(0), [9]) }]]),
              }
            : t,
        ),
    };
    await train(network(), {
      ...course,
      optimizer: chain(poisoned, ...linksOf(transform).slice(1)),
      onEvent: (event) => event.event === "warning" && told.push(event.message),
    });
    expect(told).toEqual([expect.stringMatching(/output gradients of fc0 are not finite at step 3: its factors stay/)]);
    expect(Number.isFinite(sumSquares([seen.state["AA_inv.fc0"] as Tensor]))).toBe(true);
  });

  it("leave out layers above the limit, and say so; and say when nothing is left", async () => {
    const warnings = async (model: Model, options: Record<string, unknown>, more: Partial<TrainOptions> = {}): Promise<string[]> => {
      const told: string[] = [];
      const onEvent = (event: TrainingEvent): void => void (event.event === "warning" && told.push(event.message));
      await train(model, { ...course, steps: 3, optimizer: { method: mkor, options }, onEvent, ...more });
      return told;
    };
    expect(await warnings(network(), { limit: 8 })).toEqual(["mkor leaves the gradients of fc0, fc1 as they are: more than 8 rows or columns (limit)"]);
    expect(await warnings(network(), { limit: 8, sgdLayers: ["fc0"] })).toEqual([
      "mkor leaves the gradients of fc1 as they are: more than 8 rows or columns (limit)",
    ]);
    expect(await warnings(network(), { sgdLayers: ["fc"] })).toEqual([]);
    expect(
      await warnings(
        unfreeze(tinyModel(), (name) => name.includes("norm")),
        {},
        { batches: tinyBatches(2), task: undefined as never },
      ),
    ).toEqual([expect.stringContaining("changes no gradient")]);
  });

  it("of the paper need ζ < 1 / (γ + γ⁻³), and end in a sentence otherwise", () => {
    const build = (stabilization: number) => mkor.build(mkor.options.parse({ variant: "paper", stabilization }));
    expect(() => build(0.48)).toThrow(/explodes with stabilization 0.48: at statDecay 0.95 it must be below 0.473/);
    expect(() => build(0.47)).not.toThrow();
  });
});

describe("MKOR-H", () => {
  const options = { invFreq: 2, hybrid: true, switchTol: 0.5, switchWindow: 4 };

  it("goes on with the base optimiser alone after two windows without progress, and forgets its factors", async () => {
    const { transform, seen } = watched(options);
    const told: string[] = [];
    await train(network(), { ...course, optimizer: transform, onEvent: (event) => event.event === "warning" && told.push(event.message) });
    expect(told).toEqual([expect.stringMatching(/two windows of 4 steps; from step 9 on the base optimiser goes on alone/)]);
    expect(seen.state).toEqual({ over: 1 });
    const plain = watched({ invFreq: 2, hybrid: true, switchTol: -10, switchWindow: 4 });
    await train(network(), { ...course, optimizer: plain.transform });
    expect(plain.seen.state["AA_inv.fc0"]).toBeDefined();
  });

  it("and MKOR resume bit for bit, from before and after the switch", async () => {
    for (const [name, chosen] of Object.entries({ hybrid: options, plain: { invFreq: 3 }, rings: { invFreq: 1, statDecay: 0.01 } })) {
      const optimizer = { method: mkor, options: chosen, inner: base };
      const whole = network();
      await train(whole, { ...course, optimizer });
      const dir = await mkdtemp(join(tmpdir(), "strut-mkor-"));
      for (const step of [3, 4, 7, 8, 10]) {
        const stop = new AbortController();
        const checkpoint = { dir: join(dir, `${name}${step}`) };
        await train(network(), {
          ...{ ...course, optimizer, checkpoint, signal: stop.signal },
          onEvent: (event) => event.event === "step" && event.step === step && stop.abort(),
        });
        const resumed = network();
        await train(resumed, { ...course, optimizer, checkpoint, resume: true });
        expect(await weightsOf(resumed), `resumed after step ${step}`).toEqual(await weightsOf(whole));
      }
      await rm(dir, { recursive: true });
    }
  });
});
