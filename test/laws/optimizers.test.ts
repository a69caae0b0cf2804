import { beforeAll, describe, expect, it } from "vitest";
import { isOptimizer, methodById, methodIds } from "../../src/catalog.ts";
import { StrutError } from "../../src/errors.ts";
import { parameters, unfreeze, type Model } from "../../src/models/index.ts";
import type { Optimizer } from "../../src/optimizers/index.ts";
import { start, toBytes } from "../../src/tensor/index.ts";
import { train, type TrainOptions } from "../../src/training/index.ts";
import { tinyBatches, tinyModel } from "../support/tiny-model.ts";
import { inFolder } from "./scaffolds.ts";

beforeAll(async () => {
  await start();
});

const catalog: Optimizer[] = (await Promise.all(methodIds.map(methodById))).filter(isOptimizer);

/** Sizes that a model of width 8 leaves room for, and periods that a run of seven steps goes through. */
const small: Readonly<Record<string, unknown>> = {
  rank: 3,
  updateProjGap: 3,
  updateGap: 3,
  invFreq: 2,
  interval: 2,
  activatedLayers: 1,
  gap: 3,
  min8bitSize: 0,
};
const optionsOf = ({ options }: Optimizer): Record<string, unknown> =>
  Object.fromEntries(Object.entries(small).filter(([name]) => Object.hasOwn(options.shape, name)));

const bits = (model: Model): string[] => [...parameters(model)].map(([name, w]) => `${name} ${toBytes(w).join()}`);
const settings: TrainOptions = { batches: tinyBatches(3), steps: 7, learningRate: 0.02, schedule: "cosine", seed: 3 };

async function trained(method: Optimizer, more: Partial<TrainOptions> = {}, options: Record<string, unknown> = {}): Promise<string[]> {
  const model = unfreeze(tinyModel());
  await train(model, { ...settings, optimizer: { method, options: { ...optionsOf(method), ...options } }, ...more });
  return bits(model);
}

describe.each(catalog.map((method) => [method.id, method] as const))("%s", (id, method) => {
  it("moves the weights, and gives the same bits for the same seed", async () => {
    const once = await trained(method);
    expect(once).not.toEqual(bits(tinyModel()));
    expect(await trained(method)).toEqual(once);
  });

  it("moves nothing at a rate of 0", async () => {
    expect(await trained(method, { learningRate: 0 })).toEqual(bits(tinyModel()));
  });

  it("ends bit-equal when it is stopped after any step and resumed", async () => {
    const expected = await trained(method);
    await inFolder(async (folder) => {
      for (let step = 1; step < settings.steps!; step++) {
        const checkpoint = { dir: `${folder}/${step}` };
        const stop = new AbortController();
        await trained(method, { checkpoint, signal: stop.signal, onEvent: (event) => void (event.event === "step" && event.step === step && stop.abort()) });
        expect(await trained(method, { checkpoint, resume: true }), `resumed after step ${step}`).toEqual(expected);
      }
    });
  });

  it("gives the same bits when weights move inside backward, or says why it cannot", async () => {
    const refusal = await trained(method, { updateInBackward: true, steps: 0 }).then(
      () => undefined,
      (error: unknown) => error,
    );
    if (refusal === undefined) expect(await trained(method, { updateInBackward: true })).toEqual(await trained(method));
    else {
      expect(refusal).toBeInstanceOf(StrutError);
      expect((refusal as StrutError).message).toMatch(/^updateInBackward moves each weight before the other gradients are known, but /);
    }
  });

  it("says what its options are, and refuses others", async () => {
    for (const [name, option] of Object.entries(method.options.shape)) expect(option, name).toMatchObject({ description: expect.stringMatching(/\w/) });
    await expect(trained(method, {}, { rnak: 3 })).rejects.toThrow(`${id} has no option rnak`);
  });
});
