import { beforeAll, describe, expect, it } from "vitest";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { adapt, adapterParameters, attachedTo, lora } from "../adapters/index.ts";
import { parameters, unfreeze, type Model } from "../models/index.ts";
import { adamw, galore, sgd } from "../optimizers/index.ts";
import { start } from "../tensor/index.ts";
import type { MemoryEvent } from "./events.ts";
import { train, type TrainOptions } from "./index.ts";

beforeAll(() => start());

async function memory(model: Model, options: Partial<TrainOptions> = {}): Promise<MemoryEvent> {
  const told: MemoryEvent[] = [];
  await train(model, { batches: tinyBatches(2), steps: 2, ...options, onEvent: (event) => void (event.event === "memory" && told.push(event)) });
  expect(told).toHaveLength(1);
  return told[0]!;
}

const shapes = (): [string, readonly number[]][] => [...parameters(tinyModel())].map(([name, { shape }]) => [name, shape]);
let sizes: number[];
let all: number;
beforeAll(() => {
  sizes = shapes().map(([, shape]) => shape.reduce((a, b) => a * b, 1));
  all = sizes.reduce((a, b) => a + b, 0);
});

describe("the memory of a run, in bytes", () => {
  it("full with Adam: mn weights, mn gradients, 2mn states", async () => {
    expect(await memory(unfreeze(tinyModel()), { optimizer: adamw })).toMatchObject({ weights: 4 * all, gradients: 4 * all, states: 8 * all });
  });

  it("without momentum there is no state; in backward one gradient is alive at a time", async () => {
    const told = await memory(unfreeze(tinyModel()), { optimizer: sgd, updateInBackward: true });
    expect(told).toMatchObject({ states: 0, gradients: 4 * Math.max(...sizes) });
  });

  it("LoRA: mn + r(m + n) weights, r(m + n) gradients, 2r(m + n) states", async () => {
    const model = await adapt(tinyModel(), lora, { r: 2 }, { targets: ["q_proj", "down_proj"] });
    const own = [...adapterParameters(attachedTo(model, model.active[0]!)!).values()].reduce((sum, { size }) => sum + size, 0);
    expect(own).toBe(2 * 2 * (8 + 8 + (12 + 8)));
    expect(await memory(model, { optimizer: adamw })).toMatchObject({ weights: 4 * (all + own), gradients: 4 * own, states: 8 * own });
  });

  it("GaLore: 2·r·max + r·min states a matrix", async () => {
    const r = 3;
    const expected = shapes().reduce((sum, [name, shape]) => {
      const [m, n] = [shape[0]!, shape[1] ?? 1];
      return sum + (/attn|mlp/.test(name) ? 2 * r * Math.max(m, n) + r * Math.min(m, n) : 2 * m * n);
    }, 0);
    expect((await memory(unfreeze(tinyModel()), { optimizer: { method: galore, options: { rank: r } } })).states).toBe(4 * expected);
  });

  it("activations grow with the batch, and the peak holds everything", async () => {
    const wide = tinyBatches(2).map(({ ids }) => ({ ids: [...ids, ...ids, ...ids] }));
    const [one, three] = [await memory(unfreeze(tinyModel())), await memory(unfreeze(tinyModel()), { batches: wide })];
    expect(three.activations).toBeGreaterThan(2 * one.activations);
    expect(one.peak).toBeGreaterThan(one.weights + one.gradients + one.states);
  });
});
