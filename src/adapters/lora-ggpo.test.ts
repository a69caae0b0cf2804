import { beforeAll, describe, expect, it } from "vitest";
import { checkGradients, leaf, sample } from "../../test/support/gradients.ts";
import { throughDisk } from "../../test/support/through-disk.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { forward, type Model } from "../models/index.ts";
import type { Live, Regime, Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { dense } from "../operators/index.ts";
import { adamw, sgd } from "../optimizers/index.ts";
import { backward, noGrad, Parameter, Rng, square, start, sum, tensor, toBytes, zeros, type Tensor } from "../tensor/index.ts";
import { train, type TrainOptions } from "../training/index.ts";
import { adapt, adapterParameters, attachedTo, lora, loraGgpo, rowNoise } from "./index.ts";

beforeAll(async () => {
  await start();
});

const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);
const course = { batches: tinyBatches(4), steps: 4, learningRate: 0.02 };
const targets = ["q_proj", "down_proj"];
const put = (options: object, method: typeof loraGgpo | typeof lora = loraGgpo): Promise<Model> =>
  adapt(tinyModel(), method as typeof lora, { r: 2, alpha: 4, ...options }, { targets });
const setOf = (model: Model) => attachedTo(model, "default")!;

/** A and B of every site after training. */
async function factors(model: Model): Promise<number[][]> {
  const found = [...adapterParameters(setOf(model))].filter(([key]) => /\/[AB]$/.test(key)).sort(([a], [b]) => (a < b ? -1 : 1));
  return Promise.all(found.map(([, p]) => numbers(p)));
}

const fit = async (options: object, more: Partial<TrainOptions> = {}): Promise<number[][]> =>
  factors((await train(await put(options), { ...course, ...more })).model);

const [OUT, IN, R] = [5, 7, 2];
/** A site with every part of its variance drawn at random, and the same parts as plain numbers. */
async function example() {
  const draw = (shape: number[], seed: number): Tensor => tensor(sample(shape, seed), shape, "f64");
  const [W, A, B, dA, dB] = [draw([OUT, IN], 1), draw([R, IN], 2), draw([OUT, R], 3), draw([R, IN], 4), draw([OUT, R], 5)];
  const site: Site = { path: "x", depth: 0, role: "x", kind: "linear", out: OUT, in: IN, weight: dense(W) };
  const [w, a, b, da, db] = await Promise.all([W, A, B, dA, dB].map(numbers));
  return { site, p: { A, B }, gradients: { A: dA, B: dB }, plain: { w: w!, a: a!, b: b!, da: da!, db: db! } };
}

