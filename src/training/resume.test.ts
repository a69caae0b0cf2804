import { mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { busy } from "../../test/support/probe.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { adapterParameters } from "../adapters/index.ts";
import { parameters, randomModel, unfreeze, type Model } from "../models/index.ts";
import { buffers } from "../models/model.ts";
import type { Batch } from "../nn/contracts.ts";
import { adafactor, adamw, galore, lion, sgd } from "../optimizers/index.ts";
import { Rng, start, tensor } from "../tensor/index.ts";
import { checkpointsIn } from "./checkpoint.ts";
import type { TrainingEvent } from "./events.ts";
import { classification, regression, train, type TrainOptions } from "./index.ts";

let dir: string;
beforeAll(() => start());
beforeEach(async () => void (dir = await mkdtemp(join(tmpdir(), "strut-train-"))));
afterEach(() => rm(dir, { recursive: true, force: true }));

const settings: TrainOptions = {
  batches: tinyBatches(5),
  steps: 12,
  learningRate: 0.05,
  schedule: "cosine",
  warmup: 2,
  clip: 1,
  accumulate: 2,
  seed: 4,
  evaluate: { every: 3, data: tinyBatches(2, 9) },
};

function tinyResnet(): Model {
  const config = { model_type: "resnet-cifar", blocks_per_stage: [1, 1], widths: [4, 6], num_labels: 3 };
  return unfreeze(randomModel(config, (name, shape) => new Rng(1).fork(name).normal(shape, 0.3)));
}

function imageBatch(k: number, shift = 0): Batch {
  const rng = new Rng(7).fork(String(k));
  const x = tensor(
    Array.from({ length: 2 * 3 * 8 * 8 }, () => rng.random() + shift),
    [2, 3, 8, 8],
  );
  return { ids: [], inputs: { x, labels: tensor([k % 3, (k + 1) % 3], [2], "i32") } };
}

const images: TrainOptions = { task: classification, batches: (k) => imageBatch(k), steps: 6, learningRate: 0.01, accumulate: 2 };

/** Every weight of a model as text, so that equal means equal in every bit. */
async function weightsOf(model: Model): Promise<string> {
  const all = [...parameters(model), ...buffers(model), ...[...model.adapters.values()].flatMap((set) => [...adapterParameters(set)])];
  const lines = await Promise.all(all.map(async ([name, w]) => `${name} [${w.shape}] ${[...((await w.data()) as Float32Array)].join(" ")}`));
  return lines.join("\n");
}

/** Trains until `step` is done, then stops by the signal. */
async function stopAfter(model: Model, step: number, options: TrainOptions): Promise<TrainingEvent[]> {
  const stop = new AbortController();
  const events: TrainingEvent[] = [];
  const onEvent = (event: TrainingEvent): void => {
    events.push(event);
    if (event.event === "step" && event.step === step) stop.abort();
  };
  const result = await train(model, { ...options, signal: stop.signal, onEvent });
  expect(result).toMatchObject({ stopped: true, reason: "stopped", step });
  return events;
}

describe("a run that is resumed", () => {
  it("reaches bit-equal weights from any step, in the middle of everything a regime can do", async () => {
    const whole = await busy(tinyModel());
    await train(whole, settings);
    const expected = await weightsOf(whole);
    for (let step = 1; step < 12; step++) {
      const options = { ...settings, checkpoint: { dir: join(dir, String(step)) } };
      await stopAfter(await busy(tinyModel()), step, options);
      const resumed = await busy(tinyModel());
      await train(resumed, { ...options, resume: true });
      expect(await weightsOf(resumed), `resumed after step ${step}`).toBe(expected);
    }
  });

  it("reaches bit-equal weights with full fine-tuning, another optimiser and early stopping", async () => {
    const options: TrainOptions = {
      ...settings,
      optimizer: { method: sgd, options: { momentum: 0.9 } },
      learningRate: 0.3,
      steps: 40,
      evaluate: { every: 2, data: tinyBatches(2, 9) },
      earlyStopping: { patience: 2 },
    };
    const whole = unfreeze(tinyModel());
    const done = await train(whole, options);
    expect(done.reason).toBe("early-stopping");
    const checkpoint = { dir };
    await stopAfter(unfreeze(tinyModel()), done.step - 1, { ...options, checkpoint });
    const resumed = unfreeze(tinyModel());
    expect(await train(resumed, { ...options, checkpoint, resume: true })).toMatchObject({
      reason: "early-stopping",
      step: done.step,
      best: done.best,
      loss: done.loss,
    });
    expect(await weightsOf(resumed)).toBe(await weightsOf(whole));
  });

  it.each<[string, Partial<TrainOptions>]>([
    ["averages in 8 bits", { optimizer: { method: adamw, options: { state: "8bit", min8bitSize: 0 } } }],
    ["averages in bf16 and weights rounded at random", { optimizer: { method: adamw, options: { state: "bf16" } }, stochasticRounding: true }],
    ["factored averages", { optimizer: { method: adafactor, options: { beta1: 0.9 } } }],
    ["Lion and gradients limited by value", { optimizer: lion, clipValue: 0.01 }],
    [
      "8 bits in a projection, across its renewal",
      {
        optimizer: {
          method: galore,
          options: { rank: 2, updateProjGap: 3 },
          inner: { method: adamw, options: { state: "8bit", min8bitSize: 0 } },
        },
      },
    ],
  ])("reaches bit-equal weights with %s", async (_, more) => {
    const options: TrainOptions = { ...settings, ...more, steps: 8 };
    const whole = unfreeze(tinyModel());
    await train(whole, options);
    const checkpoint = { dir };
    await stopAfter(unfreeze(tinyModel()), 4, { ...options, checkpoint });
    const resumed = unfreeze(tinyModel());
    await train(resumed, { ...options, checkpoint, resume: true });
    expect(await weightsOf(resumed)).toBe(await weightsOf(whole));
  });

  it("reaches bit-equal weights and running statistics with a ResNet", async () => {
    const whole = tinyResnet();
    await train(whole, images);
    for (const step of [1, 4]) {
      const options = { ...images, checkpoint: { dir: join(dir, String(step)) } };
      await stopAfter(tinyResnet(), step, options);
      const resumed = tinyResnet();
      await train(resumed, { ...options, resume: true });
      expect(await weightsOf(resumed), `resumed after step ${step}`).toBe(await weightsOf(whole));
    }
  });

  it("refuses a checkpoint without the running statistics that its model has", async () => {
    const options = { ...images, checkpoint: { dir } };
    await stopAfter(tinyResnet(), 2, options);
    const path = join(dir, "step-0000002", "trainer.safetensors");
    // the header's length stays: only a name in it becomes another
    const file = (await readFile(path, "latin1")).replaceAll("buffers/bn1.running_mean", "buffers/bn1.running_maan");
    await writeFile(path, file, "latin1");
    await expect(train(tinyResnet(), { ...options, resume: join(dir, "step-0000002") })).rejects.toThrow("does not hold bn1.running_mean");
  });

  it("refuses another task, and other tensors that a function makes, fractions included", async () => {
    const options = { ...images, checkpoint: { dir } };
    await stopAfter(tinyResnet(), 2, options);
    await expect(train(tinyResnet(), { ...options, resume: true, task: regression })).rejects.toThrow('task was "classification", now it is "regression"');
    const other = (k: number) => imageBatch(k, 1e-3);
    await expect(train(tinyResnet(), { ...options, resume: true, batches: other })).rejects.toThrow("belongs to another run: data was");
    const listed = (shift: number) => ({ ...options, checkpoint: { dir: join(dir, "list") }, batches: [imageBatch(0, shift)] });
    await stopAfter(tinyResnet(), 2, listed(0));
    await expect(train(tinyResnet(), { ...listed(1e-3), resume: true })).rejects.toThrow("belongs to another run: data was");
  });

  it("starts anew where there is no checkpoint, and says so where one was named", async () => {
    const events: TrainingEvent[] = [];
    await train(await busy(tinyModel()), { ...settings, steps: 2, checkpoint: { dir }, resume: true, onEvent: (event) => events.push(event) });
    expect(events[0]).toMatchObject({ event: "start", step: 0 });
    await expect(train(await busy(tinyModel()), { ...settings, resume: join(dir, "nowhere") })).rejects.toThrow(/there is no checkpoint in .*nowhere/);
    await expect(train(await busy(tinyModel()), { ...settings, resume: true })).rejects.toThrow("resume needs the folder of the checkpoints");
  });

  it("goes on from another folder whose name begins like its own, and writes its own checkpoint", async () => {
    const [own, other] = [join(dir, "run"), join(dir, "run-old")];
    await train(await busy(tinyModel()), { ...settings, steps: 2, checkpoint: { dir: other } });
    const result = await train(await busy(tinyModel()), { ...settings, steps: 2, checkpoint: { dir: own }, resume: other });
    expect(result.checkpoint).toBe(join(own, "step-0000002"));
  });

  it("does nothing more where it had ended", async () => {
    const first = unfreeze(tinyModel());
    await train(first, { ...settings, checkpoint: { dir } });
    const again = unfreeze(tinyModel());
    const events: TrainingEvent[] = [];
    const result = await train(again, { ...settings, checkpoint: { dir }, resume: true, onEvent: (event) => events.push(event) });
    expect(result).toMatchObject({ step: 12, reason: "finished", checkpoint: join(dir, "step-0000012") });
    expect(events.map(({ event }) => event)).toEqual(["start", "end"]);
    expect(await weightsOf(again)).toBe(await weightsOf(first));
  });

  it("refuses other options, data or shapes, naming what differs", async () => {
    const checkpoint = { dir };
    await stopAfter(unfreeze(tinyModel()), 2, { ...settings, checkpoint });
    const resume = (options: Partial<TrainOptions>, model = unfreeze(tinyModel())) => train(model, { ...settings, checkpoint, resume: true, ...options });
    await expect(resume({ learningRate: 0.06 })).rejects.toThrow("belongs to another run: learningRate was 0.05, now it is 0.06");
    await expect(resume({ batches: tinyBatches(5, 2) })).rejects.toThrow("belongs to another run: data was");
    await expect(resume({ steps: 13 })).rejects.toThrow("steps was 12, now it is 13");
    await expect(resume({ optimizer: sgd })).rejects.toThrow('optimizer.id was "adamw", now it is "sgd"');
    await expect(
      resume(
        {},
        unfreeze(tinyModel(), (name) => name.includes("norm")),
      ),
    ).rejects.toThrow(/belongs to another run: (model|shapes)/);
    await expect(resume({}, await busy(tinyModel()))).rejects.toThrow("belongs to another run");
    await expect(train(unfreeze(tinyModel()), { ...settings, checkpoint })).rejects.toThrow("already holds checkpoints of a run, up to step 2");
  });

  it("passes over a broken newest checkpoint, with a warning, and clears what a killed run left", async () => {
    const checkpoint = { dir, every: 2, keep: 3 };
    await stopAfter(unfreeze(tinyModel()), 6, { ...settings, checkpoint });
    expect((await checkpointsIn(dir)).map(({ step }) => step)).toEqual([6, 4, 2]);
    await truncate(join(dir, "step-0000006", "trainer.safetensors"), 100);
    await rm(join(dir, "step-0000004", "trainer.json"));
    await mkdir(join(dir, ".step-0000008.123-abc.tmp"));
    await writeFile(join(dir, ".step-0000008.123-abc.tmp", "trainer.safetensors"), "half");
    const events: TrainingEvent[] = [];
    await train(unfreeze(tinyModel()), { ...settings, checkpoint, resume: true, onEvent: (event) => events.push(event) });
    expect(events.filter(({ event }) => event === "warning").length).toBe(2);
    expect(events.find(({ event }) => event === "start")).toMatchObject({ step: 2, resumed: join(dir, "step-0000002") });
    expect((await readdir(dir)).some((name) => name.startsWith("."))).toBe(false);
  });

  it("warns when it was made on another backend or CPU variant, and goes on", async () => {
    const checkpoint = { dir };
    await stopAfter(unfreeze(tinyModel()), 2, { ...settings, checkpoint });
    const path = join(dir, "step-0000002", "trainer.json");
    await writeFile(path, (await readFile(path, "utf8")).replace(/"cpu": "[^"]*"/, '"cpu": "other"'));
    const events: TrainingEvent[] = [];
    await train(unfreeze(tinyModel()), { ...settings, checkpoint, resume: true, onEvent: (event) => events.push(event) });
    expect(events[0]).toMatchObject({ event: "warning", message: expect.stringContaining("(other)") as string });
    expect(events[1]).toMatchObject({ event: "start", step: 2 });
  });

  it("keeps the last good checkpoint when the disk is full, and ends in a sentence", async () => {
    let writes = 0;
    const openFile = async (path: string) => {
      const { open } = await import("node:fs/promises");
      const handle = await open(path, "wx");
      return {
        write: async (bytes: Uint8Array) => {
          if (++writes > 200) throw Object.assign(new Error("full"), { code: "ENOSPC" });
          await handle.write(bytes);
        },
        sync: () => handle.sync(),
        close: () => handle.close(),
      };
    };
    const run = train(unfreeze(tinyModel()), { ...settings, checkpoint: { dir, every: 1, openFile } });
    await expect(run).rejects.toThrow(/the checkpoint of step \d+ could not be written: The disk is full/);
    const [last, ...rest] = await checkpointsIn(dir);
    expect(rest.length).toBeLessThan(2);
    await expect(run).rejects.toMatchObject({ code: "checkpoint", hint: expect.stringContaining(`The last good checkpoint is ${last!.path}`) as string });
    await train(unfreeze(tinyModel()), { ...settings, checkpoint: { dir }, resume: true });
  });
});
