import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { adapt, adapterParameters, attachedTo, dsee } from "../adapters/index.ts";
import { evaluate, parameters, unfreeze, type Model } from "../models/index.ts";
import { addDecayedWeights, chain, scaleByLearningRate, scaleInPlace } from "../optimizers/index.ts";
import { isReal, start, toBytes } from "../tensor/index.ts";
import { train, type TrainOptions } from "./index.ts";

beforeAll(() => start());

const NAME = "model.layers.1.mlp.up_proj.weight";
const weight = async (model: Model): Promise<number[]> => [...((await parameters(model).get(NAME)!.data()) as Float32Array)];
const settings: TrainOptions = { batches: tinyBatches(3), steps: 5, learningRate: 0.05 };

describe("averaged weights", () => {
  it("follow a ← decay·a + (1 − decay)·w from the weights the run starts with, and are its result", async () => {
    const model = unfreeze(tinyModel());
    let expected = await weight(model);
    for (let steps = 1; steps <= settings.steps!; steps++) {
      const plain = unfreeze(tinyModel());
      await train(plain, { ...settings, steps });
      const now = await weight(plain);
      expected = expected.map((a, i) => 0.8 * a + 0.2 * now[i]!);
    }
    await train(model, { ...settings, ema: { decay: 0.8 } });
    expect(await weight(model)).toEqual(expected.map((x) => expect.closeTo(x, 6) as number));
  });

  it("are what is evaluated, and training goes on from the weights themselves", async () => {
    const text = Array.from({ length: 40 }, (_, i) => i % 16);
    const losses: number[] = [];
    const model = unfreeze(tinyModel());
    await train(model, {
      ...settings,
      ema: { decay: 0.8 },
      evaluate: { every: 2, data: text },
      onEvent: (event) => void (event.event === "evaluation" && losses.push(event.loss)),
    });
    expect((await evaluate(model, text)).loss).toBeCloseTo(losses.at(-1)!, 6);
    const unwatched = unfreeze(tinyModel());
    await train(unwatched, { ...settings, ema: { decay: 0.8 } });
    expect(await weight(unwatched)).toEqual(await weight(model));
  });

  it("are in the checkpoint: a resumed run ends bit-equal", async () => {
    const dir = await mkdtemp(join(tmpdir(), "strut-ema-"));
    const options: TrainOptions = { ...settings, ema: { decay: 0.8 } };
    const whole = unfreeze(tinyModel());
    await train(whole, options);
    const stop = new AbortController();
    await train(unfreeze(tinyModel()), {
      ...options,
      checkpoint: { dir },
      signal: stop.signal,
      onEvent: (e) => void (e.event === "step" && e.step === 3 && stop.abort()),
    });
    const resumed = unfreeze(tinyModel());
    await train(resumed, { ...options, checkpoint: { dir }, resume: true });
    expect(await weight(resumed)).toEqual(await weight(whole));
    await rm(dir, { recursive: true });
  });

  it("leave an adapter's masks to the run: they are those of one without averages", async () => {
    const masks = async (options: Partial<TrainOptions>): Promise<string[]> => {
      const model = await adapt(tinyModel(), dsee, { r: 1, numSparse: 3, adPruningRatio: 0.5 }, { targets: ["q_proj"] });
      await train(model, { ...settings, ...options });
      const own = [...adapterParameters(attachedTo(model, "default")!)].filter(([, { dtype }]) => !isReal(dtype));
      return own.map(([name, w]) => `${name} ${toBytes(w).join()}`);
    };
    const plain = await masks({});
    expect(plain).toHaveLength(2);
    expect(await masks({ ema: { decay: 0.8 } })).toEqual(plain);
  });

  it("need a decay below 1", async () => {
    await expect(train(unfreeze(tinyModel()), { ...settings, ema: { decay: 1 } })).rejects.toThrow("ema.decay is 1; it must be at least 0 and below 1");
  });
});

describe("parameter groups by name", () => {
  const moved = async (options: Partial<TrainOptions>): Promise<string[]> => {
    const model = unfreeze(tinyModel());
    const before = new Map(await Promise.all([...parameters(model)].map(async ([name, w]) => [name, String(await w.data())] as const)));
    await train(model, { ...settings, steps: 1, ...options });
    const names: string[] = [];
    for (const [name, w] of parameters(model)) if (String(await w.data()) !== before.get(name)) names.push(name);
    return names;
  };

  it("take parts of names and patterns, the first that matches", async () => {
    const names = await moved({
      groups: [
        { match: "layers.1.mlp", learningRateFactor: 1 },
        { match: [".*norm.*", "layers.1"], learningRate: 0 },
        { match: "model", learningRate: 0 },
      ],
    });
    expect(names).toEqual(["gate_proj", "up_proj", "down_proj"].map((role) => `model.layers.1.mlp.${role}.weight`));
  });

  it("that match nothing end in a sentence", async () => {
    await expect(moved({ groups: [{ match: "atention" }] })).rejects.toThrow('the parameter group "atention" matches nothing that trains');
  });

  it("decay on matrices alone leaves norms as they are", async () => {
    const still = { learningRate: 0.1, batches: tinyBatches(1) };
    const decaying = chain({ scope: "parameter", init: () => ({}), update: (u) => (scaleInPlace(u, 0), u) }, addDecayedWeights(), scaleByLearningRate());
    const all = await moved({ ...still, optimizer: decaying, weightDecay: 0.5 });
    const matrices = await moved({ ...still, optimizer: decaying, weightDecay: 0.5, decayOn: "matrices" });
    expect(all.filter((name) => name.includes("norm")).length).toBe(5);
    expect(matrices).toEqual(all.filter((name) => !name.includes("norm")));
  });
});
