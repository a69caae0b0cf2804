import { beforeAll, describe, expect, it } from "vitest";
import { leaf } from "../../test/support/gradients.ts";
import { throughDisk } from "../../test/support/through-disk.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { adafactor } from "../optimizers/index.ts";
import { forward, type Model } from "../models/index.ts";
import type { Regime, Training } from "../nn/contracts.ts";
import { noGrad, start, tensor, zeros, type Parameter, type Tensor } from "../tensor/index.ts";
import { train, type TrainOptions } from "../training/index.ts";
import { adapt, atRank, attachedTo, dylora, lora, merge, toLora } from "./index.ts";

beforeAll(() => start());

const numbers = async (x: Tensor): Promise<number[]> => [...(await x.data())].map(Number);
const settings: TrainOptions = { batches: tinyBatches(3), steps: 6, learningRate: 0.02, weightDecay: 0.1 };
const targets = ["q_proj", "v_proj"];
const make = (options: object): Promise<Model> => adapt(tinyModel(), dylora, { r: 4, alpha: 6, ...options }, { targets });
type Pair = { A: Parameter; B: Parameter };
const entriesOf = (model: Model) => [...attachedTo(model, "default")!.entries.values()] as Pair[];
const logits = (model: Model): Promise<number[]> => numbers(noGrad(() => forward(model, tensor([3, 1, 4, 1, 5], [1, 5], "i32"))));
const close = (a: readonly number[], b: readonly number[], digits: number): void => a.forEach((value, i) => expect(value).toBeCloseTo(b[i]!, digits));
const sampled = (t: Training): number => attachedTo(t.model as Model, "default")!.live.values["dylora/rank"]!;

async function filled(options: object = {}): Promise<Model> {
  const model = await make(options);
  for (const [i, { A, B }] of entriesOf(model).entries())
    for (const [w, seed] of [
      [A, i],
      [B, i + 50],
    ] as const)
      w.assign(tensor(await numbers(leaf(w.shape, seed + 1)), w.shape));
  return model;
}

/** A LoRA with the first b rows and columns of a DyLoRA. */
async function truncated(model: Model, b: number, alpha: number): Promise<Model> {
  const plain = await adapt(tinyModel(), lora, { r: b, alpha }, { targets });
  for (const [i, own] of entriesOf(plain).entries()) {
    const { A, B } = entriesOf(model)[i]!;
    const [inner, r] = [A.shape[1]!, A.shape[0]!];
    own.A.assign(tensor((await numbers(A)).slice(0, b * inner), [b, inner]));
    own.B.assign(
      tensor(
        (await numbers(B)).filter((_, at) => at % r < b),
        [B.shape[0]!, b],
      ),
    );
  }
  return plain;
}

describe("DyLoRA at a rank", () => {
  it("is, at each b, the LoRA of its first b rows and columns with the same alpha; at b = r the whole", async () => {
    const model = await filled();
    for (const b of [1, 2, 3, 4]) close(await logits(atRank(model, b)), await logits(await truncated(model, b, 6)), 5);
    expect(await logits(atRank(model, 4))).toEqual(await logits(model));
  });

  it("with a constant scale is that LoRA with alpha·b/r", async () => {
    const model = await filled({ scaling: "alpha/r" });
    for (const b of [1, 2, 3, 4]) close(await logits(atRank(model, b)), await logits(await truncated(model, b, (6 * b) / 4)), 5);
  });

  it("merges and converts at that rank: as a LoRA of rank b nothing is lost", async () => {
    const model = await filled();
    for (const b of [1, 3]) {
      const small = atRank(model, b);
      close(await logits(merge(small)), await logits(small), 4);
      const { model: plain, error } = await toLora(small, { rank: b });
      expect(error.total).toBeLessThan(1e-5);
      close(await logits(plain), await logits(small), 4);
    }
    expect((await toLora(atRank(model, 3), { rank: 2 })).error.total).toBeGreaterThan(0.01);
  });

  it.each([
    ["alpha/b", 6],
    ["alpha/r", (6 * 2) / 4],
  ] as const)("is exported as PEFT's LoRA of rank b with its own first rows and columns: scaled by %s, rank 2 has lora_alpha %d", async (scaling, alpha) => {
    const model = await filled({ scaling });
    const { model: plain } = await toLora(atRank(model, 2));
    const { loaded, json } = await throughDisk(plain, tinyModel(), [lora]);
    expect(json["adapter_config.json"]).toMatchObject({ peft_type: "LORA", r: 2, lora_alpha: alpha, rank_pattern: {}, alpha_pattern: {} });
    expect(json["strut.json"]).toBeUndefined();
    close(await logits(loaded), await logits(atRank(model, 2)), 5);
    for (const [i, { A, B }] of ([...attachedTo(plain, "default-lora")!.entries.values()] as Pair[]).entries()) {
      const own = entriesOf(model)[i]!;
      expect(await numbers(A)).toEqual((await numbers(own.A)).slice(0, 16));
      expect(await numbers(B)).toEqual((await numbers(own.B)).filter((_, at) => at % 4 < 2));
    }
  });

  it("starts at the base at every rank", async () => {
    const [model, base] = [await make({}), await logits(tinyModel())];
    for (const b of [1, 2, 3, 4]) expect(await logits(atRank(model, b))).toEqual(base);
  });

  it("trains one copy: a smaller rank sees what the whole learnt", async () => {
    const model = await make({});
    const small = atRank(model, 1);
    const before = await logits(small);
    await train(model, settings);
    expect(await logits(small)).not.toEqual(before);
  });

  it("ends in a sentence where the rank is none", async () => {
    const model = await make({});
    for (const b of [0, 5, 1.5]) expect(() => atRank(model, b)).toThrow(`rank is ${b}; default works at ranks 1…4`);
    expect(() => atRank(tinyModel(), 1)).toThrow("default is no DyLoRA");
    await expect(make({ rMin: 5 })).rejects.toThrow("rMin 5 and rank 4 must not be above r 4");
    await expect(make({ rank: 5 })).rejects.toThrow("rMin 1 and rank 5 must not be above r 4");
  });
});

