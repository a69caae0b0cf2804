import { beforeAll, describe, expect, it } from "vitest";
import { throughDisk } from "../../test/support/through-disk.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { forward, type Model } from "../models/index.ts";
import type { Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { dense } from "../operators/index.ts";
import { sgd } from "../optimizers/index.ts";
import { backward, copyOf, mul, noGrad, Parameter, Rng, start, sum, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { train, type TrainOptions } from "../training/index.ts";
import { adapt, adapterParameters, attachedTo, lora, pruneShared, s2lora, toLora } from "./index.ts";

beforeAll(async () => {
  await start();
});

const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);
const live = { training: false, step: 0, rng: new Rng(1), values: {} };
const targets = ["q_proj", "o_proj", "k_proj"];

const put = (options: object = {}, seed = 0): Promise<Model> => adapt(tinyModel(), s2lora, { r: 4, ...options }, { targets, seed });
const trained = async (options: object = {}, course: Partial<TrainOptions> = {}): Promise<Model> =>
  (await train(await put(options), { batches: tinyBatches(4), steps: 8, learningRate: 0.02, ...course })).model;
const setOf = (model: Model) => attachedTo(model, "default")!;
const coefficients = async (model: Model): Promise<number[][]> => Promise.all([...setOf(model).entries.values()].map(({ s }) => numbers(s!)));
const answer = (model: Model): Promise<number[]> => numbers(noGrad(() => forward(model, tensor([3, 1, 4, 1, 5], [1, 5], "i32"))));
const zeroShare = (all: readonly number[][]): number => all.flat().filter((value) => value === 0).length / all.flat().length;

/** Norms of rows of an A, of columns of a B. */
async function norms(key: string, x: Tensor): Promise<number[]> {
  const [rows, cols] = x.shape as [number, number];
  const values = await numbers(x);
  const at = (i: number, j: number): number => values[i * cols + j]!;
  return key.endsWith(".A")
    ? Array.from({ length: rows }, (_, i) => Math.hypot(...Array.from({ length: cols }, (_, j) => at(i, j))))
    : Array.from({ length: cols }, (_, j) => Math.hypot(...Array.from({ length: rows }, (_, i) => at(i, j))));
}

describe("s2lora", () => {
  it("has one A for all inputs of a width and one B for all outputs of a width, each one optimiser entry", async () => {
    const model = await put();
    expect(Object.keys(setOf(model).shared).sort()).toEqual(["in8.A", "out4.B", "out8.B"]);
    const keys = [...adapterParameters(setOf(model)).keys()];
    expect(keys.filter((key) => key.startsWith("default/shared/")).length).toBe(3);
    expect(keys.filter((key) => key.endsWith("/s")).length).toBe(6);
  });

  it("has a pair for each shape instead, where classes share nothing; the file names each by its class", async () => {
    const model = await put({ shareClasses: false });
    expect(Object.keys(setOf(model).shared).sort()).toEqual(["4x8.A", "4x8.B", "8x8.A", "8x8.B"]);
    expect(await numbers(setOf(model).shared["4x8.A"]!)).not.toEqual(await numbers(setOf(model).shared["8x8.A"]!));
    const tuned = await trained({ shareClasses: false });
    const { loaded, shapes } = await throughDisk(tuned, tinyModel(), [s2lora]);
    expect([...shapes.keys()].filter((key) => !key.endsWith(".s2lora_s")).sort()).toEqual(
      ["4x8.A", "4x8.B", "8x8.A", "8x8.B"].map((key) => `base_model.s2lora.${key}`),
    );
    expect(await answer(loaded)).toEqual(await answer(tuned));
    expect(await answer(tuned)).not.toEqual(await answer(await trained()));
  });

  it("starts at the base with B at 0 and s at 1 too, where B moves first", async () => {
    for (const normalize of [true, false]) {
      const model = await put({ zeroInit: "B", normalize });
      expect(await answer(model)).toEqual(await answer(tinyModel()));
      expect((await coefficients(model)).flat().every((value) => value === 1)).toBe(true);
      const before = await numbers(setOf(model).shared["in8.A"]!);
      await train(model, { batches: tinyBatches(1), steps: 1, learningRate: 0.02, optimizer: sgd });
      expect((await numbers(setOf(model).shared["out8.B"]!)).some((value) => value !== 0)).toBe(true);
      expect(await answer(model)).not.toEqual(await answer(tinyModel()));
      if (normalize) continue;
      expect(await numbers(setOf(model).shared["in8.A"]!), "A has no gradient where B is 0").toEqual(before);
    }
  });

  it("takes the soft threshold at a step of its own where it is told to", async () => {
    const course = { steps: 1, batches: tinyBatches(1), learningRate: 0.02 };
    const [plain, moved] = [await trained({ lambda1: 0, normalize: false }, course), await trained({ lambda1: 0.1, proxStep: 0.05, normalize: false }, course)];
    const soft = (await coefficients(plain)).flat().map((value) => Math.sign(value) * Math.max(0, Math.abs(value) - 0.005));
    (await coefficients(moved)).flat().forEach((value, i) => expect(value).toBeCloseTo(soft[i]!, 6));
    expect(soft.some((value) => value !== 0)).toBe(true);
  });

  it("is γ·Σⱼ sⱼ·Bⱼ·Aⱼ: with equal s everywhere all sites of a shape have one update (Tied-LoRA), with A and B fixed only s sets it (VeRA)", async () => {
    const model = await put({ gamma: 2 });
    const set = setOf(model);
    const [A, B] = [await numbers(set.shared["in8.A"]!), await numbers(set.shared["out8.B"]!)];
    const s = [1, -2, 0, 0.5];
    const updates: number[][] = [];
    for (const [path, { s: own }] of set.entries) {
      (own as Parameter).assign(tensor(s, [4]));
      const { site, attached } = model.layers.get(path)!;
      if (site!.out === 8) updates.push(await numbers(noGrad(() => attached[0]!.update!(site!).toDense())));
    }
    expect(updates.length).toBe(4);
    for (const update of updates)
      update.forEach((value, at) => {
        const [i, j] = [Math.floor(at / 8), at % 8];
        expect(value).toBeCloseTo(2 * s.reduce((total, sk, k) => total + sk * B[i * 4 + k]! * A[k * 8 + j]!, 0), 5);
      });
  });

  it("gives the shared A the sum of the gradients at all sites", async () => {
    const sites = [0, 1, 2].map((depth): Site => ({ path: `${depth}`, depth, role: "fc", kind: "linear", out: 3, in: 5, weight: dense(zeros([3, 5])) }));
    const o = parseOptions(s2lora, { r: 2 });
    const shared = { "in5.A": new Parameter(new Rng(1).normal([2, 5], 1)), "out3.B": new Parameter(new Rng(2).normal([3, 2], 1)) };
    const s = sites.map((_, k) => new Rng(3 + k).normal([2], 1));
    const g = new Rng(9).normal([3, 5], 1);
    const own = async (k: number): Promise<number[]> => {
      const loss = sum(mul(s2lora.update!({ s: s[k]! }, sites[k]!, o, live, shared).toDense(), g));
      return numbers(backward(loss).get(shared["in5.A"])!);
    };
    const each = [await own(0), await own(1), await own(2)];
    const [b, gg] = [await numbers(shared["out3.B"]), await numbers(g)];
    for (const [k, found] of each.entries()) {
      const values = await numbers(s[k]!);
      found.forEach((value, at) => {
        const [j, c] = [Math.floor(at / 5), at % 5];
        expect(value).toBeCloseTo(values[j]! * [0, 1, 2].reduce((total, i) => total + b[i * 2 + j]! * gg[i * 5 + c]!, 0), 4);
      });
    }
    const model = await put();
    const set = setOf(model);
    for (const [k, { s: one }] of [...set.entries.values()].entries()) (one as Parameter).assign(new Rng(k).normal([4], 1));
    const ids = tensor([3, 1, 4], [1, 3], "i32");
    const whole = await numbers(backward(sum(forward(model, ids))).get(set.shared["in8.A"] as Parameter)!);
    expect(
      whole.some((value) => Math.abs(value) > 1e-3),
      "it reaches A through every layer",
    ).toBe(true);
  });

  it("keeps rows of A and columns of B at norm 1 after every step", async () => {
    for (const model of [await put(), await trained({ lambda1: 0.1 })])
      for (const [key, x] of Object.entries(setOf(model).shared)) for (const norm of await norms(key, x)) expect(norm).toBeCloseTo(1, 5);
    const free = await trained({ normalize: false });
    const lengths = (await Promise.all(Object.entries(setOf(free).shared).map(([key, x]) => norms(key, x)))).flat();
    expect(lengths.some((norm) => Math.abs(norm - 1) > 1e-2)).toBe(true);
  });

  it("changes no update by normalising: one step with it answers as one without", async () => {
    const [kept, free] = [await put({ lambda1: 0 }), await put({ lambda1: 0, normalize: false })];
    for (const [key, x] of Object.entries(setOf(kept).shared)) (setOf(free).shared[key] as Parameter).assign(copyOf(x));
    const values = new Rng(4).normal([4], 1);
    for (const model of [kept, free]) for (const { s } of setOf(model).entries.values()) (s as Parameter).assign(copyOf(values));
    const course = { batches: tinyBatches(1), steps: 1, learningRate: 0.05 };
    const [a, b] = [await answer((await train(kept, course)).model), await answer((await train(free, course)).model)];
    a.forEach((value, i) => expect(value).toBeCloseTo(b[i]!, 4));
    expect(await numbers(setOf(kept).shared["in8.A"]!)).not.toEqual(await numbers(setOf(free).shared["in8.A"]!));
  });

  it("after a step of SGD is s − lr·∂loss/∂s with lr·λ taken off its size", async () => {
    const [lr, lambda1] = [0.5, 0.02];
    const course = { batches: tinyBatches(1), steps: 1, learningRate: lr, optimizer: sgd };
    const plain = await coefficients(await trained({ lambda1: 0, normalize: false }, course));
    const soft = await coefficients(await trained({ lambda1, normalize: false }, course));
    const size = lr * lambda1;
    plain.flat().forEach((value, i) => expect(soft.flat()[i]).toBeCloseTo(Math.sign(value) * Math.max(Math.abs(value) - size, 0), 6));
    expect(plain.flat().some((value) => Math.abs(value) < size) && plain.flat().some((value) => Math.abs(value) > size), "both cases occur").toBe(true);
  });

  it("has more zeros the larger λ₁ is, and with a large one is the base; Adam with the penalty in the loss has none", async () => {
    const shares: number[] = [];
    for (const lambda1 of [0, 0.5, 2, 1000]) shares.push(zeroShare(await coefficients(await trained({ lambda1 }))));
    expect(shares[0]).toBe(0);
    expect(shares.at(-1)).toBe(1);
    expect(shares).toEqual(shares.toSorted((a, b) => a - b));
    expect(await answer(await trained({ lambda1: 1000 }))).toEqual(await answer(tinyModel()));
    expect(zeroShare(await coefficients(await trained({ lambda1: 0.5, sparsity: "penalty" })))).toBe(0);
  });

  it("steers λ₁ to a share of zeros", async () => {
    const share = zeroShare(await coefficients(await trained({ lambda1: 0.1, targetSparsity: 0.5 }, { steps: 120, learningRate: 5e-3 })));
    expect(share).toBeGreaterThan(0.3);
    expect(share).toBeLessThan(0.7);
  });

  it("moves A and B at a rate of their own", async () => {
    const start = await put({ normalize: false });
    const before = await numbers(setOf(start).shared["in8.A"]!);
    const moved = async (factor: number): Promise<number> => {
      const model = await trained({ normalize: false, sharedLearningRateFactor: factor }, { steps: 3 });
      return Math.hypot(...(await numbers(setOf(model).shared["in8.A"]!)).map((value, i) => value - before[i]!));
    };
    const ratio = (await moved(0.1)) / (await moved(1));
    expect(ratio).toBeGreaterThan(0.05);
    expect(ratio).toBeLessThan(0.2);
  });

  it("draws A and B towards orthonormal with that penalty", async () => {
    const gap = async (model: Model): Promise<number> => {
      const A = await numbers(setOf(model).shared["in8.A"]!);
      let total = 0;
      for (let i = 0; i < 4; i++)
        for (let j = 0; j < 4; j++) {
          const dot = Array.from({ length: 8 }, (_, c) => A[i * 8 + c]! * A[j * 8 + c]!).reduce((a, b) => a + b, 0);
          total += (dot - (i === j ? 1 : 0)) ** 2;
        }
      return total;
    };
    const course = { steps: 30, learningRate: 0.02 };
    expect(await gap(await trained({ lambdaOrthogonal: 3 }, course))).toBeLessThan(0.1 * (await gap(await trained({}, course))));
  });

  it("as a LoRA has the rank of each site's non-zero coefficients, leaves out sites without any, and answers the same", async () => {
    const model = await put({ gamma: 2 });
    const paths = [...setOf(model).entries.keys()];
    const values = (k: number): number[] => (k === 1 ? [0, 0, 0, 0] : [1, k % 2, 0, -0.5]);
    for (const [k, { s }] of [...setOf(model).entries.values()].entries()) (s as Parameter).assign(tensor(values(k), [4]));
    const { model: plain, error } = await toLora(model);
    expect(error.total).toBe(0);
    const { loaded, shapes, json } = await throughDisk(plain, tinyModel(), [lora]);
    for (const [k, path] of paths.entries())
      expect(shapes.get(`base_model.model.${path}.lora_A.weight`)?.[0], path).toBe(k === 1 ? undefined : values(k).filter((value) => value !== 0).length);
    expect((json["adapter_config.json"] as { target_modules: string[] }).target_modules).not.toContain(paths[1]);
    const own = await answer(model);
    (await answer(loaded)).forEach((value, i) => expect(value).toBeCloseTo(own[i]!, 5));
    const { model: converted } = await toLora(model, { rank: 3, as: "three" });
    (await answer(converted)).forEach((value, i) => expect(value).toBeCloseTo(own[i]!, 4));
    expect((await toLora(model, { rank: 1, as: "one" })).error.total).toBeGreaterThan(1e-2);
  });

  it("loses the shared ranks that no site uses, answers the same, and tells which site uses which", async () => {
    const model = await put();
    for (const [k, { s }] of [...setOf(model).entries.values()].entries()) (s as Parameter).assign(tensor([1, k % 2, 1e-4, 0], [4]));
    const exact = pruneShared(model);
    expect(await answer(exact.model)).toEqual(await answer(model));
    expect(exact.ranks.map(({ rank }) => rank)).toEqual([2, 3, 2, 3, 2, 3]);
    expect(exact.ranks[0]!.path).toBe([...setOf(model).entries.keys()][0]);
    const { model: smaller, ranks } = pruneShared(model, { threshold: 1e-3 });
    expect(ranks.map(({ s }) => s)).toEqual(Array.from({ length: 6 }, (_, k) => [1, k % 2, 0, 0]));
    expect(Object.values(setOf(smaller).shared).map(({ size }) => size)).toEqual(Object.values(setOf(model).shared).map(({ size }) => size / 2));
    const { loaded, shapes } = await throughDisk(smaller, tinyModel(), [s2lora]);
    expect(shapes.get("base_model.s2lora.in8.A")).toEqual([2, 8]);
    expect(await answer(loaded)).toEqual(await answer(smaller));
    expect(() => pruneShared(model, { threshold: 2 })).toThrow("no coefficient of default is above 2");
    expect(() => pruneShared(tinyModel())).toThrow("default is no S2-LoRA");
  });
});
