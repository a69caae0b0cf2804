import { beforeAll, describe, expect, it } from "vitest";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { throughDisk } from "../../test/support/through-disk.ts";
import { leaf } from "../../test/support/gradients.ts";
import { forward, type Model } from "../models/index.ts";
import type { Regime, Training } from "../nn/contracts.ts";
import { backward, noGrad, Parameter, start, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { train, type TrainOptions } from "../training/index.ts";
import { adalora, adapt, attachedTo, budgetAt, lora, toLora } from "./index.ts";
import { cubic, orthogonalityGap } from "./sensitivity.ts";

beforeAll(() => start());

const numbers = async (x: Tensor): Promise<number[]> => [...(await x.data())].map(Number);
const settings: TrainOptions = { batches: tinyBatches(3), steps: 20, learningRate: 0.02 };
const schedule = { initR: 4, targetR: 2, tinit: 4, tfinal: 6, deltaT: 3, alpha: 8 };
const make = (options: object): Promise<Model> => adapt(tinyModel(), adalora, options, { targets: ["q_proj", "v_proj"] });
const entriesOf = (model: Model) => [...attachedTo(model, "default")!.entries.values()] as { A: Parameter; B: Parameter; E: Parameter }[];
const alive = async (model: Model): Promise<number> => (await Promise.all(entriesOf(model).map(({ E }) => numbers(E)))).flat().filter((e) => e !== 0).length;
const logits = (model: Model): Promise<number[]> => numbers(noGrad(() => forward(model, tensor([3, 1, 4, 1, 5], [1, 5], "i32"))));

/** Trains, and looks after every step. */
async function watched(model: Model, more: Partial<TrainOptions>, afterStep: (t: Training) => Promise<void>): Promise<Model> {
  const watch: Regime = { afterStep };
  return (await train(model, { ...settings, ...more, regimes: [watch] })).model;
}

describe("AdaLoRA's schedule", () => {
  it("is the sheet's example: r 4→2, tinit 2, tfinal 3, ten steps: 4, 4, 4, 3, 2, 2 …, masking from step 3", () => {
    const o = adalora.options.parse({ initR: 4, targetR: 2, tinit: 2, tfinal: 3, deltaT: 1 });
    const course = Array.from({ length: 11 }, (_, t) => budgetAt(t, 10, 1, o));
    expect(course.map(({ budget }) => budget)).toEqual([4, 4, 4, 3, 2, 2, 2, 2, 2, 2, 2]);
    expect(course.map(({ masks }) => masks)).toEqual([false, false, false, ...Array<boolean>(8).fill(true)]);
  });

  it.each([
    [8, 2, 3, 10, 5],
    [12, 0, 0, 0, 1],
    [6, 6, 1, 1, 2],
  ])("never rises, starts at the initial and ends at the target budget: r %i→%i, tinit %i, tfinal %i, deltaT %i", (initR, targetR, tinit, tfinal, deltaT) => {
    const o = adalora.options.parse({ initR, targetR, tinit, tfinal, deltaT });
    const course = Array.from({ length: 61 }, (_, t) => budgetAt(t, 60, 7, o).budget);
    expect([course[0], course[60 - tfinal]]).toEqual([7 * initR, 7 * targetR]);
    course.slice(1).forEach((budget, t) => expect(budget).toBeLessThanOrEqual(course[t]!));
  });

  it("falls by a cube: an eighth of the way is left in the middle", () => {
    expect(cubic(10, 0, 20, 64, 0)).toBe(8);
  });

  it("run by train, leaves as many triplets as the budget says after each masking, and never more at the end than the target", async () => {
    const o = adalora.options.parse(schedule);
    const seen: [number, number, boolean][] = [];
    const model = await make(schedule);
    await watched(model, {}, async ({ step }) => {
      const { budget, masks } = budgetAt(step + 1, 20, 4, o);
      seen.push([await alive(model), budget, masks]);
    });
    for (const [count, budget, masks] of seen) if (masks) expect(count).toBe(budget);
    expect(seen.filter(([, , masks]) => masks).length).toBeGreaterThan(8);
    expect(seen.slice(0, 4).map(([count]) => count)).toEqual([16, 16, 16, 16]);
    expect(seen.slice(13).map(([count]) => count)).toEqual(Array(7).fill(8));
  });

  it("masks E alone: at the first masking A and B are those of a run that never masks", async () => {
    const states: number[][][] = [];
    for (const targetR of [2, 4]) {
      const model = await make({ ...schedule, targetR, tinit: 2 });
      const found: number[][] = [];
      await watched(model, {}, async ({ step }) => {
        if (step === 2) for (const { A, B, E } of entriesOf(model)) found.push([...(await numbers(A)), ...(await numbers(B))], await numbers(E));
      });
      states.push(found);
    }
    const [pruned, whole] = states as [number[][], number[][]];
    pruned.forEach((values, i) => {
      if (i % 2 === 0) expect(values).toEqual(whole[i]);
      else values.forEach((e, j) => expect([0, whole[i]![j]]).toContain(e));
    });
    expect(pruned.flatMap((values, i) => (i % 2 === 1 ? values : [])).filter((e) => e === 0).length).toBeGreaterThan(0);
  });

  it("scores by |w·∂w| of the weights after the step and the step's gradient, whole and clipped", async () => {
    const model = await make(schedule);
    const state = attachedTo(model, "default")!.regime!.state as Record<string, Record<string, { mean: Tensor; change: Tensor }>>;
    let checked = 0;
    await watched(model, { accumulate: 2, clip: 0.01 }, async ({ step, gradient }) => {
      if (step > 0) return;
      for (const [path, params] of attachedTo(model, "default")!.entries)
        for (const [name, w] of Object.entries(params)) {
          const [values, slopes] = [await numbers(w), await numbers(gradient(w as Parameter)!)];
          const { mean, change } = state[path]![name]!;
          const [I, U] = [await numbers(mean), await numbers(change)];
          values.forEach((value, i) => {
            const sensitivity = Math.abs(value * slopes[i]!);
            expect(I[i]).toBeCloseTo(0.15 * sensitivity, 8);
            expect(U[i]).toBeCloseTo(0.15 * (sensitivity - 0.15 * sensitivity), 8);
            checked += Number(sensitivity > 1e-6);
          });
        }
    });
    expect(checked).toBeGreaterThan(50);
  });

  it("lets E grow again between two maskings", async () => {
    const model = await make(schedule);
    const counts: number[] = [];
    await watched(model, {}, async () => void counts.push(await alive(model)));
    const masked = budgetAt(6, 20, 4, adalora.options.parse(schedule)).budget;
    expect(counts.slice(5, 8)).toEqual([masked, 16, 16]);
  });

  it("prunes triplets that tie at the threshold together, below the budget", async () => {
    const model = await make({ ...schedule, importance: "magnitude" });
    const even: Regime = { beforeStep: () => entriesOf(model).forEach(({ E }) => E.assign(tensor([1, 1, 1, 1], [4, 1]))) };
    const counts: number[] = [];
    const watch: Regime = { afterStep: async () => void counts.push(await alive(model)) };
    await train(model, { ...settings, learningRate: 1e-30, regimes: [even, watch] });
    expect(counts.slice(4, 6)).toEqual([16, 0]);
  });

  it("spends the budget by this step's sensitivity too, which keeps others", async () => {
    const kept = async (options: object): Promise<boolean[]> => {
      const model = await make({ ...schedule, ...options });
      await train(model, settings);
      return (await Promise.all(entriesOf(model).map(({ E }) => numbers(E)))).flat().map((e) => e !== 0);
    };
    const own = await kept({ importance: "sensitivity" });
    expect(own.filter(Boolean).length).toBe(8);
    expect(own).not.toEqual(await kept({}));
  });

  it("by magnitude keeps the largest |E|", async () => {
    const model = await make({ ...schedule, importance: "magnitude" });
    // E as it is set here before the step, which hardly moves it
    const before = Array.from({ length: 16 }, (_, i) => (i % 2 === 0 ? 1 : -1) * (1 + ((i * 7) % 16)));
    const look: Regime = { beforeStep: () => entriesOf(model).forEach(({ E }, i) => E.assign(tensor(before.slice(4 * i, 4 * i + 4), [4, 1]))) };
    const { budget } = budgetAt(6, 20, 4, adalora.options.parse(schedule));
    const check: Regime = {
      async afterStep({ step }) {
        if (step !== 5) return;
        const now = (await Promise.all(entriesOf(model).map(({ E }) => numbers(E)))).flat();
        const edge = before.map(Math.abs).toSorted((a, b) => b - a)[budget - 1]!;
        expect(now.map((e) => e !== 0)).toEqual(before.map((e) => Math.abs(e) >= edge));
      },
    };
    await train(model, { ...settings, regimes: [look, check] });
  });

  it("prunes nothing where target and initial rank are the same", async () => {
    const model = await make({ ...schedule, targetR: 4 });
    await watched(model, {}, async ({ step }) => {
      if (step > 0) expect(await alive(model)).toBe(16);
    });
  });

  it("keeps two averages of each parameter", async () => {
    const model = await make(schedule);
    await train(model, settings);
    const state = attachedTo(model, "default")!.regime!.state as Record<string, Record<string, { mean: Tensor; change: Tensor }>>;
    for (const [path, params] of attachedTo(model, "default")!.entries)
      for (const [name, w] of Object.entries(params)) expect([state[path]![name]!.mean.shape, state[path]![name]!.change.shape]).toEqual([w.shape, w.shape]);
  });

  it.each([
    [{ tinit: 14, tfinal: 6 }, "tinit 14 and tfinal 6 leave no step of the 20 for pruning"],
    [{ totalStep: 100 }, "its schedule has 100 steps and the run 20"],
    [{ targetR: 5 }, "targetR 5 is above initR 4"],
    [{ initR: 5 }, "rank 5 is above what model.layers.0.self_attn.v_proj can have: its matrix is 4×8"],
  ])("ends in a sentence: %o", async (wrong, sentence) => {
    await expect(make({ ...schedule, ...wrong }).then((model) => train(model, settings))).rejects.toThrow(sentence);
  });
});

describe("AdaLoRA's regulariser", () => {
  /** ‖M·Mᵀ − I‖_F of rows, in plain numbers. */
  const gap = async (m: Tensor): Promise<number> => {
    const [values, [rows, cols]] = [await numbers(m), m.shape as [number, number]];
    let sum = 0;
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < rows; j++) {
        let dot = i === j ? -1 : 0;
        for (let k = 0; k < cols; k++) dot += values[i * cols + k]! * values[j * cols + k]!;
        sum += dot * dot;
      }
    return Math.sqrt(sum);
  };

  it("is the unsquared Frobenius norm, of rows or of columns", async () => {
    const m = leaf([3, 5], 1);
    const turned = tensor(
      (await numbers(m)).map((_, at, all) => all[(at % 3) * 5 + Math.floor(at / 3)]!),
      [5, 3],
      "f64",
    );
    expect(await orthogonalityGap(m, "rows").item()).toBeCloseTo(await gap(m), 12);
    expect(await orthogonalityGap(turned, "columns").item()).toBeCloseTo(await gap(m), 12);
  });

  it("has the gradient 0 where it is 0, and at rank 0", async () => {
    const orthonormal = new Parameter(tensor([1, 0, 0, 0, 1, 0], [2, 3], "f64"));
    expect(await numbers(backward(orthogonalityGap(orthonormal, "rows")).get(orthonormal)!)).toEqual(Array(6).fill(0));
    const none = new Parameter(zeros([0, 3], "f64"));
    expect(await orthogonalityGap(none, "rows").item()).toBe(0);
    expect(backward(orthogonalityGap(none, "rows")).get(none)?.shape).toEqual([0, 3]);
  });

  it("is the mean over all factors times its weight in the loss, and training brings it down", async () => {
    const model = await make({ ...schedule, orthRegWeight: 0.3 });
    const mean = async (): Promise<number> => {
      const gaps = await Promise.all(entriesOf(model).flatMap(({ A, B }) => [gap(A), orthogonalityGap(B, "columns").item()]));
      return (0.3 * gaps.reduce((a, b) => a + b)) / gaps.length;
    };
    const before = await mean();
    const extra: number[] = [];
    await train(model, { ...settings, onEvent: (event) => void (event.event === "step" && extra.push(event.extraLoss!)) });
    expect(extra[0]).toBeCloseTo(before, 5);
    expect(await mean()).toBeLessThan(0.9 * before);
  });
});