describe("DyLoRA in training", () => {
  const ranksOf = async (options: object, more: Partial<TrainOptions> = {}): Promise<number[]> => {
    const ranks: number[] = [];
    const watch: Regime = { afterStep: (t) => void ranks.push(sampled(t)) };
    await train(await make(options), { ...settings, regimes: [watch], ...more });
    return ranks;
  };

  it("samples one rank a step, evenly from rMin to r, the same for the same seed", async () => {
    const ranks = await ranksOf({ rMin: 2 }, { steps: 60, batches: [{ ids: [[1, 2]] }] });
    for (const b of [2, 3, 4]) expect(Math.abs(ranks.filter((rank) => rank === b).length - 20)).toBeLessThan(12);
    expect(new Set(ranks)).toEqual(new Set([2, 3, 4]));
    const short = { steps: 12, batches: [{ ids: [[1, 2]] }] };
    expect(await ranksOf({}, short)).toEqual(await ranksOf({}, short));
    expect(await ranksOf({}, { ...short, seed: 9 })).not.toEqual(await ranksOf({}, short));
  });

  it("gives every site the same rank: rows behind it have no gradient anywhere", async () => {
    const model = await filled();
    const watch: Regime = {
      async beforeStep(t) {
        const b = sampled(t);
        for (const { A } of entriesOf(model)) {
          const g = await numbers(t.gradient(A)!);
          [0, 1, 2, 3].forEach((row) =>
            expect(
              g.slice(row * 8, row * 8 + 8).some((value) => value !== 0),
              `row ${row} at rank ${b}`,
            ).toBe(row < b),
          );
        }
      },
    };
    await train(model, { ...settings, regimes: [watch] });
  });

  it("samples once for all batches that add up to a step", async () => {
    const model = await make({});
    const seen: number[][] = [];
    const watch: Regime = {
      beforeForward: () => void seen.push([]),
      loss(t) {
        seen.at(-1)!.push(sampled(t));
        return zeros([]);
      },
    };
    await train(model, { ...settings, steps: 12, accumulate: 3, regimes: [watch] });
    expect(seen.map((step) => step.length)).toEqual(Array(12).fill(3));
    for (const step of seen) expect(new Set(step).size).toBe(1);
    expect(new Set(seen.flat()).size).toBeGreaterThan(1);
  });

  it("is LoRA where rMin is r: the same weights after training", async () => {
    const one = await filled({ rMin: 4 });
    const plain = await truncated(one, 4, 6);
    await train(one, settings);
    await train(plain, settings);
    for (const [i, { A, B }] of entriesOf(one).entries()) {
      close(await numbers(A), await numbers(entriesOf(plain)[i]!.A), 5);
      close(await numbers(B), await numbers(entriesOf(plain)[i]!.B), 5);
    }
  });

  it("when frozen moves the sampled row and column alone, and neither decay nor momentum the others", async () => {
    const model = await filled({ frozen: true });
    const rows = async (w: Tensor, axis: 0 | 1): Promise<number[][]> => {
      const values = await numbers(w);
      return [0, 1, 2, 3].map((k) => values.filter((_, at) => (axis === 0 ? Math.floor(at / 8) : at % 4) === k));
    };
    const snapshot = (t: Training): Promise<number[][][]> =>
      Promise.all(
        entriesOf(model).flatMap(({ A, B }) => {
          const moments = (w: Parameter): Tensor[] => (["m", "v"] as const).flatMap((key) => (t.moments(w)[0]?.[key] as Tensor | undefined) ?? []);
          return [rows(A, 0), rows(B, 1), ...moments(A).map((x) => rows(x, 0)), ...moments(B).map((x) => rows(x, 1))];
        }),
      );
    let before: number[][][];
    const seen = new Set<number>();
    const watch: Regime = {
      async beforeStep(t) {
        before = await snapshot(t);
        for (const { A, B } of entriesOf(model)) {
          const [a, b] = [await rows(t.gradient(A)!, 0), await rows(t.gradient(B)!, 1)];
          for (const [k, row] of [...a.entries(), ...b.entries()])
            expect(
              row.some((g) => g !== 0),
              `gradient of row ${k}`,
            ).toBe(k === sampled(t) - 1);
        }
      },
      async afterStep(t) {
        const [b, after] = [sampled(t), await snapshot(t)];
        seen.add(b);
        if (t.step === 0) return;
        after.forEach((own, i) => own.forEach((row, k) => expect(String(row) === String(before[i]![k]), `row ${k} at rank ${b}`).toBe(k !== b - 1)));
      },
    };
    await train(model, { ...settings, steps: 10, regimes: [watch] });
    expect(seen.size).toBeGreaterThan(2);
  });

  it("when frozen refuses an optimiser whose averages are not of each number", async () => {
    const run = train(await filled({ frozen: true }), { batches: tinyBatches(2), steps: 1, learningRate: 0.02, optimizer: adafactor });
    await expect(run).rejects.toThrow("dylora: the optimiser keeps no average for each number of");
  });

  it("when frozen corrects each row by the number of its own updates: its first moves by the learning rate, whenever it comes", async () => {
    const model = await filled({ frozen: true });
    const seen = new Set<number>();
    let before: number[][] = [];
    const values = (): Promise<number[][]> => Promise.all(entriesOf(model).map(({ A }) => numbers(A)));
    const watch: Regime = {
      beforeStep: async () => void (before = await values()),
      async afterStep(t) {
        const [b, now] = [sampled(t), await values()];
        if (!seen.has(b))
          for (const [i, { A }] of entriesOf(model).entries()) {
            const g = await numbers(t.gradient(A)!);
            for (let at = (b - 1) * 8; at < b * 8; at++)
              expect(now[i]![at]! - before[i]![at]!, `row ${b} at step ${t.step}`).toBeCloseTo((-0.02 * g[at]!) / (Math.abs(g[at]!) + 1e-8), 4);
          }
        seen.add(b);
      },
    };
    await train(model, { ...settings, weightDecay: 0, steps: 12, regimes: [watch] });
    expect(seen.size).toBe(4);
  });

  it("is saved as PEFT's LoRA of rank r with strut.json beside, where its own options stand", async () => {
    const model = await filled({ rMin: 2, scaling: "alpha/r", frozen: true });
    const { loaded, json } = await throughDisk(model, tinyModel(), [dylora]);
    expect(json["adapter_config.json"]).toMatchObject({ peft_type: "LORA", r: 4, lora_alpha: 6 });
    for (const key of ["r_min", "rMin", "scaling", "frozen", "dylora"]) expect(json["adapter_config.json"]).not.toHaveProperty(key);
    expect(attachedTo(loaded, "default")!.options).toMatchObject({ rMin: 2, scaling: "alpha/r", frozen: true });
    expect(await logits(atRank(loaded, 2))).toEqual(await logits(atRank(model, 2)));
  });

  it("saved at a rank below r is no directory that PEFT would run at r; strut reads it at that rank, and at r it is a LORA again", async () => {
    const model = await filled();
    const { loaded, json } = await throughDisk(atRank(model, 2), tinyModel(), [dylora]);
    expect(Object.keys(json)).toEqual(["strut.json"]);
    expect(await logits(loaded)).toEqual(await logits(atRank(model, 2)));
    expect(await logits(atRank(loaded, 4))).toEqual(await logits(model));
    const whole = await throughDisk(atRank(loaded, 4), tinyModel(), [dylora]);
    expect(whole.json["adapter_config.json"]).toMatchObject({ peft_type: "LORA", r: 4, lora_alpha: 6 });
  });
});
