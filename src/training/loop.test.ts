import { beforeAll, describe, expect, it } from "vitest";
import { busy } from "../../test/support/probe.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { adapt, lora } from "../adapters/index.ts";
import { forward, parameters, unfreeze, type Model } from "../models/index.ts";
import type { Regime, Training } from "../nn/contracts.ts";
import { adamw, chain, scaleByLearningRate } from "../optimizers/index.ts";
import { noGrad, scale, start, sum, sumSquares, tensor, type Parameter, type Tensor } from "../tensor/index.ts";
import type { StepEvent, TrainingEvent } from "./events.ts";
import { train, type TrainOptions } from "./index.ts";
import { languageModelLoss } from "./loss.ts";

beforeAll(() => start());

const settings: TrainOptions = { batches: tinyBatches(3), steps: 6, learningRate: 0.05 };
const values = async (x: Tensor): Promise<number[]> => [...((await x.data()) as Float32Array)];
const bytes = async (model: Model): Promise<string> => (await Promise.all([...parameters(model).values()].map(values))).join();
const q0 = (model: Pick<Training, "parameters">): Parameter => model.parameters.get("model.layers.0.self_attn.q_proj.weight")!;

/** Runs with one regime on plain weights and gives the step events. */
async function withRegime(regime: Regime, options: Partial<TrainOptions> = {}, model = unfreeze(tinyModel())): Promise<StepEvent[]> {
  const steps: StepEvent[] = [];
  await train(model, { ...settings, ...options, regimes: [regime], onEvent: (event) => event.event === "step" && steps.push(event) });
  return steps;
}

describe("a step", () => {
  it("calls every hook at its moment, once", async () => {
    const log: string[] = [];
    await train(await busy(tinyModel(), log), {
      ...settings,
      batches: tinyBatches(4),
      accumulate: 2,
      steps: 5,
      evaluate: { every: 4, data: tinyBatches(2, 9) },
    });
    const step = (n: number, extra: { first?: string[]; last?: string[] } = {}) =>
      [
        ...(extra.first ?? []),
        "beforeForward",
        "loss of 3 hidden states",
        "loss of 3 hidden states",
        "afterBackward with 15 taps",
        "beforeStep",
        "afterStep, gradient there",
        ...(extra.last ?? []),
      ].map((what) => `${n} ${what}`);
    expect(log).toEqual([
      ...step(0, { first: [] }),
      ...step(1, { last: ["afterEpoch"] }),
      ...step(2),
      ...step(3, { last: ["afterEpoch"] }),
      "4 afterEvaluation",
      ...step(4, { first: ["phase"] }),
      "5 afterEvaluation",
    ]);
  });

  it("shows gradients before clipping to onGradient, clipped to beforeStep, and keeps them after the weights moved", async () => {
    const norms: number[][] = [];
    const weights: string[] = [];
    const norm = (t: Training): number => Math.sqrt(sumSquares([...t.parameters.values()].flatMap((w) => t.gradient(w) ?? [])));
    let squares = 0;
    const events = await withRegime(
      {
        beforeForward: () => void (squares = 0),
        onGradient: (_t, _w, g) => void (squares += sumSquares([g])),
        afterBackward: (t) => void norms.push([Math.sqrt(squares), norm(t)]),
        async beforeStep(t) {
          norms.at(-1)!.push(norm(t));
          weights.push(String(await values(q0(t))));
        },
        async afterStep(t) {
          norms.at(-1)!.push(norm(t));
          weights.push(String(await values(q0(t))));
        },
      },
      { clip: 0.5 },
    );
    for (const [i, [seen, before, clipped, after]] of norms.entries()) {
      expect(seen).toBeCloseTo(before!, 10);
      expect(events[i]!.gradNorm).toBeCloseTo(before!, 10);
      expect(clipped).toBeCloseTo(0.5, 4);
      expect(after).toBe(clipped);
      expect(weights[2 * i]).not.toBe(weights[2 * i + 1]);
    }
  });

  it("puts what onGradient returns in the gradient's place, and leaves alone what it freed", async () => {
    const doubled: Regime = { onGradient: (_t, w, g) => (w.name.includes("q_proj") ? scale(g, 0) : undefined) };
    const model = unfreeze(tinyModel());
    await withRegime(doubled, { optimizer: chain(scaleByLearningRate()) }, model);
    const base = tinyModel();
    for (const [name, w] of parameters(model))
      expect(String(await values(w)) === String(await values(parameters(base).get(name)!)), name).toBe(name.includes("q_proj"));
  });

  it("averages over its batches: two batches of two rows are one of four", async () => {
    const [a, b] = tinyBatches(2) as [{ ids: number[][] }, { ids: number[][] }];
    const gradient = async (options: Partial<TrainOptions>) => {
      let kept: number[] = [];
      const [event] = await withRegime(
        {
          async afterBackward(t) {
            kept = await values(t.gradient(q0(t))!);
          },
        },
        { steps: 1, ...options },
      );
      return { kept, event: event! };
    };
    const [split, joined] = [await gradient({ batches: [a, b], accumulate: 2 }), await gradient({ batches: [{ ids: [...a.ids, ...b.ids] }] })];
    expect(split.event.loss).toBeCloseTo(joined.event.loss, 5);
    split.kept.forEach((x, i) => expect(x).toBeCloseTo(joined.kept[i]!, 5));
    expect(split.event.tokens).toBe(32);
  });

  it("adds what regimes return as loss, and reports it apart", async () => {
    const [plain] = await withRegime({}, { steps: 1 });
    let pull: number[] = [];
    const [event] = await withRegime(
      {
        loss: (t) => scale(sum(q0(t)), 3),
        async afterBackward(t) {
          pull = await values(t.gradient(q0(t))!);
        },
      },
      { steps: 1 },
    );
    expect(event!.loss).toBe(plain!.loss);
    expect(event!.extraLoss).toBeCloseTo(3 * (await values(parameters(tinyModel()).get("model.layers.0.self_attn.q_proj.weight")!)).reduce((x, y) => x + y), 4);
    expect(pull.reduce((x, y) => x + y) / pull.length).toBeGreaterThan(2.5);
  });

  it("gives taps that agree with weight gradients: one row in, one row out is their outer product", async () => {
    await withRegime(
      {
        wants: ["taps"],
        async afterBackward(t) {
          const { input, outputGradient } = t.taps.get("lm_head")!;
          expect([input!.shape, outputGradient!.shape]).toEqual([[8], [16]]);
          const [, g] = [await values(input!), await values(outputGradient!)];
          // softmax minus one-hot sums to 0 over the classes
          expect(g.reduce((x, y) => x + y)).toBeCloseTo(0, 5);
          expect(Math.max(...g.map(Math.abs))).toBeGreaterThan(0.01);
        },
      },
      { steps: 2 },
    );
  });

  it("passes again without an update, with gradients that stay apart", async () => {
    await withRegime(
      {
        async afterBackward(t) {
          const before = await values(t.gradient(q0(t))!);
          const again = await t.pass(t.batch, { backward: true });
          expect(await values(again.gradients!.get(q0(t))!)).toEqual(before);
          expect((await t.pass(t.batch)).gradients).toBeUndefined();
          expect(await values(t.gradient(q0(t))!)).toEqual(before);
        },
      },
      { steps: 2 },
    );
  });
});

