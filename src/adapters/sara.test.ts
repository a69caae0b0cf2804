import { beforeAll, describe, expect, it } from "vitest";
import { baseOf, inFolder, scaffolds } from "../../test/laws/scaffolds.ts";
import { linearSite, numbers, reloaded } from "../../test/support/site.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { leaf } from "../../test/support/gradients.ts";
import { polar, svd } from "../linalg/index.ts";
import { forward, parameters, type Model } from "../models/index.ts";
import type { State } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { sgd } from "../optimizers/index.ts";
import { noGrad, Parameter, Rng, start, tensor, toBytes, type Tensor } from "../tensor/index.ts";
import { train, type TrainOptions } from "../training/index.ts";
import { adapt, attachedTo, bitfit, fullFineTuning, merge, sara } from "./index.ts";
import { saraLearningRate } from "./sara.ts";

beforeAll(() => start());

const targets = ["q_proj", "down_proj"];
const settings: TrainOptions = { batches: tinyBatches(3), steps: 6, learningRate: 0.02, weightDecay: 0.1 };
const make = (given: Record<string, unknown>, base = tinyModel()): Promise<Model> => adapt(base, sara, given, { targets });
const logits = (model: Model): Promise<number[]> => numbers(noGrad(() => forward(model, tensor([3, 1, 4, 1, 5], [1, 5], "i32"))));
const matrix = (model: Model, path: string): Promise<number[]> => numbers(merge(model).layers.get(path)!.weight);
const entriesOf = (model: Model) => [...attachedTo(model, "default")!.entries] as [string, Record<"values" | "index" | "open" | "edge", Tensor>][];
const far = (a: readonly number[], b: readonly number[]): number => Math.max(...a.map((value, i) => Math.abs(value - b[i]!)));
const mean = (x: readonly number[]): number => x.reduce((sum, value) => sum + value, 0) / x.length;

/** A site's P ⊙ M, zeros elsewhere. */
async function masked({ values, index }: { values: Tensor; index: Tensor }, shape: readonly number[]): Promise<number[]> {
  const out = Array.from({ length: shape[0]! * shape[1]! }, () => 0);
  const [v, at] = [await numbers(values), await numbers(index)];
  at.forEach((place, i) => (out[place] = v[i]!));
  return out;
}

const nuclear = async (x: readonly number[], shape: readonly number[]): Promise<number> =>
  (await numbers((await svd(tensor(x, shape, "f64"))).S)).reduce((sum, s) => sum + s, 0);

describe("SaRA's places", () => {
  it("are the weights below the threshold, and no others", async () => {
    const model = await make({ threshold: 0.1 });
    for (const [path, { index }] of entriesOf(model)) {
      const W = await numbers(model.layers.get(path)!.weight);
      expect(await numbers(index)).toEqual(W.flatMap((w, i) => (Math.abs(w) < 0.1 ? [i] : [])));
    }
  });

  it("are by share the smallest of each matrix, with the next one as threshold", async () => {
    const model = await make({ share: 0.25 });
    for (const [path, { index, edge }] of entriesOf(model)) {
      const sizes = (await numbers(model.layers.get(path)!.weight)).map(Math.abs);
      const order = sizes.map((_, i) => i).sort((a, b) => sizes[a]! - sizes[b]!);
      const count = Math.round(0.25 * sizes.length);
      expect(await numbers(index)).toEqual(order.slice(0, count).sort((a, b) => a - b));
      expect(await numbers(edge)).toEqual([sizes.toSorted((a, b) => a - b)[count]]);
    }
  });

  it("are all of a matrix at share 1, which nothing outgrows: a run with a switch can be saved on its way", async () => {
    await inFolder(async (dir) => {
      const { model } = await train(await make({ share: 1, progressiveIter: 1 }), { ...settings, checkpoint: { dir, every: 2 } });
      for (const [, { open }] of entriesOf(model)) expect(await numbers(open)).toEqual(Array.from({ length: open.size }, () => 1));
      expect(await logits((await reloaded(tinyModel(), model, sara)).model)).toEqual(await logits(model));
    });
  });

  it("cannot be none: a threshold below every weight is refused, and so are options that say nothing", async () => {
    await expect(make({ threshold: 0 })).rejects.toThrow(/no weight of .* is below the threshold 0, so nothing would train/);
    await expect(make({ share: 0 })).rejects.toThrow(/share/);
    await expect(make({ threshold: -1 })).rejects.toThrow(/threshold/);
  });
});

