import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { adapt, lora } from "../adapters/index.ts";
import { parameters, randomModel, unfreeze, type Model } from "../models/index.ts";
import type { Regime } from "../nn/contracts.ts";
import { adafactor, adamCore, adamw, chain, clipByGlobalNorm, clipByValue, galore, lamb, lion, scaleByLearningRate, sgd } from "../optimizers/index.ts";
import { add, engine, Rng, start, toBytes, type Parameter } from "../tensor/index.ts";
import { train, type StepEvent, type TrainOptions } from "./index.ts";

let dir: string;
beforeAll(() => start());
beforeEach(async () => void (dir = await mkdtemp(join(tmpdir(), "strut-train-"))));
afterEach(() => rm(dir, { recursive: true, force: true }));

const gpt2 = (): Model =>
  randomModel({ model_type: "gpt2", vocab_size: 16, n_embd: 8, n_head: 2, n_layer: 2, n_positions: 16 }, (name, shape) =>
    new Rng(2).fork(name).normal(shape, 0.3),
  );
const models = { "llama with a tied head": tinyModel, "gpt2 with a tied head": gpt2 };
const settings: TrainOptions = { batches: tinyBatches(3), steps: 7, learningRate: 0.02, schedule: "cosine", seed: 3 };
const weights = (model: Model): string[] => [...parameters(model)].map(([name, w]) => `${name} ${Buffer.from(toBytes(w)).toString("base64")}`);

/** The everyday chain with a link that the fused kernel does not know, so that each link runs by itself. */
const unfused = () => chain(clipByValue(0.01), adamCore(), scaleByLearningRate());
/** Adds noise, from random numbers that must not depend on when a weight's turn comes. */
const noisy = () => chain({ scope: "parameter", init: () => ({}), update: (u, _s, w, t) => add(u, t.rng.normal(w.shape, 0.01)) }, scaleByLearningRate());

const optimizers = {
  "AdamW in one kernel": { method: adamw, options: { weightDecay: 0.1 } },
  "SGD with momentum": { method: sgd, options: { momentum: 0.9 } },
  "a chain link by link": unfused(),
  "AdamW in 8 bits": { method: adamw, options: { state: "8bit", min8bitSize: 0 } },
  "GaLore around bf16": { method: galore, options: { rank: 2, updateProjGap: 3 }, inner: { method: adamw, options: { state: "bf16" } } },
  Adafactor: { method: adafactor, options: { beta1: 0.9 } },
  Lion: lion,
  "a chain with random numbers": noisy(),
} satisfies Record<string, TrainOptions["optimizer"]>;