describe("what trains", () => {
  it("are the adapter's parameters only; the base is as it was to the last bit", async () => {
    const base = tinyModel();
    const before = await bytes(base);
    const tuned = await adapt(base, lora, { r: 2 });
    const events: TrainingEvent[] = [];
    const result = await train(tuned, { ...settings, steps: 30, onEvent: (event) => events.push(event) });
    const losses = events.flatMap((event) => (event.event === "step" ? [event.loss] : []));
    expect(losses.at(-1)).toBeLessThan(losses[0]!);
    expect(result.model).toBe(tuned);
    expect(await bytes(base)).toBe(before);
    expect(events[0]).toMatchObject({ event: "start", tensors: 8, parameters: 2 * (2 * (8 + 8) + 2 * (8 + 4)) });
    expect(events.at(-1)).toMatchObject({ event: "end", reason: "finished", step: 30 });
  });

  it("is chosen by `trainable`, from the next forward pass on; dropped state starts anew", async () => {
    const moved: boolean[] = [];
    const counts: unknown[] = [];
    let before = "";
    await withRegime({
      async beforeForward(t) {
        if (t.step === 1) t.trainable(q0(t), false, "drop");
        before = String(await values(q0(t)));
      },
      async afterStep(t) {
        moved.push(before !== String(await values(q0(t))));
        counts.push(t.moments(q0(t))[0]!["t"]);
        if (t.step === 3) t.trainable(q0(t), true);
        if (t.step === 0) expect(() => t.trainable(t.model.sites[0]!.bias as never, true)).toThrow();
      },
    });
    expect(moved).toEqual([true, false, false, false, true, true]);
    expect(counts).toEqual([1, 0, 0, 0, 1, 2]);
  });

  it("refuses to train a shared weight of the base", async () => {
    const tuned = await adapt(tinyModel(), lora, { r: 2 });
    const run = train(tuned, { ...settings, regimes: [{ beforeForward: (t) => t.trainable(q0(t), true) }] });
    await expect(run).rejects.toThrow("the base model is shared and never written");
    await expect(train(tinyModel(), settings)).rejects.toThrow("the model has nothing to train");
  });

  it("with `consume` are the model's own weights, and the old model is refused", async () => {
    const [copied, own] = [unfreeze(tinyModel()), tinyModel()];
    const weight = parameters(own).get("model.norm.weight")!;
    await train(copied, settings);
    const { model } = await train(own, { ...settings, consume: true });
    expect(parameters(model).get("model.norm.weight")).toBe(weight);
    expect(await bytes(model)).toBe(await bytes(copied));
    expect(() => forward(own, tensor([1, 2], [1, 2], "i32"))).toThrow("this model was given to train() with `consume: true`");
  });
});