describe("lora-ggpo", () => {
  it.each(["in", "out"] as const)("has noise of variance σ²/d·(‖W'ᵢ‖² + β·‖s(B∇A + ∇B·A)ᵢ‖²) in row i, as the whole matrices say, d by %s", async (normDim) => {
    const { site, p, gradients, plain } = await example();
    const o = parseOptions(loraGgpo, { r: R, alpha: 3, sigma: 0.2, beta: 0.7, normDim });
    const tau = rowNoise(site, p, o, gradients);
    const { w, a, b, da, db } = plain;
    for (let i = 0; i < OUT; i++) {
      let [weight, slope] = [0, 0];
      for (let j = 0; j < IN; j++) {
        let [update, gradient] = [0, 0];
        for (let k = 0; k < R; k++) {
          update += 1.5 * b[i * R + k]! * a[k * IN + j]!;
          gradient += 1.5 * (b[i * R + k]! * da[k * IN + j]! + db[i * R + k]! * a[k * IN + j]!);
        }
        weight += (w[i * IN + j]! + update) ** 2;
        slope += gradient ** 2;
      }
      expect(tau[i]).toBeCloseTo(0.2 * Math.sqrt((weight + 0.7 * slope) / (normDim === "in" ? IN : OUT)), 10);
    }
  });

  it("in mode sd has noise of deviation (σ·√(w² + ‖s(BA)ᵢ‖²) + β·‖s(B∇A + ∇B·A)ᵢ‖²)/√out, w the mean norm of W's rows", async () => {
    const { site, p, gradients, plain } = await example();
    const tau = rowNoise(site, p, parseOptions(loraGgpo, { r: R, alpha: 3, sigma: 0.2, beta: 0.7, mode: "sd" }), gradients);
    const { w, a, b, da, db } = plain;
    const row = (of: (i: number, j: number) => number, i: number): number => Math.hypot(...Array.from({ length: IN }, (_, j) => of(i, j)));
    const product = (left: number[], right: number[], i: number, j: number): number =>
      1.5 * Array.from({ length: R }, (_, k) => left[i * R + k]! * right[k * IN + j]!).reduce((x, y) => x + y);
    const mean = Array.from({ length: OUT }, (_, i) => row((k, j) => w[k * IN + j]!, i)).reduce((x, y) => x + y) / OUT;
    for (let i = 0; i < OUT; i++) {
      const update = row((k, j) => product(b, a, k, j), i);
      const slope = row((k, j) => product(b, da, k, j) + product(db, a, k, j), i);
      expect(tau[i]).toBeCloseTo((0.2 * Math.hypot(mean, update) + 0.7 * slope ** 2) / Math.sqrt(OUT), 10);
    }
  });

  it("in mode sd estimates the mean norm from 1000 rows of more, the same at every call", () => {
    const rows = 4000;
    const weight = tensor(
      Array.from({ length: rows }, (_, i) => i),
      [rows, 1],
    );
    const site: Site = { path: "x", depth: 0, role: "x", kind: "linear", out: rows, in: 1, weight: dense(weight) };
    const o = parseOptions(loraGgpo, { r: 1, sigma: 1, beta: 0, mode: "sd" });
    const estimate = (): number => rowNoise(site, { A: zeros([1, 1]), B: zeros([rows, 1]) }, o)[0]! * Math.sqrt(rows);
    const [mean, deviation] = [(rows - 1) / 2, rows / Math.sqrt(12)];
    expect(estimate()).toBe(estimate());
    expect(estimate()).not.toBe(mean);
    expect(Math.abs(estimate() - mean)).toBeLessThan(3.5 * (deviation / Math.sqrt(1000)));
  });

  it("takes the norms of a base that trains as they are now, of one that does not from the first time", async () => {
    const o = parseOptions(loraGgpo, { r: 2, sigma: 1 });
    const none = { A: zeros([2, 4]), B: zeros([3, 2]) };
    for (const trainable of [true, false]) {
      const weight = new Parameter(tensor(sample([3, 4], 1), [3, 4]), "W", trainable);
      const site: Site = { path: "x", depth: 0, role: "x", kind: "linear", out: 3, in: 4, weight: dense(weight) };
      const before = [...rowNoise(site, none, o)];
      weight.assign(
        tensor(
          (await numbers(weight)).map((value) => 2 * value),
          [3, 4],
        ),
      );
      rowNoise(site, none, o).forEach((value, i) => expect(value).toBeCloseTo((trainable ? 2 : 1) * before[i]!, 6));
    }
  });

  it("has the gradients of a forward pass with that noise, drawn again for backward; in mode sd x has none through it", async () => {
    for (const mode of ["ggpo", "sd"]) {
      const { site } = await example();
      const [A, B, x] = [leaf([R, IN], 11), leaf([OUT, R], 12), leaf([3, IN], 13)];
      const tau = tensor([0.5, 1, 0, 2, 0.3], [OUT], "f64");
      const o = parseOptions(loraGgpo, { r: R, alpha: 3, mode });
      const run = (input: Tensor, noise: Tensor): Tensor =>
        loraGgpo.forward!(input, site.weight.apply(input), { A, B, tau: noise }, site, o, { training: true, step: 0, rng: new Rng(3), values: {} }, {});
      await checkGradients(() => run(x, tau), [A, B]);
      if (mode === "ggpo") await checkGradients(() => run(x, tau), [x]);
      else {
        const slopes = await Promise.all([tau, zeros([OUT], "f64")].map((noise) => numbers(backward(sum(square(run(x, noise)))).get(x)!)));
        expect(slopes[0], "the noise is felt in the loss").not.toEqual(slopes[1]);
        const linear = await Promise.all([tau, zeros([OUT], "f64")].map((noise) => numbers(backward(sum(run(x, noise))).get(x)!)));
        expect(linear[0]).toEqual(linear[1]);
      }
    }
  });

  it("holds a number for each output beside a LoRA's, which is neither trained nor saved", async () => {
    for (const mode of ["ggpo", "sd", "mgpo"]) {
      const model = await put({ mode });
      for (const [path, p] of setOf(model).entries) {
        expect(p["tau"]?.size, path).toBe(mode === "mgpo" ? undefined : model.layers.get(path)!.site!.out);
        expect([...Object.entries(p)].filter(([, value]) => (value as Parameter).trainable).map(([key]) => key)).toEqual(["A", "B"]);
      }
      const { shapes } = await throughDisk(model, tinyModel(), [loraGgpo]);
      expect([...shapes.keys()].every((name) => /lora_[AB]\.weight$/.test(name))).toBe(true);
    }
  });

  it("gives a row that is zero no noise", async () => {
    const site: Site = { path: "x", depth: 0, role: "x", kind: "linear", out: 3, in: 4, weight: dense(zeros([3, 4])) };
    const zero = { A: zeros([2, 4]), B: zeros([3, 2]) };
    expect([...rowNoise(site, zero, parseOptions(loraGgpo, { r: 2 }), zero)]).toEqual([0, 0, 0]);
  });

  it("adds noise of mean 0 and deviation τᵢ in training, the same for the same stream, and none in evaluation", async () => {
    const [out, inner] = [3, 300];
    const site: Site = { path: "x", depth: 0, role: "x", kind: "linear", out, in: inner, weight: dense(zeros([out, inner])) };
    const tau = [0.5, 0, 2];
    const p = { A: zeros([1, inner]), B: zeros([out, 1]), tau: tensor(tau, [out]) };
    const o = parseOptions(loraGgpo, { r: 1 });
    // a row of n signs gives a sum of n numbers of the noise: √n times its deviation
    const rows = 300;
    const x = tensor(
      sample([rows, inner], 5).map((value) => Math.sign(value)),
      [rows, inner],
    );
    const at = async (live: Live): Promise<number[]> => numbers(noGrad(() => loraGgpo.forward!(x, zeros([rows, out]), p, site, o, live, {})));
    const live = (seed: number, training = true): Live => ({ training, step: 0, rng: new Rng(seed), values: {} });
    const y = await at(live(1));
    expect(await at(live(1))).toEqual(y);
    expect(await at(live(2))).not.toEqual(y);
    expect((await at(live(1, false))).every((value) => value === 0)).toBe(true);
    tau.forEach((size, i) => {
      const own = Array.from({ length: rows }, (_, row) => y[row * out + i]! / Math.sqrt(inner));
      const mean = own.reduce((a, b) => a + b, 0) / rows;
      const std = Math.sqrt(own.reduce((a, b) => a + (b - mean) ** 2, 0) / rows);
      expect(Math.abs(mean)).toBeLessThanOrEqual((3.5 * size) / Math.sqrt(rows));
      expect(Math.abs(std - size)).toBeLessThanOrEqual((3.5 * size) / Math.sqrt(2 * rows));
    });
  });

  it("raises a quadratic loss ½‖xWᵀ − t‖² by ½·Σᵢτᵢ²·‖x‖² on average", async () => {
    const { site, p } = await example();
    const tau = [0.3, 0.1, 0.2, 0.4, 0.05];
    const o = parseOptions(loraGgpo, { r: R, alpha: R });
    const x = tensor(sample([1, IN], 8), [1, IN], "f64");
    const target = sample([OUT], 9);
    const base = noGrad(() => site.weight.apply(x));
    const loss = async (live: Live): Promise<number> => {
      const y = await numbers(noGrad(() => loraGgpo.forward!(x, base, { ...p, tau: tensor(tau, [OUT], "f64") }, site, o, live, {})));
      return y.reduce((total, value, i) => total + 0.5 * (value - target[i]!) ** 2, 0);
    };
    const still = await loss({ training: false, step: 0, rng: new Rng(0), values: {} });
    const draws: number[] = [];
    for (let k = 0; k < 1500; k++) draws.push((await loss({ training: true, step: 0, rng: new Rng(k), values: {} })) - still);
    const mean = draws.reduce((a, b) => a + b, 0) / draws.length;
    const error = Math.sqrt(draws.reduce((a, b) => a + (b - mean) ** 2, 0)) / draws.length;
    const squares = (await numbers(x)).reduce((total, value) => total + value * value, 0);
    const expected = 0.5 * tau.reduce((total, size) => total + size * size, 0) * squares;
    expect(Math.abs(mean - expected)).toBeLessThan(3.5 * error);
  });

  it("is a LoRA bit for bit without noise, and in evaluation always", async () => {
    const start = await put({ sigma: 0 });
    const reference = await put({}, lora);
    for (const [path, { A }] of setOf(start).entries) (setOf(reference).entries.get(path)!["A"] as Parameter).assign(tensor(await numbers(A!), A!.shape));
    const [own, theirs] = [await factors((await train(start, course)).model), await factors((await train(reference, course)).model)];
    expect(own).toEqual(theirs);
    expect(await fit({ sigma: 0.5 })).not.toEqual(own);
    expect(await fit({ mode: "sd", sigma: 0, beta: 0 })).toEqual(theirs);
    expect(await fit({ mode: "sd", sigma: 0.5 })).not.toEqual(theirs);
    const ids = tensor([1, 2, 3], [1, 3], "i32");
    const tuned = (await train(await put({ sigma: 0.5 }), course)).model;
    const again = noGrad(() => forward(tuned, ids));
    const copy = await put({}, lora);
    for (const [path, { A, B }] of setOf(tuned).entries)
      for (const [key, value] of Object.entries({ A: A!, B: B! }))
        (setOf(copy).entries.get(path)![key] as Parameter).assign(tensor(await numbers(value), value.shape));
    expect(await numbers(again)).toEqual(await numbers(noGrad(() => forward(copy, ids))));
  });

  it("knows no gradient in the first step: then there is no noise, or the weights' alone", async () => {
    const one = { steps: 1 };
    const still = await fit({ sigma: 0 }, one);
    expect(await fit({ sigma: 0.5 }, one)).toEqual(still);
    expect(await fit({ sigma: 0.5, firstStep: "weights" }, one)).not.toEqual(still);
  });

  it("draws other noise for every batch that adds up to a step", async () => {
    const same = [tinyBatches(1)[0]!, tinyBatches(1)[0]!];
    const once = await fit({ sigma: 0.5, firstStep: "weights" }, { batches: same, steps: 1 });
    expect(await fit({ sigma: 0.5, firstStep: "weights" }, { batches: same, steps: 1, accumulate: 2 })).not.toEqual(once);
    const still = await fit({ sigma: 0 }, { batches: same, steps: 1, optimizer: sgd });
    (await fit({ sigma: 0 }, { batches: same, steps: 1, accumulate: 2, optimizer: sgd })).forEach((values, i) =>
      values.forEach((value, k) => expect(value).toBeCloseTo(still[i]![k]!, 5)),
    );
  });
});

