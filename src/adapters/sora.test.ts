import { beforeAll, describe, expect, it } from "vitest";
import { leaf } from "../../test/support/gradients.ts";
import { throughDisk } from "../../test/support/through-disk.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { forward, type Model } from "../models/index.ts";
import type { Regime, Training } from "../nn/contracts.ts";
import { full, noGrad, Parameter, Rng, start, tensor, type Tensor } from "../tensor/index.ts";
import { train, type TrainOptions } from "../training/index.ts";
import { adapt, attachedTo, lora, sora, toLora } from "./index.ts";
import { shrink, type Prox } from "./proximal.ts";
import { thresholds } from "./sora.ts";

beforeAll(() => start());

const numbers = async (x: Tensor): Promise<number[]> => [...(await x.data())].map(Number);
const settings: TrainOptions = { batches: tinyBatches(3), steps: 8, learningRate: 0.02, weightDecay: 0 };
const targets = ["q_proj", "v_proj"];
const make = (options: object): Promise<Model> => adapt(tinyModel(), sora, { r: 4, ...options }, { targets });
const entriesOf = (model: Model) => [...attachedTo(model, "default")!.entries.values()] as { A: Parameter; B: Parameter; gate: Parameter }[];
const gatesOf = async (model: Model): Promise<number[]> => (await Promise.all(entriesOf(model).map(({ gate }) => numbers(gate)))).flat();
const logits = (model: Model): Promise<number[]> => numbers(noGrad(() => forward(model, tensor([3, 1, 4, 1, 5], [1, 5], "i32"))));
const close = (a: readonly number[], b: readonly number[], digits: number): void => a.forEach((value, i) => expect(value).toBeCloseTo(b[i]!, digits));

describe("the proximal step", () => {
  const moved = async (values: readonly number[], threshold: number, prox: Prox): Promise<number[]> => {
    const g = new Parameter(tensor(values, [values.length], "f64"));
    shrink(g, threshold, prox);
    return numbers(g);
  };

  it("is the soft threshold sign(g)·max(|g| − ξ, 0)", async () => {
    close(await moved([0.05, -0.05, 0.1, -0.1, 0.15, -0.25, 0, 2], 0.1, "soft"), [0, 0, 0, 0, 0.05, -0.15, 0, 1.9], 12);
  });

  it("of the released code also zeroes between ξ and 2ξ, and leaves ±ξ: 0.15→0, 0.25→0.15, 0.2→0.1, 0.1→0.1 at ξ = 0.1", async () => {
    close(await moved([0.15, 0.25, 0.2, 0.1, -0.1, -0.15, -0.25, 0.05], 0.1, "official"), [0, 0.15, 0.1, 0.1, -0.1, 0, -0.15, 0], 12);
  });

  it("brings no two values further apart, and leaves zeros", async () => {
    const [a, b] = [await numbers(leaf([50], 1)), await numbers(leaf([50], 2))];
    const [x, y] = [await moved(a, 0.3, "soft"), await moved(b, 0.3, "soft")];
    a.forEach((_, i) => expect(Math.abs(x[i]! - y[i]!)).toBeLessThanOrEqual(Math.abs(a[i]! - b[i]!) + 1e-15));
    const again = await moved(x, 0.1, "soft");
    x.forEach((value, i) => value === 0 && expect(again[i]).toBeCloseTo(0, 15));
  });
});

describe("SoRA's thresholds", () => {
  const of = (lambdaSchedule: string, sparseLambda2: number): number[] =>
    thresholds(sora.options.parse({ lambdaSchedule, sparseLambda2, maxLambda: 0.8, lambdaNum: 3 }));

  it.each([
    ["linear", 0.2, [0.2, 0.5, 0.8]],
    ["log_linear", 0.2, [0.2, Math.log((Math.exp(0.2) + Math.exp(0.8)) / 2), 0.8]],
    ["exp_linear", 0.2, [0.2, 0.4, 0.8]],
    ["linear", 0, [0, 0.4, 0.8]],
  ] as const)("%s from %f", (schedule, first, expected) => {
    close(of(schedule, first), expected, 12);
    expect(of(schedule, first).length).toBe(3);
  });

  it("cannot be exp_linear from 0, nor longer than the run", async () => {
    expect(() => of("exp_linear", 0)).toThrow("needs sparseLambda2 above 0");
    const long = await make({ lambdaSchedule: "linear", lambdaNum: 5, stageSteps: 2 });
    await expect(train(long, settings)).rejects.toThrow("5 thresholds of 2 steps do not fit into a run of 8");
  });
});