describe("SaRA", () => {
  it("leaves every weight at or above the threshold as it was, bit for bit, decay or not, and moves the others", async () => {
    const model = await make({ threshold: 0.1 });
    const before = new Map<string, number[]>();
    for (const [path] of entriesOf(model)) before.set(path, await numbers(model.layers.get(path)!.weight));
    await train(model, settings);
    for (const [path] of entriesOf(model)) {
      const [W, now] = [before.get(path)!, await matrix(model, path)];
      W.forEach((w, i) => (Math.abs(w) >= Math.fround(0.1) ? expect(now[i]).toBe(w) : expect(now[i]).not.toBe(w)));
      expect(await numbers(model.layers.get(path)!.weight), "the base").toEqual(W);
    }
  });

  it("is AdamW on the masked matrix: one step moves the small weights as one of full fine-tuning, and all of them so where all train", async () => {
    const small = await make({ share: 0.3 });
    const [all, whole] = [await make({ share: 1 }), await adapt(tinyModel(), fullFineTuning, {}, { targets })];
    await train(small, { ...settings, steps: 1 });
    for (const [path, { index }] of entriesOf(small)) {
      const one = await adapt(tinyModel(), fullFineTuning, {}, { targets });
      await train(one, { ...settings, steps: 1 });
      const [own, base, other] = [await matrix(small, path), await numbers(small.layers.get(path)!.weight), await matrix(one, path)];
      const free = new Set(await numbers(index));
      expect(
        far(
          own,
          base.map((w, i) => (free.has(i) ? other[i]! : w)),
        ),
      ).toBeLessThan(1e-6);
    }
    for (const model of [all, whole]) await train(model, settings);
    for (const [path] of entriesOf(all)) expect(far(await matrix(all, path), await matrix(whole, path))).toBeLessThan(1e-6);
  });

  it("keeps as much optimiser state as weights train: two numbers each", async () => {
    const model = await make({ share: 0.3 });
    const sizes: number[] = [];
    await train(model, {
      ...settings,
      steps: 1,
      regimes: [
        {
          afterStep(t) {
            for (const [, { values }] of entriesOf(model)) {
              const states = t.moments(values as Parameter).flatMap((state: State) => Object.values(state)) as (Tensor | number)[];
              sizes.push(states.reduce<number>((sum, s) => sum + (typeof s === "number" ? 0 : s.size), 0));
            }
          },
        },
      ],
    });
    expect(sizes).toEqual(entriesOf(model).map(([, { values }]) => 2 * values.size));
  });

  it("freezes from the step of the switch on what has grown past the threshold, and nothing that was frozen comes back", async () => {
    const model = await make({ share: 0.4, progressiveIter: 3 });
    const seen: { values: number[]; open: number[]; edge: number }[][] = [];
    const watch = async (): Promise<void> => {
      const now = [];
      for (const [, { values, open, edge }] of entriesOf(model))
        now.push({ values: await numbers(values), open: await numbers(open), edge: (await numbers(edge))[0]! });
      seen.push(now);
    };
    await train(model, { ...settings, learningRate: 0.05, regimes: [{ afterStep: watch }] });
    expect(seen.slice(0, 3).flatMap((sites) => sites.flatMap(({ open }) => open))).not.toContain(0);
    const closed = seen[3]!.flatMap(({ open }) => open).filter((flag) => flag === 0).length;
    expect(closed).toBeGreaterThan(0);
    expect(closed).toBeLessThan(seen[3]!.flatMap(({ open }) => open).length);
    seen[2]!.forEach(({ values, edge }, site) =>
      values.forEach((value, i) => {
        const stays = Math.abs(value) < edge;
        expect(seen[5]![site]!.open[i]).toBe(Number(stays));
        if (stays) expect(seen[5]![site]!.values[i]).not.toBe(value);
        else expect(seen[5]![site]!.values[i]).toBe(value);
      }),
    );
  });

  it("never switches at a negative step, as the authors' default would have to", async () => {
    const model = await make({ share: 0.4 });
    await train(model, { ...settings, learningRate: 0.3 });
    for (const [, { open }] of entriesOf(model)) expect(await numbers(open)).not.toContain(0);
  });

  it("adds λ times the slope of the nuclear norm to the gradient of one matrix a step, after clipping", async () => {
    const seen: { gradient: number[]; at: string }[][] = [];
    for (const lambdaRank of [0, 0.5]) {
      const model = await make({ share: 1, lambdaRank, leastSide: 0, leastCount: 0 });
      const found: { gradient: number[]; at: string }[] = [];
      await train(model, {
        ...settings,
        steps: 1,
        clip: 0.01,
        regimes: [
          {
            async afterStep(t) {
              for (const [path, { values }] of entriesOf(model)) found.push({ at: path, gradient: await numbers(t.gradient(values as Parameter)!) });
            },
          },
        ],
      });
      seen.push(found);
    }
    const changed = seen[1]!.flatMap(({ at, gradient }, site) => {
      const extra = gradient.map((g, i) => g - seen[0]![site]!.gradient[i]!);
      return Math.max(...extra.map(Math.abs)) > 1e-6 ? [{ at, extra }] : [];
    });
    expect(changed.length).toBe(1);
    const { at, extra } = changed[0]!;
    const { weight } = tinyModel().layers.get(at)!;
    const W = await numbers(weight);
    for (const i of [0, 5, 17, 40]) {
      const moved = (by: number): Promise<number> =>
        nuclear(
          W.map((w, j) => w + (i === j ? by : 0)),
          weight.shape,
        );
      expect(extra[i]).toBeCloseTo((0.5 * ((await moved(1e-5)) - (await moved(-1e-5)))) / 2e-5, 4);
    }
    expect(
      far(
        extra,
        (await numbers((await polar(weight)).U)).map((x) => 0.5 * x),
      ),
    ).toBeLessThan(1e-5);
  });

  it("ends with smaller nuclear norms the stronger the pull", async () => {
    const norms: number[] = [];
    for (const lambdaRank of [0, 0.1, 1]) {
      const model = await make({ share: 0.5, lambdaRank, leastSide: 0, leastCount: 0 });
      await train(model, { ...settings, steps: 20, optimizer: sgd, learningRate: 0.05, weightDecay: 0 });
      const own = [];
      for (const [path, params] of entriesOf(model))
        own.push(await nuclear(await masked(params, model.layers.get(path)!.weight.shape), model.layers.get(path)!.weight.shape));
      norms.push(mean(own));
    }
    expect(norms[1]).toBeLessThan(norms[0]!);
    expect(norms[2]).toBeLessThan(norms[1]!);
  });

  it("pulls only on matrices wider and with more trained weights than asked for", async () => {
    const answers: number[][] = [];
    for (const given of [{ lambdaRank: 0 }, { lambdaRank: 5 }, { lambdaRank: 5, leastSide: 0 }, { lambdaRank: 5, leastSide: 0, leastCount: 0 }]) {
      const model = await make({ share: 0.5, ...given });
      await train(model, settings);
      answers.push(await logits(model));
    }
    expect(answers[1]).toEqual(answers[0]);
    expect(answers[2]).toEqual(answers[0]);
    expect(answers[3]).not.toEqual(answers[0]);
  });

  it("is loaded exactly onto its base, and refused on another, such as the fine-tuned one", async () => {
    const model = await make({ share: 0.3, progressiveIter: 2 });
    await train(model, settings);
    const { model: loaded, names } = await reloaded(tinyModel(), model, sara);
    expect(names).toContain("base_model.model.model.layers.0.self_attn.q_proj.sara_values");
    expect(await logits(loaded)).toEqual(await logits(model));
    for (const [i, [, params]] of entriesOf(loaded).entries())
      for (const key of ["values", "index", "open", "edge"] as const) expect(toBytes(params[key])).toEqual(toBytes(entriesOf(model)[i]![1][key]));
    await expect(reloaded(merge(model), model, sara)).rejects.toThrow(
      /is not the matrix that was trained: SaRA's weights stand in for weights of that very base/,
    );
  });

  it("goes with a learning rate of 10⁻³·exp(−350·τ): 4.966e-4 at 2e-3", async () => {
    expect(saraLearningRate(2e-3)).toBeCloseTo(4.966e-4, 7);
    const site = linearSite(leaf([4, 5], 1));
    const { values } = await sara.init(site, parseOptions(sara, { threshold: 0.5 }), { rng: new Rng(1), dtype: "f64", sites: [] }, {});
    expect(
      (await numbers(values)).some((x) => x < 0),
      "small weights keep their sign",
    ).toBe(true);
  });
});

