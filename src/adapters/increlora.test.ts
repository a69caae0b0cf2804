import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { loadPublished } from "../../test/support/published.ts";
import { throughDisk } from "../../test/support/through-disk.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { forward, type Model } from "../models/index.ts";
import type { Batch, Regime, Site, Training } from "../nn/contracts.ts";
import { dense } from "../operators/index.ts";
import { backward, linear, mul, noGrad, Parameter, Rng, start, sum, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { train, type TrainOptions } from "../training/index.ts";
import { scoreOf } from "./increlora.ts";
import { adalora, adapt, attachedTo, increlora, lora, toAdalora, toLora } from "./index.ts";

beforeAll(() => start());

type Params = { A: Parameter; B: Parameter; E: Parameter; used: Tensor; born: Tensor; slope?: Tensor };
const numbers = async (x: Tensor): Promise<number[]> => [...(await x.data())].map(Number);
const close = (a: readonly number[], b: readonly number[], digits: number): void => a.forEach((value, i) => expect(value).toBeCloseTo(b[i]!, digits));
const settings: TrainOptions = { batches: tinyBatches(3), steps: 12, learningRate: 0.02, weightDecay: 0 };
const growing = { targetRank: 2, topH: 2, increInterval: 3, initWarmup: 2 };
const make = (options: object = growing): Promise<Model> => adapt(tinyModel(), increlora, options, { targets: ["q_proj", "v_proj"] });
const entriesOf = (model: Model) => [...attachedTo(model, "default")!.entries] as unknown as [string, Params][];
const ranks = (model: Model): Promise<number[]> => Promise.all(entriesOf(model).map(async ([, { used }]) => Number((await used.data())[0])));
const logits = (model: Model): Promise<number[]> => numbers(noGrad(() => forward(model, tensor([3, 1, 4, 1, 5], [1, 5], "i32"))));
const updates = (model: Model): Promise<number[][]> =>
  Promise.all(
    entriesOf(model).map(([, p]) =>
      numbers(increlora.update!(p, undefined as never, attachedTo(model, "default")!.options as never, undefined as never, {}).toDense()),
    ),
  );

async function watched(model: Model, watch: Regime, more: Partial<TrainOptions> = {}): Promise<Model> {
  await train(model, { ...settings, ...more, regimes: [watch] });
  return model;
}

describe("IncreLoRA's layer", () => {
  it("gives the official layer's output, score and gradients, to its single precision", async () => {
    const M = (rows: number, cols: number, a: number): Tensor =>
      tensor(
        Array.from({ length: rows * cols }, (_, at) => Math.sin(a + 0.9 * Math.floor(at / cols) + 1.3 * (at % cols))),
        [rows, cols],
        "f64",
      );
    const both = async (first: Tensor, second: Tensor): Promise<number[]> => [...(await numbers(first)), ...(await numbers(second))];
    const [b0, b1] = [await numbers(M(3, 1, 0.4)), await numbers(M(3, 1, 0.8))];
    const A = new Parameter(tensor(await both(M(1, 4, 0.2), M(1, 4, 0.6)), [2, 4], "f64"));
    const B = new Parameter(
      tensor(
        b0.flatMap((b, i) => [b, b1[i]!]),
        [3, 2],
        "f64",
      ),
    );
    const E = new Parameter(tensor([0.1, 1e-5], [2], "f64"));
    const p = { A, B, E, used: tensor([1], [1], "f64"), born: zeros([2, 2], "f64"), slope: zeros([3, 4], "f64") };
    const W = M(3, 4, 1);
    const site: Site = { path: "here", depth: 0, role: "fc", kind: "linear", out: 3, in: 4, weight: dense(W) };
    const live = { training: true, step: 0, rng: new Rng(0), values: {} };
    const o = increlora.options.parse({});
    const x = M(2, 4, 0.1);
    const y = increlora.forward!(x, linear(x, W), p, site, o, live, {});
    const output = await numbers(y);
    close(output, [2.473322, 2.69251, 0.874059, 3.401583, 4.057458, 1.642729], 5);
    const gradients = backward(sum(mul(y, M(2, 3, 0.8))));
    expect(scoreOf(p, o)).toBeCloseTo(2.07849, 4);
    expect(scoreOf(p, increlora.options.parse({ scoreNorm: "mean" }))).toBeCloseTo(2.07849 / Math.sqrt(12), 4);
    expect((await numbers(gradients.get(E)!))[0]).toBeCloseTo(20.067759, 4);
    close((await numbers(gradients.get(A)!)).slice(4), [7.1e-5, 2.41e-4, 5.8e-5, -2.1e-4], 6);
    const { slope: _, ...unscored } = p;
    close(await numbers(increlora.forward!(x, linear(x, W), unscored, site, o, live, {})), output, 12);
  });
});

describe("IncreLoRA's growth, run by train", () => {
  it("starts as the base, and with its reserve is off it by no more than its 1e-5 components", async () => {
    const model = await make();
    const base = await logits(tinyModel());
    expect(await logits(model)).toEqual(base);
    await watched(model, { beforeStep: async ({ step }) => void (step === 0 && close(await logits(model), base, 5)) }, { steps: 12 });
  });

  it("never shrinks a site and ends at the target, with as many generations of components as there were growths", async () => {
    const model = await make();
    const seen: number[][] = [];
    await watched(model, { afterStep: async () => void seen.push(await ranks(model)) });
    seen.slice(1).forEach((now, step) => now.forEach((n, i) => expect(n).toBeGreaterThanOrEqual(seen[step]![i]!)));
    expect(seen.map((now) => now.reduce((a, b) => a + b))).toEqual([4, 4, 4, 6, 6, 6, 8, 8, 8, 8, 8, 8]);
    const births = (await Promise.all(entriesOf(model).map(([, { born }]) => numbers(born)))).flat();
    expect(new Set(births), "two groups of the start, and one a growth").toEqual(new Set([0, 4, 7]));
    for (const [, { A, B, E, used }] of entriesOf(model)) {
      const n = Number((await used.data())[0]);
      expect([A.shape[0], B.shape[1], E.size], "the reserve is gone").toEqual([n, n, n]);
    }
  });

  it.each([
    ["sqrt", 1],
    ["mean", 1],
    ["sqrt", 2],
  ] as const)("grows the sites with the largest Ī·Ū of Σ|ΔW ⊙ ∂L/∂ΔW| (%s, %i batches a step)", async (scoreNorm, accumulate) => {
    const model = await make({ ...growing, scoreNorm });
    const averages = entriesOf(model).map(() => ({ I: 0, U: 0 }));
    let [before, grown] = [await ranks(model), 0];
    let scores: number[] = [];
    const watch: Regime = {
      async afterBackward() {
        const W = await updates(model);
        scores = entriesOf(model).map(([, { slope }], i) => {
          const size = slope ? slope.size : 1;
          const norm = scoreNorm === "sqrt" ? Math.sqrt(size) : size;
          return slope ? W[i]!.reduce((total, w, at) => total + Math.abs(w * Number((hostView(slope) as Float32Array)[at])), 0) / norm : 0;
        });
      },
      async beforeStep({ step }) {
        scores.forEach((s, i) => {
          const own = averages[i]!;
          own.I = 0.85 * own.I + 0.15 * s;
          own.U = 0.85 * own.U + 0.15 * Math.abs(s - own.I);
        });
        const now = await ranks(model);
        const chosen = now.flatMap((n, i) => (n > before[i]! ? [i] : []));
        if (chosen.length > 0) {
          grown++;
          const best = averages.map(({ I, U }, i) => [I * U, i] as const).toSorted(([a], [b]) => b - a);
          expect(chosen, `at step ${step}`).toEqual(
            best
              .slice(0, 2)
              .map(([, i]) => i)
              .toSorted(),
          );
        }
        before = now;
      },
    };
    await watched(model, watch, { accumulate });
    expect(grown).toBe(2);
  });

  it("takes the score of a step's whole gradient: of halves of a batch it is that of the batch, of opposite ones it is less than the sum", async () => {
    const rows = tinyBatches(2).map(({ ids }) => ids[0]!);
    const slopes = async (batches: readonly Batch[], accumulate: number): Promise<number[][]> => {
      const model = await make();
      let found: number[][] = [];
      const look: Regime = {
        async afterBackward({ step }) {
          if (step === 1) found = await Promise.all(entriesOf(model).map(([, { slope }]) => numbers(slope!)));
        },
      };
      await watched(model, look, { batches, accumulate });
      return found;
    };
    const [halves, whole] = [
      await slopes(
        rows.map((row) => ({ ids: [row] })),
        2,
      ),
      await slopes([{ ids: rows }], 1),
    ];
    expect(whole.flat().some((value) => Math.abs(value) > 1e-4)).toBe(true);
    halves.forEach((own, i) => close(own, whole[i]!, 6));
  });

  it("scores nothing in the first step but the 1e-5 terms of the reserve, since e is 0", async () => {
    const model = await make();
    const state = attachedTo(model, "default")!.regime!.state as Record<string, { mean: number }>;
    const means: number[][] = [];
    await watched(model, { afterStep: () => void means.push(entriesOf(model).map(([path]) => state[path]!.mean)) });
    means[0]!.forEach((first, i) => expect(first).toBeLessThan(1e-4 * means[1]![i]!));
  });

  it("holds Σ(n + q)(in + out) numbers of a and b and trains Σn of e while it grows, Σn(in + out + 1) in all at the end", async () => {
    const model = await make({ ...growing, increRankNum: 2, targetRank: 5 });
    const held = (): number => entriesOf(model).reduce((total, [, { A, B }]) => total + A.size + B.size, 0);
    const widths = entriesOf(model).map(([, { A, B }]) => A.shape[1]! + B.shape[0]!);
    const expected = (n: readonly number[], q: number): number => n.reduce((total, own, i) => total + (own + q) * widths[i]!, 0);
    let moved: number[] = [];
    await watched(
      model,
      {
        async afterStep({ step }) {
          const now = await ranks(model);
          const growingStill = now.reduce((a, b) => a + b) < 20;
          expect(held(), `at step ${step}`).toBe(expected(now, growingStill ? 2 : 0));
          moved = (await Promise.all(entriesOf(model).map(([, { E }]) => numbers(E)))).flatMap((e) => e.filter((value) => Math.abs(value - 1e-5) > 1e-9));
          if (growingStill && step % 3 === 2) expect(moved.length).toBe(now.reduce((a, b) => a + b));
        },
      },
      { steps: 20 },
    );
    expect((await ranks(model)).reduce((a, b) => a + b)).toBe(20);
  });

  it("grows all sites in turn, or random ones, where it is told to", async () => {
    const course = async (options: object, seed = 0): Promise<number[][]> => {
      const model = await make({ ...growing, topH: 1, increInterval: 2, ...options });
      const seen: number[][] = [];
      await watched(model, { afterStep: async () => void seen.push(await ranks(model)) }, { seed });
      return seen.filter((_, step) => step % 2 === 0 && step > 2).slice(0, 4);
    };
    expect(await course({ allocation: "round-robin" })).toEqual([
      [2, 1, 1, 1],
      [2, 2, 1, 1],
      [2, 2, 2, 1],
      [2, 2, 2, 2],
    ]);
    const draws: number[][][] = [];
    for (const seed of [0, 1, 2, 3]) draws.push(await course({ allocation: "random" }, seed));
    for (const draw of draws) expect(draw.at(-1)!.reduce((a, b) => a + b)).toBe(8);
    expect(new Set(draws.map(String)).size).toBeGreaterThan(1);
    expect(await course({ allocation: "random" }, 2)).toEqual(draws[2]);
  });

  it("ends at a total that is no multiple of the sites", async () => {
    const model = await make({ ...growing, targetTotalRank: 5 });
    await train(model, settings);
    expect((await ranks(model)).reduce((a, b) => a + b)).toBe(5);
  });

  it("grows by 1, 2, 3 or 4 components to a mean of 2, 4, 6 or 8, unless it is told how many", async () => {
    for (const targetRank of [2, 4]) {
      const model = await make({ ...growing, targetRank });
      const seen: number[] = [];
      await watched(model, { afterStep: async () => void seen.push((await ranks(model)).reduce((a, b) => a + b)) });
      expect(seen[3]! - seen[2]!, `${targetRank}`).toBe(targetRank);
    }
  });

  it("leaves ΔW of other sites as it is, and scales that of a grown one by (n + 1e-5)/(n + q + 1e-5) but for the 1e-5 terms", async () => {
    const model = await make();
    let [before, n] = [await updates(model), await ranks(model)];
    await watched(model, {
      async afterBackward() {
        [before, n] = [await updates(model), await ranks(model)];
      },
      async beforeStep({ step }) {
        if (step !== 3) return;
        const [after, now] = [await updates(model), await ranks(model)];
        expect(now).not.toEqual(n);
        after.forEach((own, i) => {
          const factor = now[i] === n[i] ? 1 : (n[i]! + 1e-5) / (now[i]! + 1e-5);
          expect(before[i]!.some((value) => Math.abs(value) > 1e-3)).toBe(true);
          close(
            own,
            before[i]!.map((value) => factor * value),
            now[i] === n[i] ? 10 : 6,
          );
        });
      },
    });
  });

  it.each([true, false])("holds the reserve's e; its a and b train ahead only if they may (%s)", async (advanceLearn) => {
    const model = await make({ ...growing, advanceLearn });
    const reserve = async (): Promise<number[]> => (await numbers(entriesOf(model)[0]![1].A)).slice(8);
    let first: number[] = [];
    await watched(model, {
      beforeStep: async ({ step }) => void (step === 0 && (first = await reserve())),
      async afterStep({ step }) {
        if (step > 1) return;
        for (const [, { E }] of entriesOf(model)) expect((await numbers(E))[1]).toBeCloseTo(advanceLearn ? 1e-5 : 0, 10);
        expect(first.length).toBe(8);
        expect(String(await reserve()) !== String(first)).toBe(advanceLearn);
      },
    });
  });

  it("gives components a learning rate that falls from their own birth on: half of it in the second of two steps, all without multiLr", async () => {
    const moves = async (options: object): Promise<number[]> => {
      const model = await make({ targetRank: 1, regOrthCoef: 1, ...options });
      const at: number[][] = [];
      await watched(model, { afterStep: async () => void at.push(await numbers(entriesOf(model)[0]![1].A)) }, { steps: 2 });
      return at[1]!.map((value, i) => value - at[0]![i]!);
    };
    const [own, run] = [await moves({}), await moves({ multiLr: false })];
    close(
      own,
      run.map((move) => move / 2),
      6,
    );
    expect(Math.max(...run.map(Math.abs))).toBeGreaterThan(1e-3);
  });

  it("warms new components up from their birth", async () => {
    const first = async (warmupSteps: number): Promise<number[]> => {
      const model = await make({ targetRank: 1, warmupSteps, regOrthCoef: 1 });
      const before = await numbers(entriesOf(model)[0]![1].A);
      await train(model, { ...settings, steps: 1 });
      return (await numbers(entriesOf(model)[0]![1].A)).map((value, i) => value - before[i]!);
    };
    close(
      await first(3),
      (await first(0)).map((move) => move / 4),
      6,
    );
  });

  it("grows evenly over the first two fifths of a run where no interval is given", async () => {
    const model = await make({ targetRank: 3, topH: 2 });
    const totals: number[] = [];
    await watched(model, { afterStep: async () => void totals.push((await ranks(model)).reduce((a, b) => a + b)) }, { steps: 20 });
    expect(totals).toEqual([4, 4, 6, 6, 8, 8, 10, 10, ...Array<number>(12).fill(12)]);
  });

  it("moves a new component in its first step as Adam moves any in its first: by the learning rate times g/(|g| + 1e-8)", async () => {
    const model = await make({ ...growing, multiLr: false, regOrthCoef: 0.5 });
    let before: { A: number[]; E: number[] }[] = [];
    let sites: number[] = [];
    const first = (g: number): number => (-0.02 * g) / (Math.abs(g) + 1e-8);
    await watched(model, {
      async beforeStep() {
        sites = (await ranks(model)).flatMap((n, i) => (n > 1 ? [i] : []));
        before = await Promise.all(entriesOf(model).map(async ([, { A, E }]) => ({ A: await numbers(A), E: await numbers(E) })));
      },
      async afterStep({ step, gradient }) {
        // the growth at step 3 takes the first reserve into use, whose e is new, and appends another: both train from step 4 on
        if (step !== 3 && step !== 4) return;
        expect(sites.length).toBe(2);
        for (const i of sites) {
          const [, { A, E }] = entriesOf(model)[i]!;
          const [now, slopes, e, eSlopes] = await Promise.all([A, gradient(A)!, E, gradient(E)!].map(numbers));
          const width = A.shape[1]!;
          for (let at = 2 * width; at < 3 * width; at++)
            expect(now![at]! - before[i]!.A[at]!, `a of the new reserve at step ${step}`).toBeCloseTo(step === 3 ? 0 : first(slopes![at]!), 4);
          expect(e![1]! - before[i]!.E[1]!, `e of the component in use at step ${step}`).toBeCloseTo(step === 3 ? 0 : first(eSlopes![1]!), 4);
        }
      },
    });
    expect(sites.length).toBeGreaterThan(0);
  });

  it.each([1, 2, 3, 4, 5, 6, 7, 9])("resumed after step %i, across its growths, reaches the same bits", async (stopAt) => {
    const options = { ...growing, warmupSteps: 2, dropout: 0.2 };
    const course = { ...settings, weightDecay: 0.1, accumulate: 2, clip: 1, schedule: "cosine" as const };
    const bits = async (model: Model): Promise<string> => {
      const all = await Promise.all(entriesOf(model).flatMap(([, p]) => Object.values(p).map((x) => numbers(x as Tensor))));
      return JSON.stringify(all);
    };
    const whole = await make(options);
    await train(whole, course);
    const dir = await mkdtemp(join(tmpdir(), "strut-increlora-"));
    try {
      const stop = new AbortController();
      const onEvent: TrainOptions["onEvent"] = (event) => void (event.event === "step" && event.step === stopAt && stop.abort());
      await train(await make(options), { ...course, checkpoint: { dir }, signal: stop.signal, onEvent });
      const resumed = await make(options);
      await train(resumed, { ...course, checkpoint: { dir }, resume: true });
      expect(await bits(resumed)).toBe(await bits(whole));
    } finally {
      await rm(dir, { recursive: true });
    }
  });

  it("ends once the target is reached or passed, where it grows by more than one component", async () => {
    const model = await make({ targetRank: 2, increRankNum: 3, topH: 1, increInterval: 2 });
    await train(model, settings);
    expect((await ranks(model)).reduce((a, b) => a + b)).toBe(10);
    for (const [, { E, used }] of entriesOf(model)) expect(E.size).toBe(Number((await used.data())[0]));
  });

  it.each([
    [{ r: 3, targetRank: 2 }, "the target of 8 components is below the 12 at the start, from which they only grow"],
    [{ ...growing, increInterval: 30 }, "growing to 8 components takes until step 60, the run has 12"],
  ])("ends in a sentence: %o", async (options, sentence) => {
    await expect(make(options).then((model) => train(model, settings))).rejects.toThrow(sentence);
  });
});

describe("a trained IncreLoRA", () => {
  it("keeps Σ n(in + out + 1) numbers, answers the same when loaded, and is a LoRA of its ranks without loss", async () => {
    const model = await make();
    await train(model, settings);
    const { loaded, shapes } = await throughDisk(model, tinyModel(), [increlora]);
    expect(await logits(loaded)).toEqual(await logits(model));
    const stored = [...shapes].filter(([name]) => /lora_[ABE]/.test(name)).reduce((total, [, shape]) => total + shape.reduce((a, b) => a * b, 1), 0);
    const n = await ranks(model);
    expect(stored).toBe(entriesOf(model).reduce((total, [, { A, B }], i) => total + n[i]! * (A.shape[1]! + B.shape[0]! + 1), 0));
    const { model: plain, error } = await toLora(model);
    expect(error.total).toBe(0);
    const saved = await throughDisk(plain, tinyModel(), [lora]);
    const config = saved.json["adapter_config.json"] as {
      lora_alpha: number;
      r: number;
      rank_pattern: Record<string, number>;
      alpha_pattern: Record<string, number>;
    };
    expect(config.lora_alpha).toBeCloseTo((16 * config.r) / (config.r + 1e-5), 10);
    expect(new Set([config.r, ...Object.values(config.rank_pattern)])).toEqual(new Set(n));
    for (const [path, r] of Object.entries(config.rank_pattern)) expect(config.alpha_pattern[path]).toBeCloseTo((16 * r) / (r + 1e-5), 10);
    close(await logits(saved.loaded), await logits(model), 5);
  });

  it("is an AdaLoRA, scaled by its initR, of the same answers: e·(initR + 1e-5)/(n + 1e-5), and the triplets it lacks are pruned", async () => {
    const model = await make({ ...growing, targetTotalRank: 5 });
    await train(model, settings);
    const n = await ranks(model);
    expect(new Set(n)).toEqual(new Set([1, 2]));
    const relabelled = toAdalora(model);
    close(await logits(relabelled), await logits(model), 5);
    const { loaded, shapes, json } = await throughDisk(relabelled, tinyModel(), [adalora]);
    const config = json["adapter_config.json"] as { rank_pattern: Record<string, boolean[]> };
    expect(config).toMatchObject({ peft_type: "ADALORA", init_r: 2, lora_alpha: 16 });
    for (const [i, [path]] of entriesOf(model).entries()) {
      expect(shapes.get(`base_model.model.${path}.lora_A`)?.[0]).toBe(n[i]);
      expect(config.rank_pattern[`${path}.lora_E`]).toEqual([true, n[i] === 2]);
    }
    close(await logits(loaded), await logits(model), 5);
    expect(() => toAdalora(relabelled)).toThrow("default-adalora is no IncreLoRA");
    expect(() => toAdalora(relabelled, { name: "default" })).toThrow("already has an adapter named default-adalora");
  });

  it("trains on as it is, all of its components from the first step of the new run", async () => {
    const model = await make({ ...growing, increRankNum: 3, topH: 1, multiLr: false });
    await train(model, settings);
    const n = await ranks(model);
    const before = await Promise.all(entriesOf(model).map(([, { E }]) => numbers(E)));
    await train(model, { ...settings, steps: 1 });
    expect(await ranks(model)).toEqual(n);
    for (const [i, [, { E }]] of entriesOf(model).entries()) (await numbers(E)).forEach((e, k) => expect(e).not.toBe(before[i]![k]));
  });

  it("is saved without its reserve in the middle of a run, and then differs by the 1e-5 terms alone", async () => {
    const model = await make();
    let t: Training | undefined;
    const stop = new AbortController();
    await train(model, {
      ...settings,
      signal: stop.signal,
      regimes: [{ afterStep: (now) => void (t = now) }],
      onEvent: (event) => void (event.event === "step" && event.step === 2 && stop.abort()),
    });
    expect(t!.step).toBeLessThan(3);
    const { loaded, shapes } = await throughDisk(model, tinyModel(), [increlora]);
    for (const [name, shape] of shapes) if (name.endsWith("lora_A")) expect(shape[0]).toBe(1);
    close(await logits(loaded), await logits(model), 4);
  });
});

describe("a file of the official IncreLoRA", () => {
  /** Each component a tensor of its own under its index, and seven more of the reserve. */
  async function lists(model: Model): Promise<Record<string, Tensor>> {
    const held: Record<string, Tensor> = {};
    for (const [path, { A, B, E, used }] of entriesOf(model)) {
      const [a, b, e] = [await numbers(A), await numbers(B), await numbers(E)];
      const [inner, out, r] = [A.shape[1]!, B.shape[0]!, E.size];
      for (let j = 0; j < r + 7; j++) {
        const reserve = j >= r;
        held[`${path}.lora_A.${j}`] = tensor(reserve ? Array<number>(inner).fill(3) : a.slice(j * inner, (j + 1) * inner), [1, inner]);
        held[`${path}.lora_B.${j}`] = tensor(reserve ? Array<number>(out).fill(3) : b.filter((_, at) => at % r === j), [out, 1]);
        held[`${path}.lora_E.${j}`] = tensor(reserve ? [1] : [e[j]!], [1, 1]);
      }
      held[`${path}.ranknum`] = used;
    }
    return held;
  }

  it("is read index by index in the order of numbers, without its reserve, and trains on", async () => {
    const options = { r: 4, targetRank: 4 };
    const model = await make(options);
    for (const [i, [, p]] of entriesOf(model).entries()) (p.E as Parameter).assign(tensor(Array.from({ length: 4 }, (_, k) => Math.sin(i + k))));
    const again = await loadPublished(tinyModel(), increlora, options, await lists(model));
    expect(await ranks(again)).toEqual(await ranks(model));
    expect(await logits(again)).toEqual(await logits(model));
    await train(again, { ...settings, steps: 1 });
    expect(await logits(again)).not.toEqual(await logits(model));
  });

  it("is refused in a sentence where a component is missing in the middle", async () => {
    const held = Object.entries(await lists(await make({ r: 2 }))).filter(([name]) => !name.endsWith(".1"));
    await expect(loadPublished(tinyModel(), increlora, { r: 2 }, Object.fromEntries(held))).rejects.toThrow(
      /lacks (.+q_proj\.lora_A)\.1; \1\.2 stands in its place/,
    );
  });

  it.each([
    ["lora_B.8", undefined],
    ["lora_E.0", () => zeros([2, 1])],
    ["ranknum", () => tensor([10], [1])],
  ])("is refused in a sentence with another %s", async (part, value) => {
    const held = await lists(await make({ r: 2 }));
    const key = Object.keys(held).find((name) => name.endsWith(part))!;
    const { [key]: _, ...rest } = held;
    await expect(loadPublished(tinyModel(), increlora, { r: 2 }, value ? { ...rest, [key]: value() } : rest)).rejects.toThrow(
      /increlora: .* needs lora_A\.j .* and a ranknum from 1 to their \d components/,
    );
  });
});
