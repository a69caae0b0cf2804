import { readdir } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { inFolder } from "../../test/laws/scaffolds.ts";
import { linearSite, liveOf, numbers, reloaded } from "../../test/support/site.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { leaf } from "../../test/support/gradients.ts";
import { forward, type Model } from "../models/index.ts";
import type { Params } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { add, backward, matmul, mul, noGrad, Parameter, Rng, scale, start, sum, tensor, transpose, type Tensor } from "../tensor/index.ts";
import { train } from "../training/index.ts";
import { adapt, attachedTo, lora, merge, pst } from "./index.ts";
import { sparsityAt } from "./pst.ts";

beforeAll(() => start());

const optionsOf = (given: Record<string, unknown> = {}) => parseOptions(pst, given);
const targets = ["q_proj", "down_proj"];
const make = (given: Record<string, unknown> = {}): Promise<Model> => adapt(tinyModel(), pst, { weightRank: 2, maskRank: 2, ...given }, { targets });
const logits = (model: Model): Promise<number[]> => numbers(noGrad(() => forward(model, tensor([3, 1, 4, 1, 5], [1, 5], "i32"))));
const entriesOf = (model: Model) => [...attachedTo(model, "default")!.entries] as [string, Record<string, Parameter>][];
const close = (a: readonly number[], b: readonly number[], digits: number): void => {
  expect(a.length).toBe(b.length);
  a.forEach((value, i) => expect(value).toBeCloseTo(b[i]!, digits));
};
const settings = { batches: tinyBatches(3), steps: 10, learningRate: 0.01, weightDecay: 0 };

/** The golden's matrices: sin(a + 0.9·i + 1.3·j) times a scale. */
const M = (rows: number, cols: number, a: number, scale = 1): Tensor =>
  tensor(
    Array.from({ length: rows * cols }, (_, at) => scale * Math.sin(a + 0.9 * Math.floor(at / cols) + 1.3 * (at % cols))),
    [rows, cols],
    "f64",
  );
const param = (value: Tensor): Parameter => new Parameter(value, "golden");
const line = (n: number, a: number): Parameter =>
  param(
    tensor(
      Array.from({ length: n }, (_, j) => 0.1 * Math.sin(a + 1.3 * j)),
      [n],
      "f64",
    ),
  );
const golden = () => ({
  site: linearSite(M(3, 4, 1)),
  p: {
    U: param(M(3, 2, 0.3)),
    V: param(M(2, 4, 0.7, 0.1)),
    A: param(M(3, 2, 0.2)),
    B: param(M(2, 4, 0.5, 0.1)),
    R: line(3, 0.4),
    C: line(4, 0.6),
    v: tensor([0.5], [1], "f64"),
  },
});
const weightOf = (p: Params, W: Tensor, given: Record<string, unknown> = {}): Tensor =>
  pst.weight!(p as never, linearSite(W), optionsOf(given), liveOf(true), {}).toDense();

/** Places of the k smallest magnitudes. */
const smallest = (x: readonly number[], k: number): Set<number> =>
  new Set(
    x
      .map((_, i) => i)
      .sort((a, b) => Math.abs(x[a]!) - Math.abs(x[b]!))
      .slice(0, k),
  );