describe("SaRA on all parameters", () => {
  const threshold = 0.15;
  const course: TrainOptions = { batches: [{ ids: [[1, 2, 3, 4, 5, 6]] }], steps: 4, learningRate: 0.02, weightDecay: 0.1 };
  const gpt2 = async (): Promise<Model> => (await baseOf(scaffolds[3]!)).model;
  const all = async (given: Record<string, unknown> = {}): Promise<Model> => adapt(await gpt2(), sara, { threshold, ...given });
  const leavesOf = async (model: Model): Promise<Map<string, number[]>> => {
    const found = new Map<string, number[]>();
    for (const [name, leaf] of parameters(model)) found.set(name, await numbers(leaf));
    return found;
  };

  it("moves what is below the threshold in matrices, biases and norms, and nothing else by a bit, merged or saved and loaded", async () => {
    const model = await all();
    await train(model, course);
    const [before, after] = [await leavesOf(await gpt2()), await leavesOf(merge(model))];
    const moved = new Set<string>();
    for (const [name, values] of before)
      values.forEach((value, i) => {
        if (Math.abs(value) >= Math.fround(threshold)) expect(after.get(name)![i], name).toBe(value);
        else if (after.get(name)![i] !== value) moved.add(name);
      });
    for (const name of ["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias", "transformer.h.0.ln_1.bias"])
      expect(moved).toContain(name);
    expect(moved.size).toBeGreaterThan(0.7 * before.size);
    const { model: loaded } = await reloaded(await gpt2(), model, sara);
    expect(await leavesOf(merge(loaded))).toEqual(after);
  });

  it("freezes at the switch what grew past the threshold, in biases and norms too, and resumes to the same bits behind it", async () => {
    const seen: Map<string, number[]>[] = [];
    const look = (of: Model) => ({ afterStep: async () => void seen.push(await leavesOf(merge(of))) });
    const run = { ...course, steps: 6, learningRate: 0.05 };
    const whole = await all({ progressiveIter: 3 });
    await train(whole, { ...run, regimes: [look(whole)] });
    const frozen = new Set<string>();
    for (const [name, values] of await leavesOf(await gpt2()))
      values.forEach((start, i) => {
        const [at, end] = [seen[2]!.get(name)![i]!, seen[5]!.get(name)![i]!];
        if (Math.abs(start) >= threshold || Math.abs(at) < threshold) return;
        frozen.add(name.replace(/.*\.(ln_\w+|c_\w+|wte|wpe|lm_head)\./, "$1."));
        expect(Math.abs(end - at), name).toBeLessThan(1e-7);
      });
    expect([...frozen]).toEqual(expect.arrayContaining(["c_attn.weight", "c_attn.bias", "ln_1.bias"]));
    await inFolder(async (dir) => {
      const stop = new AbortController();
      const until = { afterStep: ({ step }: { step: number }) => void (step === 3 && stop.abort()) };
      await train(await all({ progressiveIter: 3 }), { ...run, regimes: [until], signal: stop.signal, checkpoint: { dir } });
      const again = await all({ progressiveIter: 3 });
      await train(again, { ...run, regimes: [{}], checkpoint: { dir }, resume: true });
      expect(await leavesOf(merge(again))).toEqual(await leavesOf(merge(whole)));
    });
  });

  it("clips by the gradient of what trains alone", async () => {
    const model = await all({ progressiveIter: 0 });
    let squares = 0;
    const norms: number[] = [];
    await train(model, {
      ...course,
      steps: 1,
      regimes: [
        {
          async afterBackward(t) {
            const set = attachedTo(model, "default")!;
            for (const { values, biasValues } of [...set.entries.values()] as Record<string, Parameter>[])
              for (const w of [values, biasValues]) if (w) squares += (await numbers(t.gradient(w)!)).reduce((total, g) => total + g * g, 0);
            for (const [leaf, w] of set.copies) {
              const [gradient, base] = [await numbers(t.gradient(w)!), await numbers(parameters(model).get(leaf)!)];
              gradient.forEach((g, i) => (Math.abs(base[i]!) >= threshold ? expect(g + 0).toBe(0) : (squares += g * g)));
            }
          },
        },
      ],
      onEvent: (event) => void (event.event === "step" && norms.push(event.gradNorm)),
    });
    expect(norms[0]).toBeCloseTo(Math.sqrt(squares), 5);
  });

  it("leaves norms alone where some matrices are left out, and tells another base by its bias alone", async () => {
    const some = await adapt(await gpt2(), sara, { threshold }, { targets: ["c_attn"] });
    expect([...attachedTo(some, "default")!.copies.keys()]).toEqual([]);
    const other = merge(await adapt(await gpt2(), bitfit));
    const { bias } = other.layers.get("transformer.h.0.attn.c_attn")!;
    bias!.assign(
      tensor(
        (await numbers(bias!)).map((b) => b + 1),
        bias!.shape,
      ),
    );
    await expect(reloaded(other, some, sara)).rejects.toThrow(/is not the matrix that was trained/);
  });
});