describe("a run", () => {
  it("is the same twice, and for all that asked for random numbers elsewhere", async () => {
    const once = async () => {
      const model = await adapt(tinyModel(), lora, { r: 2, dropout: 0.3 });
      await train(model, settings);
      return values(model.adapters.get("default")!.entries.get("model.layers.0.self_attn.q_proj")!["B"]!);
    };
    expect(await once()).toEqual(await once());
  });

  it("stops at a loss that is not a number, names the step, and leaves weights as they were before", async () => {
    const model = unfreeze(tinyModel());
    let good = "";
    const run = withRegime(
      {
        async beforeForward(t) {
          good = await bytes(t.model as Model);
        },
        loss: (t) => scale(sum(q0(t)), t.step === 3 ? NaN : 0),
      },
      {},
      model,
    );
    await expect(run).rejects.toMatchObject({ code: "diverged", message: expect.stringContaining("the loss became NaN at step 4") as string });
    expect(await bytes(model)).toBe(good);
  });

  it("stops early when evaluations no longer fall, and tells the best", async () => {
    const result = await train(unfreeze(tinyModel()), {
      ...settings,
      steps: 500,
      evaluate: { every: 2, data: tinyBatches(1, 99) },
      earlyStopping: { patience: 3, minDelta: 0.001 },
    });
    expect(result.reason).toBe("early-stopping");
    expect(result.step).toBe(result.best!.step + 6);
  });

  it("evaluates token ids as `evaluate` does, and without keeping memory", async () => {
    const model = unfreeze(tinyModel());
    const ids = tinyBatches(8, 5).flatMap((batch) => batch.ids.flatMap((row) => Array.from(row)));
    const events: TrainingEvent[] = [];
    await train(model, { ...settings, evaluate: { every: 6, data: ids, window: 8 }, onEvent: (event) => events.push(event) });
    const batches = Array.from({ length: ids.length / 8 }, (_, i) => ids.slice(8 * i, 8 * i + 8));
    const loss = await noGrad(() => languageModelLoss(model, { ids: batches })).item();
    expect(events.find(({ event }) => event === "evaluation")).toMatchObject({ step: 6, tokens: 7 * batches.length, loss: expect.closeTo(loss, 5) as number });
  });

  it("lets timers run while it works", async () => {
    let ticks = 0;
    const timer = setInterval(() => ticks++, 10);
    const began = performance.now();
    await train(unfreeze(tinyModel()), { ...settings, steps: 250 });
    clearInterval(timer);
    expect(ticks).toBeGreaterThan(Math.floor((performance.now() - began) / 100) - 1);
  });

  it("ends in a sentence for options that make no sense", async () => {
    const bad = async (options: TrainOptions, message: string) => expect(train(unfreeze(tinyModel()), options)).rejects.toThrow(message);
    await bad({ steps: 3 }, "nothing to train on");
    await bad({ batches: [], steps: 3 }, "there is no batch");
    await bad({ batches: tinyBatches(1) }, "neither steps nor epochs");
    await bad({ ...settings, steps: 1.5 }, "steps is 1.5; it must be a whole number");
    await bad({ ...settings, clip: -1 }, "clip is -1");
    await bad({ ...settings, clipValue: 0 }, "clipValue is 0");
    await bad({ ...settings, schedule: "linaer" as never }, 'there is no schedule "linaer"');
    await bad({ ...settings, optimizer: { method: adamw, options: { betaz: [0, 0] } } }, "adamw has no option betaz");
    await bad({ ...settings, earlyStopping: { patience: 2 } }, "early stopping needs evaluations");
    await bad(
      {
        ...settings,
        batches: [
          {
            ids: [
              [1, 2, 3],
              [1, 2],
            ],
          },
        ],
      },
      "row 1 of a batch has 2 ids and 2 labels, expected 3",
    );
    await bad({ ...settings, batches: [{ ids: [[1, 99]] }] }, "99");
    await bad({ ...settings, batches: [{ ids: [[1, 2]], labels: [[-100, -100]] }] }, "no label of a batch is scored");
    await bad({ ...settings, regimes: [{ wants: ["teacher"] }] }, "needs a teacher");
    await bad({ ...settings, regimes: [{ wants: ["validation"] }] }, "needs validation batches");
  });

  it("lasts as many steps as its epochs hold, or its phases", async () => {
    expect((await train(unfreeze(tinyModel()), { batches: tinyBatches(3), epochs: 2, accumulate: 2 })).step).toBe(3);
    expect((await train(unfreeze(tinyModel()), { batches: tinyBatches(3), regimes: [{ phases: [{ steps: 2 }, { steps: 3 }] }] })).step).toBe(5);
  });
});