describe("a trained AdaLoRA", () => {
  it("computes B·diag(E)·A·α/(initR + 1e-5) whatever rank is left", async () => {
    const p = { A: leaf([2, 3], 1), B: leaf([4, 2], 2), E: leaf([2, 1], 3) };
    const [a, b, e] = [await numbers(p.A), await numbers(p.B), await numbers(p.E)];
    const scale = 8 / (6 + 1e-5);
    const expected = Array.from(
      { length: 12 },
      (_, at) => scale * [0, 1].reduce((s, k) => s + b[Math.floor(at / 3) * 2 + k]! * e[k]! * a[k * 3 + (at % 3)]!, 0),
    );
    const dense = await numbers(adalora.update!(p, undefined as never, adalora.options.parse({ initR: 6, alpha: 8 }), undefined as never, {}).toDense());
    dense.forEach((value, i) => expect(value).toBeCloseTo(expected[i]!, 12));
  });

  it("is scaled by initR / (initR + 1e-5) where alpha is not positive", async () => {
    const p = { A: leaf([1, 2], 1), B: leaf([2, 1], 2), E: tensor([1], [1, 1], "f64") };
    const at = (alpha: number): Promise<number[]> =>
      numbers(adalora.update!(p, undefined as never, adalora.options.parse({ initR: 6, alpha }), undefined as never, {}).toDense());
    for (const alpha of [0, -3]) expect(await at(alpha)).toEqual(await at(6));
  });

  it("becomes PEFT's LoRA of the triplets that are left: lora_alpha at each site is alpha·(what is left)/(initR + 1e-5)", async () => {
    const model = await make({ ...schedule, targetR: 1 });
    await train(model, settings);
    entriesOf(model)[0]!.E.assign(zeros([4, 1]));
    const { model: plain, error } = await toLora(model);
    expect(error.total).toBe(0);
    const { loaded, json } = await throughDisk(plain, tinyModel(), [lora]);
    const config = json["adapter_config.json"] as {
      r: number;
      lora_alpha: number;
      rank_pattern: Record<string, number>;
      alpha_pattern: Record<string, number>;
    };
    const ranks = await Promise.all(entriesOf(model).map(async ({ E }) => (await numbers(E)).filter((e) => e !== 0).length));
    expect(attachedTo(loaded, "default")!.entries.size).toBe(ranks.filter((r) => r > 0).length);
    expect(config.r).toBe(Math.max(...ranks));
    expect(config.lora_alpha).toBeCloseTo((8 * config.r) / (4 + 1e-5), 10);
    for (const [path, r] of Object.entries(config.rank_pattern)) expect(config.alpha_pattern[path]).toBeCloseTo((8 * r) / (4 + 1e-5), 10);
    const [now, before] = [await logits(loaded), await logits(model)];
    now.forEach((value, i) => expect(value).toBeCloseTo(before[i]!, 5));
  });

  it("has a total_step that PEFT accepts in its folder: the run's, before one the least that the schedule allows; and trains on from there", async () => {
    const model = await make(schedule);
    const fresh = await throughDisk(model, tinyModel(), [adalora]);
    expect(fresh.json["adapter_config.json"]).toMatchObject({ tinit: 4, tfinal: 6, total_step: 11 });
    await train(model, settings);
    const trained = await throughDisk(model, tinyModel(), [adalora]);
    expect(trained.json["adapter_config.json"]).toMatchObject({ total_step: 20 });
    await train(trained.loaded, { ...settings, steps: 12 });
    expect(await alive(trained.loaded)).toBe(8);
  });

  it("is saved without its zero triplets, rank 0 included, and answers the same when loaded", async () => {
    const model = await make({ ...schedule, targetR: 1 });
    await train(model, settings);
    const first = entriesOf(model)[0]!;
    first.E.assign(zeros([4, 1]));
    const { loaded, shapes, json } = await throughDisk(model, tinyModel(), [adalora]);
    const config = json["adapter_config.json"] as { rank_pattern: Record<string, boolean[]> };
    const prefix = "base_model.model.model.layers.0.self_attn.q_proj";
    expect(["A", "B", "E"].map((name) => shapes.get(`${prefix}.lora_${name}`))).toEqual([
      [0, 8],
      [8, 0],
      [0, 1],
    ]);
    expect(config).toMatchObject({
      peft_type: "ADALORA",
      init_r: 4,
      target_r: 1,
      rank_pattern: { "model.layers.0.self_attn.q_proj.lora_E": [false, false, false, false] },
    });
    for (const [path, { E }] of attachedTo(model, "default")!.entries)
      expect(config.rank_pattern[`${path}.lora_E`]).toEqual((await numbers(E!)).map((e) => e !== 0));
    const [now, before] = [await logits(loaded), await logits(model)];
    now.forEach((value, i) => expect(value).toBeCloseTo(before[i]!, 5));
  });
});
