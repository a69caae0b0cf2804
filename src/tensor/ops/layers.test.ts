import { readFile } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { checkGradients, leaf } from "../../../test/support/gradients.ts";
import * as t from "../index.ts";

interface Stored {
  shape: number[];
  values: number[];
}
interface Golden {
  inputs: Stored[];
  output: Stored;
  seed: Stored;
  gradients: Stored[];
  before?: Stored[];
  after?: Stored[];
}

// Made with torch 2.13 in f64, inputs rounded to 3 digits and results to 9.
const golden = JSON.parse(await readFile("test/golden/layers.json", "utf8")) as Record<string, Golden>;

beforeAll(() => t.start());

type F = (...x: t.Parameter[]) => t.Tensor;
const i32 = (values: number[], shape = [values.length]): t.Tensor => t.tensor(values, shape, "i32");
const f64 = (values: number[], shape = [values.length]): t.Tensor => t.tensor(values, shape, "f64");
const asTensor = ({ shape, values }: Stored): t.Tensor => t.tensor(values, shape, "f64");

const bag = { ids: [1, 2, 4, 4, 0], offsets: [0, 2, 2] };
const targets = (): t.Tensor => i32([0, 3, 1, -100, 2]);
const classWeight = (): t.Tensor => f64([0.5, 1, 2, 0.25]);
const running = (name: string): t.RunningStatistics => {
  const [mean, variance] = golden[name]!.before!.map(asTensor);
  return { mean: mean!, variance: variance! };
};
const reductions = ["mean", "sum", "none"] as const;

const functions: Record<string, F> = {
  "conv2d plain": (x, w, b) => t.conv2d(x!, w!, b!, { padding: 1 }),
  "conv2d strided and dilated": (x, w, b) => t.conv2d(x!, w!, b!, { stride: [2, 1], padding: [2, 1], dilation: [1, 2] }),
  "conv2d groups": (x, w, b) => t.conv2d(x!, w!, b!, { stride: 2, padding: 1, groups: 2 }),
  "conv2d depthwise": (x, w) => t.conv2d(x!, w!, null, { padding: 1, groups: 3 }),
  unfold: (x) => t.unfold(x!, [2, 3], { padding: [1, 0], stride: [1, 2], dilation: [2, 1] }),
  fold: (x) => t.fold(x!, [5, 6], 2, { padding: 1, stride: 2 }),
  "max pool": (x) => t.maxPool2d(x!, 3, { stride: 2, padding: 1 }),
  "average pool": (x) => t.averagePool2d(x!, [3, 2], { stride: 2, padding: 1 }),
  "average pool without padding counted": (x) => t.averagePool2d(x!, 3, { stride: 2, padding: 1, countIncludePad: false }),
  "adaptive average pool": (x) => t.adaptiveAveragePool2d(x!, [3, 2]),
  "batch norm in training": (x, w, b) => t.batchNorm(x!, running("batch norm in training"), w!, b!, { training: true, momentum: 0.3 }),
  "batch norm in evaluation": (x, w, b) => t.batchNorm(x!, running("batch norm in evaluation"), w!, b!),
  "group norm": (x, w, b) => t.groupNorm(x!, 2, w!, b!),
  "embedding bag sum with offsets and weights": (table, w) => t.embeddingBag(table!, i32(bag.ids), { mode: "sum", offsets: bag.offsets, perSampleWeights: w! }),
  "embedding bag mean with offsets": (table) => t.embeddingBag(table!, i32(bag.ids), { offsets: bag.offsets }),
  "attention with bias and padding": (q, k, v, bias) => t.attention(q!, k!, v!, { causal: false, bias: bias!, keyMask: i32([1, 1, 0, 1, 1, 1, 1, 0], [2, 4]) }),
  lstm: (x, weightIh, weightHh, biasIh, biasHh, h, c) => {
    const { output, state } = t.lstm(x!, { weightIh: weightIh!, weightHh: weightHh!, biasIh: biasIh!, biasHh: biasHh! }, { h: h!, c: c! });
    return t.concat([t.reshape(output, [-1]), t.reshape(state.c, [-1])]);
  },
  gru: (x, weightIh, weightHh, biasIh, biasHh, h) => t.gru(x!, { weightIh: weightIh!, weightHh: weightHh!, biasIh: biasIh!, biasHh: biasHh! }, h!).output,
  ...Object.fromEntries(
    reductions.flatMap((reduction): [string, F][] => [
      [`cross-entropy ${reduction}`, (x) => t.crossEntropy(x!, targets(), { reduction })],
      [`cross-entropy weighted ${reduction}`, (x) => t.crossEntropy(x!, targets(), { reduction, weight: classWeight() })],
      [`cross-entropy smoothed ${reduction}`, (x) => t.crossEntropy(x!, targets(), { reduction, weight: classWeight(), labelSmoothing: 0.2 })],
      [`cross-entropy ignoring 3 ${reduction}`, (x) => t.crossEntropy(x!, i32([0, 3, 1, 3, 2]), { reduction, ignoreIndex: 3 })],
      [
        `binary cross-entropy ${reduction}`,
        (x) => t.binaryCrossEntropyWithLogits(x!, f64([1, 0, 0.3, 0, 1, 0.8], [2, 3]), { reduction, posWeight: f64([1, 2, 0.5]) }),
      ],
      [`l1 ${reduction}`, (x, y) => t.l1Loss(x!, y!, { reduction })],
      [`smooth l1 ${reduction}`, (x, y) => t.smoothL1Loss(x!, y!, { reduction, beta: 0.7 })],
      [`mse ${reduction}`, (x, y) => t.meanSquaredError(x!, y!, { reduction })],
    ]),
  ),
  ...Object.fromEntries(
    [...reductions, "batchmean" as const].flatMap((reduction): [string, F][] => [
      [`kl ${reduction}`, (x) => t.klDivergence(t.logSoftmax(x!), f64([0.25, 0.75, 0, 0.1, 0.2, 0.7], [2, 3]), { reduction })],
      [`kl log target ${reduction}`, (x, y) => t.klDivergence(x!, y!, { reduction, logTarget: true })],
    ]),
  ),
};