describe("mgpo", () => {
  /** What A and B are while the loss is computed, and after. */
  async function watch(options: object, optimizer = adamw) {
    const model = await put({ mode: "mgpo", ...options });
    const seen: { before: number[][]; inside: number[][]; after: number[][]; norm: number }[] = [];
    let current: (typeof seen)[number];
    const own = setOf(model).regime!;
    const snapshot = (): number[][] =>
      [...setOf(model).entries.values()].flatMap(({ A, B }) => [A!, B!].map((t) => Array.from(new Float32Array(toBytes(t).slice().buffer))));
    const ends: number[][][] = [snapshot()];
    const watcher: Regime = {
      beforeForward() {
        current = { before: [], inside: [], after: [], norm: Number(own.state!["norm"]) };
      },
      loss() {
        current.inside = snapshot();
        return zeros([]);
      },
      beforeStep() {
        current.after = snapshot();
        seen.push(current);
      },
      afterStep: () => void ends.push(snapshot()),
    };
    await train(model, { ...course, optimizer, regimes: [watcher] });
    return seen.map((step, k) => ({ ...step, before: ends[k]! }));
  }

  const distance = (a: readonly number[][], b: readonly number[][]): number => Math.hypot(...a.flat().map((value, i) => value - b.flat()[i]!));

  it("runs forward at a distance ρ/ḡ along the momentum, at most the cap, and restores A and B exactly", async () => {
    for (const [rho, most] of [
      [0.05, 100],
      [0.05, 0.01],
    ] as const) {
      const steps = await watch({ rho, most });
      expect(steps.length).toBe(4);
      expect(steps[0]!.inside, "the first step has no momentum").toEqual(steps[0]!.before);
      for (const { before, inside, after, norm } of steps.slice(1)) {
        expect(distance(inside, before) / Math.min(most, rho / norm)).toBeCloseTo(1, 2);
        expect(after).toEqual(before);
      }
    }
  });

  it("is a LoRA at ρ = 0, and asks for an optimiser with a momentum", async () => {
    expect(await fit({ mode: "mgpo", rho: 0 })).toEqual(await fit({ sigma: 0 }));
    await expect(fit({ mode: "mgpo" }, { optimizer: sgd })).rejects.toThrow(/first moment/);
  });
});