describe("SoRA", () => {
  it("is LoRA where the gates are 1 and stay so", async () => {
    const [gated, plain] = [await make({ alpha: 6 }), await adapt(tinyModel(), lora, { r: 4, alpha: 6 }, { targets })];
    for (const [path, { A, B, gate }] of attachedTo(gated, "default")!.entries) {
      const own = attachedTo(plain, "default")!.entries.get(path)!;
      (B as Parameter).assign(tensor(await numbers(leaf(B!.shape, 2)), B!.shape));
      (own["A"] as Parameter).assign(tensor(await numbers(A!), A!.shape));
      (own["B"] as Parameter).assign(tensor(await numbers(B!), B!.shape));
      (gate as Parameter).assign(full([1, 4], 1));
    }
    close(await logits(gated), await logits(plain), 5);
  });

  it("draws its gates with standard deviation 1", async () => {
    const init = await sora.init(
      { out: 4000, in: 4000, kind: "linear" } as never,
      sora.options.parse({ r: 3000 }),
      { rng: new Rng(1), dtype: "f32", sites: [] },
      {},
    );
    const gates = await numbers((init as { gate: Tensor }).gate);
    expect(Math.sqrt(gates.reduce((sum, g) => sum + g * g, 0) / gates.length)).toBeCloseTo(1, 1);
  });

  it("moves gates alone by the proximal step: after one step A and B are those without it, and each gate is nearer to 0 by ξ", async () => {
    const after = async (options: object): Promise<Model> => {
      const model = await make(options);
      await train(model, { ...settings, steps: 1 });
      return model;
    };
    const [without, shrunk] = [await after({ sparseLambda2: 0 }), await after({ sparseLambda2: 0.05 })];
    for (const [i, { A, B, gate }] of entriesOf(shrunk).entries()) {
      const other = entriesOf(without)[i]!;
      expect([await numbers(A), await numbers(B)]).toEqual([await numbers(other.A), await numbers(other.B)]);
      close(
        await numbers(gate),
        (await numbers(other.gate)).map((g) => Math.sign(g) * Math.max(0, Math.abs(g) - 0.05)),
        6,
      );
    }
  });

  it.each([
    [0.05, 0],
    [0.005, 16],
  ])("lets a zero gate return only where its update is above ξ: an update of 0.02 with ξ = %f brings back %i", async (sparseLambda2, count) => {
    const model = await make({ sparseLambda2 });
    for (const { B, gate } of entriesOf(model)) {
      B.assign(tensor(await numbers(leaf(B.shape, 3)), B.shape));
      gate.assign(full([1, 4], 0));
    }
    await train(model, { ...settings, steps: 1 });
    expect((await gatesOf(model)).filter((g) => g !== 0).length).toBe(count);
  });

  it("scales the threshold by the learning rate if told to", async () => {
    const model = await make({ sparseLambda2: 10, scaleByLr: true });
    const before = await gatesOf(model);
    await train(model, { ...settings, steps: 1 });
    (await gatesOf(model)).forEach((g, i) => expect(g).toBeCloseTo(Math.sign(before[i]!) * Math.max(0, Math.abs(before[i]!) - 0.2), 4));
  });

  it("adds the mean |gate| over all sites to the loss, and AdamW's decay does not touch the gates", async () => {
    const model = await make({ sparseLambda: 3, sparseLambda2: 0 });
    const gates = await gatesOf(model);
    let extra: number | undefined;
    await train(model, {
      ...settings,
      weightDecay: 0.9,
      steps: 1,
      learningRate: 1e-9,
      onEvent: (event) => void (event.event === "step" && (extra = event.extraLoss)),
    });
    expect(extra).toBeCloseTo((3 * gates.reduce((sum, g) => sum + Math.abs(g), 0)) / 16, 5);
    const [fast, decayed] = [await make({ sparseLambda2: 0 }), await make({ sparseLambda2: 0 })];
    await train(fast, { ...settings, steps: 1 });
    await train(decayed, { ...settings, steps: 1, weightDecay: 0.9 });
    expect(await gatesOf(decayed)).toEqual(await gatesOf(fast));
  });

  it("leaves fewer gates the larger ξ is", async () => {
    const counts: number[] = [];
    for (const sparseLambda2 of [0, 0.02, 0.1, 0.5]) {
      const model = await make({ sparseLambda2 });
      await train(model, settings);
      counts.push((await gatesOf(model)).filter((g) => g !== 0).length);
    }
    expect(counts[0]).toBe(16);
    expect(counts[3]).toBe(0);
    counts.slice(1).forEach((count, i) => expect(count).toBeLessThanOrEqual(counts[i]!));
  });

  it("takes ranks out between stages: what is left is what is not zero, moments follow, and no answer changes", async () => {
    const options = { sparseLambda2: 0.05, lambdaSchedule: "linear", maxLambda: 0.2, lambdaNum: 3, stageSteps: 2 };
    const [pruned, kept] = [await make(options), await make({ ...options, prune: false })];
    const ranks: number[] = [];
    const answers: number[][] = [];
    const watch = (model: Model): Regime => ({
      async afterStep(t: Training) {
        if (t.step === 3) answers.push(await logits(model));
        if (model === kept) return;
        ranks.push(entriesOf(model).reduce((sum, { gate }) => sum + gate.size, 0));
        for (const { A, B, gate } of entriesOf(model)) {
          expect([A.shape[0], B.shape[1]]).toEqual([gate.size, gate.size]);
          for (const key of ["m", "v"]) expect((t.moments(A)[0]![key] as Tensor).shape).toEqual(A.shape);
        }
      },
    });
    for (const model of [pruned, kept]) await train(model, { ...settings, regimes: [watch(model)] });
    expect(ranks.slice(0, 3)).toEqual([16, 16, 16]);
    expect(ranks[3]).toBeLessThan(16);
    expect(ranks.at(-1)).toBeLessThan(ranks[3]!);
    expect(await gatesOf(pruned)).not.toContain(0);
    close(answers[0]!, answers[1]!, 5);
  });

  it("is loaded with the ranks that are left and the scale of the first rank, and becomes a LoRA of those ranks without loss", async () => {
    const model = await make({ sparseLambda2: 0.02, lambdaSchedule: "linear", maxLambda: 0.1, lambdaNum: 2, stageSteps: 3 });
    await train(model, settings);
    const { loaded, shapes } = await throughDisk(model, tinyModel(), [sora]);
    const ranks = entriesOf(model).map(({ gate }) => gate.size);
    expect(ranks.reduce((a, b) => a + b)).toBeLessThan(16);
    expect(
      [...shapes]
        .filter(([name]) => name.endsWith("lora_gate"))
        .map(([, [one, r]]) => {
          expect(one).toBe(1);
          return r;
        })
        .toSorted(),
    ).toEqual(ranks.toSorted());
    expect(await logits(loaded)).toEqual(await logits(model));
    const { model: plain, error } = await toLora(model);
    expect(error.total).toBe(0);
    const shipped = await throughDisk(plain, tinyModel(), [lora]);
    const config = shipped.json["adapter_config.json"] as {
      rank_pattern: Record<string, number>;
      alpha_pattern: Record<string, number>;
      target_modules: string[];
    };
    const left = ranks.filter((r) => r > 0);
    expect(
      [...shipped.shapes]
        .filter(([name]) => name.endsWith("lora_A.weight"))
        .map(([, [r]]) => r)
        .toSorted(),
    ).toEqual(left.toSorted());
    expect(new Set([...attachedTo(shipped.loaded, "default")!.entries.keys()])).toEqual(
      new Set([...attachedTo(model, "default")!.entries].flatMap(([path, p]) => (p["gate"]!.size > 0 ? [path] : []))),
    );
    expect(config).toMatchObject({ peft_type: "LORA", r: Math.max(...ranks), lora_alpha: 4 * Math.max(...ranks) });
    for (const [path, r] of Object.entries(config.rank_pattern)) expect(config.alpha_pattern[path]).toBe(4 * r);
    close(await logits(shipped.loaded), await logits(model), 5);
  });

  it("is saved without gates that are zero, and answers the same", async () => {
    const model = await make({ sparseLambda2: 0.1 });
    await train(model, settings);
    const left = (await gatesOf(model)).filter((g) => g !== 0).length;
    expect(left).toBeLessThan(16);
    const { loaded, shapes } = await throughDisk(model, tinyModel(), [sora]);
    expect([...shapes].filter(([name]) => name.endsWith("lora_gate")).reduce((total, [, [, r]]) => total + r!, 0)).toBe(left);
    close(await logits(loaded), await logits(model), 5);
  });

  it("is, trained, the LoRA trained as long, where the gates are 1, neither step nor penalty moves them and they are held", async () => {
    const options = { alpha: 6, sparseLambda: 0, sparseLambda2: 0 };
    const [gated, plain] = [await make(options), await adapt(tinyModel(), lora, { r: 4, alpha: 6 }, { targets })];
    for (const [path, { A, gate }] of attachedTo(gated, "default")!.entries) {
      (attachedTo(plain, "default")!.entries.get(path)!["A"] as Parameter).assign(tensor(await numbers(A!), A!.shape));
      (gate as Parameter).assign(full([1, 4], 1));
    }
    const hold: Regime = { beforeForward: (t) => entriesOf(gated).forEach(({ gate }) => t.trainable(gate, false)) };
    await train(gated, { ...settings, regimes: [hold] });
    await train(plain, settings);
    for (const [i, { A, B }] of entriesOf(gated).entries()) {
      const own = entriesOf(plain)[i]!;
      close(await numbers(A), await numbers(own.A), 5);
      close(await numbers(B), await numbers(own.B), 5);
    }
    expect(new Set(await gatesOf(gated))).toEqual(new Set([1]));
  });

  it("with the official step a zero gate returns only beyond 2ξ: an update of 0.02 does at ξ = 0.009, not at 0.011", async () => {
    for (const [sparseLambda2, count] of [
      [0.009, 16],
      [0.011, 0],
    ] as const) {
      const model = await make({ sparseLambda2, prox: "official" });
      for (const { B, gate } of entriesOf(model)) {
        B.assign(tensor(await numbers(leaf(B.shape, 3)), B.shape));
        gate.assign(full([1, 4], 0));
      }
      await train(model, { ...settings, steps: 1 });
      expect((await gatesOf(model)).filter((g) => g !== 0).length).toBe(count);
    }
  });
});