const close = async (found: t.Tensor, expected: Stored, what: string): Promise<void> => {
  const values = [...(await found.data())].map(Number);
  expect(values.length, what).toBe(expected.values.length);
  values.forEach((value, i) => expect(Math.abs(value - expected.values[i]!), `${what}[${i}]: ${value} for ${expected.values[i]}`).toBeLessThan(2e-8));
};

describe("layers agree with torch", () => {
  it("in every golden case", () => expect(Object.keys(functions).sort()).toEqual(Object.keys(golden).sort()));

  it.each(Object.entries(functions))("%s: output and gradients", async (name, f) => {
    const { inputs, output, seed, gradients } = golden[name]!;
    const leaves = inputs.map((input, i) => new t.Parameter(asTensor(input), `input ${i}`));
    const y = f(...leaves);
    await close(y, output, "output");
    const found = t.backward(y, { seed: t.tensor(seed.values, y.shape, "f64") });
    for (const [i, parameter] of leaves.entries()) await close(found.get(parameter)!, gradients[i]!, `gradient ${i}`);
  });

  it.each(Object.entries(functions))("%s: gradients are finite differences", (name, f) =>
    checkGradients(
      f,
      golden[name]!.inputs.map((input, i) => new t.Parameter(asTensor(input), `input ${i}`)),
    ),
  );

  it("batch norm moves the running statistics in training only", async () => {
    for (const [name, training] of [
      ["batch norm in training", true],
      ["batch norm in evaluation", false],
    ] as const) {
      const { inputs, before, after } = golden[name]!;
      const [x, w, b] = inputs.map(asTensor);
      const moved = running(name);
      t.batchNorm(x!, moved, w!, b!, { training, momentum: 0.3 });
      await close(moved.mean, (after ?? before)![0]!, "mean");
      await close(moved.variance, (after ?? before)![1]!, "variance");
    }
  });
});

describe("layers in f32", () => {
  it("convolve many images as one by one, and give the same gradients", async () => {
    const values = (shape: number[], seed: number): t.Tensor => new t.Rng(seed).normal(shape, 1);
    const w = new t.Parameter(values([24, 16, 3, 3], 1), "w");
    const x = values([20, 16, 24, 24], 2);
    const whole = t.conv2d(x, w, null, { padding: 1 });
    const wholeGradient = await t
      .backward(t.sum(t.square(whole)))
      .get(w)!
      .data();
    let sum = new Float64Array(w.size);
    for (let i = 0; i < 20; i++) {
      const one = t.conv2d(t.slice(x, 0, i, i + 1), w, null, { padding: 1 });
      const part = await t
        .backward(t.sum(t.square(one)))
        .get(w)!
        .data();
      sum = sum.map((value, at) => value + Number(part[at]));
    }
    const largest = Math.max(...sum.map(Math.abs));
    wholeGradient.forEach((value: number | bigint, i: number) => expect(Math.abs(Number(value) - sum[i]!)).toBeLessThan(1e-5 * largest));
  });
});

