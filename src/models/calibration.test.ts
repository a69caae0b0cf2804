import { beforeAll, describe, expect, it } from "vitest";
import type { Statistic, Task } from "../nn/contracts.ts";
import { backward, copyOf, matmul, mean, noGrad, Rng, scope, slice, start, tensor, transpose, type Tensor } from "../tensor/index.ts";
import { classification, regression } from "../training/index.ts";
import { numbers, tinyResnet } from "../../test/support/site.ts";
import { apart, most } from "../../test/support/starts.ts";
import { cycled, type CalibrationBatch } from "./calibration.ts";
import { unfreeze } from "./change.ts";
import { loadModel } from "./load.ts";
import { hidden, type Model } from "./model.ts";
import { collectStatistics, inputsOf, type StatisticsOptions } from "./statistics.ts";

beforeAll(async () => {
  await start();
});

const close = async (a: Tensor, b: Tensor, tolerance = 1e-12): Promise<void> => {
  const wanted = await numbers(b);
  expect(apart(await numbers(a), wanted) / most(wanted)).toBeLessThan(tolerance);
};
const images = (rows: number, seed: number): Tensor => new Rng(seed).normal([rows, 3, 6, 6], 1, "f64");
const labels = (values: readonly number[]): Tensor => tensor(values, [values.length], "i32");
const wholeBatch = () => ({ ids: [], inputs: { x: images(4, 1), labels: labels([0, 1, 2, -1]) } });

describe("calibration on the inputs of any task", () => {
  it("sums what each site reads: features behind a pooling, patches of a convolution", async () => {
    const [model, whole] = [tinyResnet(), wholeBatch()];
    const { sites, tokens, sequences } = await collectStatistics(model, [whole], { wants: ["inputGram", "inputMean"], sites: ["conv1", "linear"] });
    expect([tokens, sequences]).toEqual([4, 4]);
    const features = noGrad(() => hidden(model, whole.inputs.x));
    await close(
      sites.get("linear")!.inputMean!,
      noGrad(() => mean(features, { axes: [0] })),
    );
    await close(
      sites.get("linear")!.inputGram!,
      noGrad(() => matmul(transpose(features), features)),
    );
    expect(sites.get("conv1")!.rows, "a row for each pixel").toBe(4 * 36);
    const gram = await numbers(sites.get("conv1")!.inputGram!);
    const pixels = (await numbers(whole.inputs.x)).reduce((sum, x, at) => sum + (Math.floor(at / 36) % 3 === 0 ? x * x : 0), 0);
    expect(gram[4 * 27 + 4]! / pixels, "the middle of the patches of the first channel is every pixel once").toBeCloseTo(1, 12);
  });

  it.each([
    ["classification", classification, () => ({ labels: labels([0, 1, 2, -1]) })],
    ["regression", regression, () => ({ y: new Rng(9).normal([4, 5], 1, "f64") })],
  ] as [string, Task, () => Record<string, Tensor>][])("has the gradient of the task's mean loss over all batches: %s", async (_name, task, targets) => {
    const model = tinyResnet();
    const tensors = Object.entries({ x: images(4, 1), ...targets() });
    const batch = (from: number, until: number): CalibrationBatch => ({
      ids: [],
      inputs: Object.fromEntries(tensors.map(([name, value]) => [name, copyOf(slice(value, 0, from, until))])),
    });
    const trained = unfreeze(model);
    const gradients = backward(task.loss(trained, batch(0, 4)));
    const { sites } = await collectStatistics(model, [batch(0, 1), batch(1, 4)], { wants: ["weightGradient"], sites: ["conv1", "linear"], task });
    for (const path of ["conv1", "linear"]) await close(sites.get(path)!.weightGradient!, gradients.get(trained.layers.get(path)!.weight)!, 1e-10);
  });

  it("leaves out the padding of an encoder, before and behind its pooling", async () => {
    const model = await loadModel("data/encoder/use-lite");
    const wants: Statistic[] = ["inputMean"];
    const options: StatisticsOptions = { wants, sites: ["layers.0.q_proj", "pooler"] };
    const padded = (tail: number): CalibrationBatch => ({
      ids: [],
      inputs: { x: tensor([5, 6, tail, tail, 7, 8, 9, 10], [2, 4], "i32"), mask: tensor([1, 1, 0, 0, 1, 1, 1, 1], [2, 4], "i32") },
    });
    const [a, b] = [await collectStatistics(model, [padded(0)], options), await collectStatistics(model, [padded(99)], options)];
    expect([a.tokens, a.sites.get("layers.0.q_proj")!.rows, a.sites.get("pooler")!.rows]).toEqual([6, 6, 2]);
    for (const path of ["layers.0.q_proj", "pooler"]) await close(a.sites.get(path)!.inputMean!, b.sites.get(path)!.inputMean!, 1e-5);
  });

  it("ends in a sentence where a batch does not say enough", async () => {
    const refused = (batch: CalibrationBatch, message: string, options: Partial<StatisticsOptions> = {}, model: Model = tinyResnet()): Promise<void> =>
      expect(collectStatistics(model, [batch], { wants: ["inputMean"], ...options })).rejects.toThrow(message);
    await refused({ ids: [], inputs: { y: labels([1]) } }, "calibration batch 0 has no inputs.x beside y");
    await refused({ ids: [], inputs: { x: images(0, 1) } }, "calibration batch 0 has an empty inputs.x");
    await refused({ ids: [], inputs: { x: images(2, 1), mask: labels([1]) } }, "calibration batch 0: inputs.mask is [1], expected one entry for each of 2");
    const whole = wholeBatch();
    await refused(whole, "statistics of gradients need a loss", { wants: ["weightGradient"] });
    await refused({ ids: [], inputs: { ...whole.inputs, labels: labels([-1, -1, -1, -1]) } }, "at least one scored label", {
      wants: ["weightGradient"],
      task: classification,
    });
  });
});