describe("updateInBackward", () => {
  for (const [name, make] of Object.entries(models))
    for (const [title, optimizer] of Object.entries(optimizers))
      it(`gives bit-equal weights and the same losses and norms: ${name}, ${title}`, async () => {
        const run = async (options: Partial<TrainOptions>) => {
          const [model, events] = [unfreeze(make()), [] as StepEvent[]];
          await train(model, { ...settings, optimizer, ...options, onEvent: (event) => void (event.event === "step" && events.push(event)) });
          return { weights: weights(model), seen: events.map(({ loss, gradNorm }) => [loss, Math.fround(gradNorm)]) };
        };
        const ordinary = await run({});
        const inBackward = await run({ updateInBackward: true });
        expect(inBackward).toEqual(ordinary);
        expect(await run({ updateInBackward: true, recompute: true })).toEqual(await run({ recompute: true }));
        expect(ordinary.weights).not.toEqual(weights(unfreeze(make())));
      });

  it("gives bit-equal weights with gradients limited by value and weights rounded at random", async () => {
    const run = async (options: Partial<TrainOptions>) => {
      const model = unfreeze(gpt2());
      await train(model, { ...settings, optimizer: sgd, clipValue: 1e-3, stochasticRounding: true, ...options });
      return weights(model);
    };
    expect(await run({ updateInBackward: true })).toEqual(await run({}));
    expect(await run({ clipValue: 1 })).not.toEqual(await run({}));
    expect(await run({ stochasticRounding: false })).not.toEqual(await run({}));
  });

  it("holds one gradient at a time", async () => {
    // wide enough that the matrices outweigh the activations
    const wide = (): Model =>
      unfreeze(
        randomModel({ model_type: "gpt2", vocab_size: 16, n_embd: 128, n_head: 2, n_layer: 4, n_positions: 16 }, (name, shape) =>
          new Rng(2).fork(name).normal(shape, 0.02),
        ),
      );
    const peak = async (updateInBackward: boolean): Promise<number> => {
      const model = wide();
      const { pool } = engine();
      const before = pool.usedBytes;
      await train(model, {
        ...settings,
        steps: 2,
        updateInBackward,
        optimizer: sgd,
        onEvent: ({ event }) => event === "start" && (pool.peakBytes = pool.usedBytes),
      });
      return pool.peakBytes - before;
    };
    const size = [...parameters(wide()).values()].reduce((sum, w) => sum + 4 * w.size, 0);
    expect((await peak(false)) - (await peak(true))).toBeGreaterThan(0.7 * size);
  });

  it("resumes bit for bit, after a stop by the signal and also in the other mode", async () => {
    const whole = unfreeze(gpt2());
    await train(whole, settings);
    for (const [first, second] of [
      [true, true],
      [true, false],
      [false, true],
    ]) {
      const checkpoint = { dir: join(dir, `${first} ${second}`) };
      const stop = new AbortController();
      const stopped = await train(unfreeze(gpt2()), {
        ...settings,
        updateInBackward: first!,
        checkpoint,
        signal: stop.signal,
        onEvent: (event) => event.event === "step" && event.step === 3 && stop.abort(),
      });
      expect(stopped).toMatchObject({ stopped: true, step: 3 });
      const resumed = unfreeze(gpt2());
      await train(resumed, { ...settings, updateInBackward: second!, checkpoint, resume: true });
      expect(weights(resumed)).toEqual(weights(whole));
    }
  });

  it("keeps hooks on single gradients and after the step, and the masks of views", async () => {
    const run = async (updateInBackward: boolean): Promise<string[]> => {
      const model = await adapt(tinyModel(), lora, { r: 2 });
      const entries = [...model.adapters.get("default")!.entries.values()];
      const regime: Regime = {
        onGradient: (_t, w, g) => (w.name.endsWith("A") ? add(g, g) : undefined),
        afterStep: (t) => void t.rng,
      };
      const masked: Regime = {
        beforeForward: (t) =>
          t.views[0]?.mask(
            "B",
            Uint8Array.from({ length: 8 }, (_, i) => i % 2),
          ),
      };
      Object.assign(model.adapters.get("default")!, { regime: masked });
      await train(model, { ...settings, updateInBackward, regimes: [regime] });
      return entries.flatMap((params) => Object.values(params).map((w) => Buffer.from(toBytes(w as Parameter)).toString("base64")));
    };
    expect(await run(true)).toEqual(await run(false));
  });

  it("refuses what needs all gradients, with what to do", async () => {
    const refused = (options: Partial<TrainOptions>, message: RegExp) =>
      expect(train(unfreeze(tinyModel()), { ...settings, updateInBackward: true, ...options })).rejects.toThrow(message);
    await refused({ clip: 1 }, /updateInBackward .* clip needs the norm of all/);
    await refused({ accumulate: 2 }, /accumulate is 2/);
    await refused({ optimizer: chain(clipByGlobalNorm(1), scaleByLearningRate()) }, /several tensors together/);
    await refused({ optimizer: chain({ scope: "parameter", taps: {}, init: () => ({}), update: (u) => u }, scaleByLearningRate()) }, /reads taps/);
    await refused({ optimizer: lamb }, /several tensors together/);
    await refused({ regimes: [{ beforeStep: () => {} }] }, /regime\/0 has a hook beforeStep/);
    await refused({ regimes: [{ afterBackward: () => {} }] }, /regime\/0 has a hook afterBackward/);
    await refused(
      { regimes: [{ afterStep: (t) => void t.gradient([...t.parameters.values()][0]!) }] },
      /regime\/0 asks for a gradient that updateInBackward used/,
    );
    await refused(
      { regimes: [{ onGradient: (_t, _w, g) => (g.shape.length === 1 ? add(g, new Rng(1).normal(g.shape, Infinity)) : undefined) }] },
      /the gradient of .* became .* at step 1/,
    );
  });
});