describe("embedding bags", () => {
  it("leave masked ids out, also where their rows are not finite", async () => {
    const table = f64([1, 2, 3, 4, NaN, NaN], [3, 2]);
    const y = t.embeddingBag(table, i32([0, 1, 2, 1, 2, 2, 2, 2, 2], [3, 3]), { mask: i32([1, 1, 0, 1, 0, 0, 0, 0, 0], [3, 3]) });
    expect([...(await y.data())]).toEqual([2, 3, 3, 4, 0, 0]);
  });
  it("have gradients with a mask", () =>
    checkGradients(
      (table, w) => t.embeddingBag(table!, i32([0, 1, 2, 1], [2, 2]), { mode: "sum", mask: i32([1, 1, 1, 0], [2, 2]), perSampleWeights: w! }),
      [leaf([3, 2]), leaf([2, 2], 2)],
    ));
  it("refuse offsets that fall and weights for a mean", () => {
    expect(() => t.embeddingBag(t.ones([3, 2]), i32([0, 1]), { offsets: [0, 3] })).toThrow(/offsets \[0,3\] must start at 0 and rise within 2 ids/);
    expect(() => t.embeddingBag(t.ones([3, 2]), i32([0, 1]), { offsets: [0], perSampleWeights: t.ones([2]) })).toThrow(/need mode "sum"/);
  });
});

describe("composed attention", () => {
  it("is fused attention where nothing is masked, causal or not, with grouped heads", async () => {
    for (const causal of [true, false]) {
      const [q, k, v] = [leaf([2, 3, 4, 2]), leaf([2, 5, 2, 2], 2), leaf([2, 5, 2, 2], 3)];
      const fused = await t.attention(q, k, v, { causal }).data();
      let shown: t.Tensor | undefined;
      const composed = await t.attention(q, k, v, { causal, probabilities: (p) => (shown = p) }).data();
      composed.forEach((value: number | bigint, i: number) => expect(Math.abs(Number(value) - Number(fused[i]))).toBeLessThan(1e-12));
      expect(shown!.shape).toEqual([2, 4, 3, 5]);
      for (const total of await t.sum(shown!, { axes: [-1] }).data()) expect(Math.abs(Number(total) - 1)).toBeLessThan(1e-12);
    }
  });
  it("gives 0 where a query sees no key", async () => {
    const y = await t.attention(leaf([1, 2, 1, 2]), leaf([1, 2, 1, 2], 2), leaf([1, 2, 1, 2], 3), { keyMask: i32([0, 1], [1, 2]) }).data();
    expect([...y].slice(0, 2)).toEqual([0, 0]);
    expect(Number(y[2])).not.toBe(0);
  });
  it("has gradients through mask and causal order together", () =>
    checkGradients(
      (q, k, v, bias) => t.attention(q!, k!, v!, { bias: bias!, keyMask: i32([1, 0, 1], [1, 3]) }),
      [leaf([1, 3, 2, 2]), leaf([1, 3, 1, 2], 2), leaf([1, 3, 1, 2], 3), leaf([1, 2, 3, 3], 4)],
    ));
});

describe("wrong shapes end in sentences", () => {
  it.each<[string, () => unknown, RegExp]>([
    ["conv2d channels", () => t.conv2d(t.ones([1, 3, 4, 4]), t.ones([2, 4, 3, 3])), /conv2d: x is f32\[1,3,4,4\]/],
    ["conv2d kernel", () => t.conv2d(t.ones([1, 3, 2, 2]), t.ones([2, 3, 5, 5])), /a kernel of 5×5 .* does not fit into 2×2/],
    ["unfold stride", () => t.unfold(t.ones([1, 1, 4, 4]), 2, { stride: 0 }), /stride is \[0,0\]/],
    ["fold columns", () => t.fold(t.ones([1, 5, 4]), [4, 4], 2), /columns \[1,5,4\] do not fit/],
    ["max pool padding", () => t.maxPool2d(t.ones([1, 1, 4, 4]), 2, { padding: 2 }), /padding may be half/],
    ["adaptive size", () => t.adaptiveAveragePool2d(t.ones([1, 1, 4, 4]), 0), /the size whole/],
    [
      "batch norm of one value",
      () => t.batchNorm(t.ones([1, 2]), { mean: t.zeros([2]), variance: t.ones([2]) }, null, null, { training: true }),
      /more than one value/,
    ],
    ["group norm", () => t.groupNorm(t.ones([1, 5, 2]), 2), /2 groups do not divide/],
    ["smooth l1", () => t.smoothL1Loss(t.ones([1]), t.ones([1]), { beta: 0 }), /beta is 0/],
    ["label smoothing", () => t.crossEntropy(t.ones([1, 2]), i32([0]), { labelSmoothing: 2 }), /labelSmoothing is 2/],
    [
      "lstm",
      () => t.lstmCell(t.ones([1, 2]), { h: t.ones([1, 3]), c: t.ones([1, 3]) }, { weightIh: t.ones([9, 2]), weightHh: t.ones([9, 3]) }),
      /4·hidden rows/,
    ],
    ["gru", () => t.gruCell(t.ones([1, 2]), t.ones([1, 3]), { weightIh: t.ones([12, 2]), weightHh: t.ones([12, 3]) }), /3·hidden rows/],
  ])("%s", (_, f, message) => expect(f).toThrow(message));
});