describe("PST's matrix", () => {
  it("has the output, the gradients and the pruned weight of the authors' layer", async () => {
    const { site, p } = golden();
    const y = matmul(M(2, 4, 0.1), transpose(pst.weight!(p, site, optionsOf(), liveOf(true), {}).toDense()));
    close(await numbers(y), [1.699904, -0.339914, -0.735046, 2.465466, 1.359313, -0.556221], 5);
    const gradients = backward(sum(mul(y, M(2, 3, 0.8))));
    const expected = {
      U: [0.665755, 0.468777, 0.068102, 0.022138, -0.207367, -0.113852],
      V: [0.668591, -0.604983, 0.758459, -1.057879, 2.103226, 3.037787, 0.246501, -3.536199],
      A: [-0.002055, -0.007022, -0.032242, 0.007908, 0.017961, -0.012394],
      B: [0.103228, 0.897712, -0.477022, 1.084482, 1.061476, 1.065425, -0.110012, 1.900476],
      R: [3.735013, 0.412021, 0.548962],
      C: [0.797955, 1.888376, -0.475751, 2.485416],
    } as const;
    for (const key of ["U", "V", "A", "B", "R", "C"] as const) close(await numbers(gradients.get(p[key])!), expected[key], 5);
    const { params } = pst.finish!(p, site, optionsOf());
    close(await numbers(noGrad(() => weightOf(params, M(3, 4, 1)))), [0.960424, 0.796492, 0, -1.082342, 1.066165, 0, -1.044394, 0, 0, -0.745899, 0, 0], 5);
  });

  it.each([0.1, 0.5, 0.9])("keeps at its start the largest weights at any sparsity, %f", async (v) => {
    const [p, W] = [await fresh(6, 5), leaf([6, 5], 3)];
    const [found, before] = [await numbers(noGrad(() => weightOf({ ...p, v: tensor([v], [1], "f64") }, W))), await numbers(W)];
    const gone = smallest(before, Math.floor(v * 30));
    expect(found.map((w) => w + 0)).toEqual(before.map((w, i) => (gone.has(i) ? 0 : w)));
  });

  it("prunes by magnitude alone where both α are 0, whatever the scores", async () => {
    const { p } = golden();
    const kept = (await numbers(noGrad(() => weightOf(p, M(3, 4, 1), { maskAlpha1: 0, maskAlpha2: 0 })))).map((w) => w !== 0);
    const whole = await numbers(noGrad(() => weightOf({ ...p, v: tensor([0], [1], "f64") }, M(3, 4, 1))));
    const gone = smallest(whole, 6);
    expect(kept).toEqual(whole.map((_, i) => !gone.has(i)));
  });

  it("with both α 0 and |W| frozen is magnitude pruning of a LoRA: U and V have the gradients of M ⊙ (W + β·U·V), the scores none", async () => {
    const { p, site } = golden();
    const frozen = optionsOf({ maskAlpha1: 0, maskAlpha2: 0, magnitudeGradient: false, weightBeta: 1.5 });
    const G = M(3, 4, 0.8);
    const found = backward(sum(mul(pst.weight!(p, site, frozen, liveOf(true), {}).toDense(), G)));
    const product = (U: Tensor, V: Tensor): Tensor => add(M(3, 4, 1), scale(matmul(U, V), 1.5));
    const whole = await numbers(noGrad(() => product(p.U, p.V)));
    const gone = smallest(whole, 6);
    const mask = tensor(
      whole.map((_, i) => Number(!gone.has(i))),
      [3, 4],
      "f64",
    );
    const expected = backward(sum(mul(mul(product(p.U, p.V), mask), G)));
    for (const key of ["U", "V"] as const) close(await numbers(found.get(p[key])!), await numbers(expected.get(p[key])!), 12);
    for (const key of ["A", "B", "R", "C"] as const) expect((await numbers(found.get(p[key])!)).every((g) => g === 0)).toBe(true);
  });

  it("starts U and A at the deviation it is told", async () => {
    for (const initScale of [1, 0.01]) {
      const { U, A } = (await fresh(40, 30, { initScale, weightRank: 20, maskRank: 20 })) as Record<"U" | "A", Tensor>;
      for (const x of [U, A]) expect(Math.sqrt((await numbers(x)).reduce((total, value) => total + value ** 2, 0) / x.size) / initScale).toBeCloseTo(1, 1);
    }
  });

  it("scores rows and columns alone at rank 0 of A·B", async () => {
    const p = { ...(await fresh(3, 4, { maskRank: 0 })), R: tensor([5, 0, 0], [3], "f64"), C: tensor([0, 0, 0, 9], [4], "f64"), v: tensor([0.5], [1], "f64") };
    expect((await numbers(noGrad(() => weightOf(p, M(3, 4, 1))))).map((w) => Number(w !== 0))).toEqual([1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
  });
});

const fresh = async (out: number, inner: number, given: Record<string, unknown> = {}): Promise<Params> => {
  return pst.init(linearSite(leaf([out, inner], 3)), optionsOf({ weightRank: 2, maskRank: 2, ...given }), { rng: new Rng(1), dtype: "f64", sites: [] }, {});
};

describe("PST's schedule", () => {
  it.each([
    [10, 0],
    [11, 0.0443],
    [40, 0.7875],
    [69, 0.9],
    [70, 0.9],
    [100, 0.9],
  ])("is at step %i of 100 at sparsity %f", (step, v) => {
    expect(sparsityAt(step, 100, optionsOf())).toBeCloseTo(v, 4);
  });

  it("is what train prunes to: the matrices have that many zeros after each step, and no fewer at the end", async () => {
    const model = await make({ sparsity: 0.8 });
    const zeros: number[] = [];
    const count = async (): Promise<number> => {
      let total = 0;
      for (const [path] of entriesOf(model)) total += (await numbers(merge(model).layers.get(path)!.weight)).filter((w) => w === 0).length;
      return total;
    };
    await train(model, { ...settings, regimes: [{ afterStep: async () => void zeros.push(await count()) }] });
    const o = optionsOf({ sparsity: 0.8 });
    const expected = (step: number): number =>
      entriesOf(model).reduce((sum, [path]) => sum + Math.floor(sparsityAt(step, 10, o) * model.layers.get(path)!.weight.size), 0);
    expect(zeros).toEqual(Array.from({ length: 10 }, (_, i) => expected(i + 1)));
    expect(zeros.at(-1)).toBe(2 * Math.floor(0.8 * 64) + 2 * Math.floor(0.8 * 96));
  });

  it("settles masks every so many steps and at the end, and in between leaves them as they are", async () => {
    const masks = async (maskEvery: number) => {
      const model = await make({ sparsity: 0.8, maskEvery, initialWarmup: 0, finalWarmup: 0.1 });
      const seen: string[] = [];
      const look = async (): Promise<void> => void seen.push((await Promise.all(entriesOf(model).map(([, { mask }]) => numbers(mask!)))).join());
      await train(model, { ...settings, regimes: [{ afterStep: look }] });
      return { seen, model };
    };
    const { seen, model } = await masks(4);
    // after steps 1…10: those of 0, 4, 8 and, since the run ends, 10
    const groups = [seen.slice(0, 3), seen.slice(3, 7), seen.slice(7, 9), seen.slice(9)];
    for (const group of groups) expect(new Set(group).size).toBe(1);
    expect(new Set(groups.map(([first]) => first)).size).toBe(4);
    expect(new Set((await masks(1)).seen).size).toBeGreaterThan(8);
    for (const [path, { mask }] of entriesOf(model)) {
      const { size } = model.layers.get(path)!.weight;
      const bits = (await numbers(mask!)).flatMap((byte) => Array.from({ length: 8 }, (_, i) => (byte >> i) & 1)).slice(0, size);
      expect(bits.filter((bit) => bit === 0).length).toBe(Math.floor(0.8 * size));
    }
  });

  it("resumes to the same bits between two settlings of the mask", async () => {
    const given = { sparsity: 0.8, maskEvery: 4 };
    const whole = await make(given);
    await train(whole, settings);
    await inFolder(async (dir) => {
      const stop = new AbortController();
      const until = { afterStep: ({ step }: { step: number }) => void (step === 5 && stop.abort()) };
      const run = { ...settings, checkpoint: { dir } };
      await train(await make(given), { ...run, regimes: [until], signal: stop.signal });
      const again = await make(given);
      await train(again, { ...run, regimes: [{}], resume: true });
      expect(await logits(again)).toEqual(await logits(whole));
    });
  });

  it("lets an evaluation be the best, and its checkpoint stay, only once the final sparsity is reached", async () => {
    await inFolder(async (dir) => {
      const found: { step: number; best: boolean }[] = [];
      const { best } = await train(await make({ sparsity: 0.95 }), {
        ...settings,
        evaluate: { every: 1, data: tinyBatches(1, 5) },
        earlyStopping: { patience: 3 },
        checkpoint: { dir, every: 1, keep: 1 },
        onEvent: (event) => void (event.event === "evaluation" && found.push(event)),
      });
      // v stands at its end from step 7 of 10 on; the loss was least while the model was denser
      expect(found.slice(0, 6).every((one) => !one.best)).toBe(true);
      expect(found.map(({ step }) => step)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
      expect(best!.step).toBeGreaterThanOrEqual(7);
      const kept = (await readdir(dir)).map((name) => Number(name.slice(5)));
      expect(kept.sort((a, b) => a - b)).toEqual([...new Set([best!.step, 10])]);
    });
  });

  it("cannot be longer than the run", async () => {
    await expect(make({ initialWarmup: 0.7, finalWarmup: 0.4 })).rejects.toThrow("initialWarmup 0.7 and finalWarmup 0.4 are more than the whole run together");
    await expect(make({ sparsity: 1.2 })).rejects.toThrow(/sparsity/);
  });
});

describe("PST on a model", () => {
  it("trains (r₁ + r₂ + 1)·(out + in) numbers a matrix, and answers as the base before it has trained", async () => {
    const model = await make({ weightRank: 3 });
    for (const [path, params] of entriesOf(model)) {
      const [out, inner] = model.layers.get(path)!.weight.shape as [number, number];
      const trained = Object.values(params).filter((p) => p instanceof Parameter && p.trainable);
      expect(trained.reduce((sum, { size }) => sum + size, 0)).toBe(6 * (out + inner));
    }
    expect(await logits(model)).toEqual(await logits(tinyModel()));
  });

  it("computes what LoRA does with scale β where nothing is pruned (its gradient has the term through |W| on top)", async () => {
    const [model, plain] = [await make({ weightBeta: 1.5, sparsity: 0 }), await adapt(tinyModel(), lora, { r: 2, alpha: 3 }, { targets })];
    for (const [path, params] of entriesOf(model)) {
      params["V"]!.assign(tensor(await numbers(leaf(params["V"]!.shape, 2)), params["V"]!.shape));
      const own = attachedTo(plain, "default")!.entries.get(path)!;
      for (const [from, to] of [
        ["U", "B"],
        ["V", "A"],
      ] as const)
        (own[to] as Parameter).assign(tensor(await numbers(params[from]!), params[from]!.shape));
    }
    close(await logits(model), await logits(plain), 4);
  });

  it("trains the modules that are saved whole beside it, such as a new head, and leaves decay off its scores", async () => {
    const after = async (weightDecay: number) => {
      const model = await adapt(tinyModel(), pst, { weightRank: 2 }, { targets, modulesToSave: ["lm_head"] });
      await train(model, { ...settings, steps: 1, weightDecay });
      const scores = [];
      for (const [, params] of entriesOf(model)) for (const key of ["A", "B", "R", "C"]) scores.push(...(await numbers(params[key]!)));
      return { scores, head: await numbers(attachedTo(model, "default")!.copies.get("lm_head.weight")!) };
    };
    const [plain, decayed] = [await after(0), await after(0.9)];
    expect(plain.head).not.toEqual(await numbers(tinyModel().layers.get("lm_head")!.weight));
    expect(decayed.scores).toEqual(plain.scores);
    expect(decayed.head).not.toEqual(plain.head);
  });

  it("has the rank of its scores follow that of its weights unless it is told", async () => {
    for (const [given, rank] of [
      [{ weightRank: 3, maskRank: undefined }, 3],
      [{ weightRank: 3, maskRank: 1 }, 1],
    ] as const)
      for (const [, { A, B }] of entriesOf(await make(given))) expect([A!.shape[1], B!.shape[0]]).toEqual([rank, rank]);
    expect((await pst.init(linearSite(leaf([9, 8], 3)), optionsOf(), { rng: new Rng(1), dtype: "f64", sites: [] }, {})).A.shape).toEqual([9, 8]);
  });

  it("merges into the matrices with zeros that it computes with", async () => {
    const model = await make();
    await train(model, settings);
    close(await logits(merge(model)), await logits(model), 6);
  });

  it("is loaded with the very mask it was saved with; trained on, it is saved with the new one", async () => {
    const model = await make({ sparsity: 0.6 });
    await train(model, settings);
    const { model: loaded, names } = await reloaded(tinyModel(), model, pst);
    expect(names).toContain("base_model.model.model.layers.0.self_attn.q_proj.mask");
    expect(await logits(loaded)).toEqual(await logits(model));
    const maskOf = async (m: Model): Promise<number[]> =>
      numbers((await reloaded(tinyModel(), m, pst)).model.adapters.get("default")!.entries.values().next().value!["mask"]!);
    expect(await maskOf(loaded)).toEqual(await maskOf(model));
    await train(loaded, { ...settings, learningRate: 0.3 });
    expect(await maskOf(loaded)).not.toEqual(await maskOf(model));
    expect(await logits((await reloaded(tinyModel(), loaded, pst)).model)).toEqual(await logits(loaded));
  });
});