describe("batches seen again and again", () => {
  it("are read from their source once, and end with an empty one", async () => {
    let read = 0;
    const source = async function* (): AsyncGenerator<CalibrationBatch> {
      for (const id of [3, 4]) {
        read++;
        yield { ids: [[id, 1]] };
      }
    };
    const seen: [number, number][] = [];
    for await (const { batch, round } of cycled(source())) {
      seen.push([Number((await batch.input().data())[0]), round]);
      if (seen.length === 5) break;
    }
    expect(seen).toEqual([
      [3, 0],
      [4, 0],
      [3, 1],
      [4, 1],
      [3, 2],
    ]);
    expect(read).toBe(2);
    for await (const _ of cycled([])) expect.fail("there is no batch");
  });

  it("show what sites read, once for those with one input", async () => {
    const model = await loadModel("data/lm/stories260K");
    const sites = ["q_proj", "k_proj", "o_proj"].map((name) => model.layers.get(`model.layers.1.self_attn.${name}`)!.site!);
    for await (const { batch } of cycled([{ ids: [[1, 5, 9, 2]], mask: [[1, 1, 1, 0]] }])) {
      const inputs = scope(() => inputsOf(model, batch, sites));
      expect(inputs.map(({ sites: own }) => own.map(({ role }) => role))).toEqual([["q_proj", "k_proj"], ["o_proj"]]);
      const { sites: found } = await collectStatistics(model, [{ ids: [[1, 5, 9, 2]], mask: [[1, 1, 1, 0]] }], {
        wants: ["inputMean"],
        sites: [sites[0]!.path],
      });
      expect(inputs[0]!.rows.shape).toEqual([3, 64]);
      await close(
        noGrad(() => mean(inputs[0]!.rows, { axes: [0] })),
        found.get(sites[0]!.path)!.inputMean!,
        1e-5,
      );
      break;
    }
  });
});
