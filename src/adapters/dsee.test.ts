import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { leaf } from "../../test/support/gradients.ts";
import { linearSite, numbers, reloaded } from "../../test/support/site.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { forward, loadModel, randomModel, saveModel, type Model } from "../models/index.ts";
import { parseOptions } from "../nn/options.ts";
import { hostNumbers, noGrad, Parameter, Rng, scale, start, tensor, type Tensor } from "../tensor/index.ts";
import { train, type TrainOptions } from "../training/index.ts";
import { activate, adapt, attachedTo, dsee, ia3, lora, merge, removeHeads } from "./index.ts";

beforeAll(() => start());

type Own = { A: Parameter; B: Parameter; values: Parameter; index: Tensor; mask?: Tensor };
const targets = ["q_proj", "v_proj"];
const settings: TrainOptions = { batches: tinyBatches(3), steps: 6, learningRate: 0.02, weightDecay: 0 };
const make = (given: Record<string, unknown> = {}): Promise<Model> => adapt(tinyModel(), dsee, { r: 2, numSparse: 5, ...given }, { targets });
const entriesOf = (model: Model) => [...attachedTo(model, "default")!.entries] as [string, Own][];
const logits = (model: Model): Promise<number[]> => numbers(noGrad(() => forward(model, tensor([3, 1, 4, 1, 5], [1, 5], "i32"))));
const weightsOf = (model: Model, path: string): Promise<number[]> => numbers(model.layers.get(path)!.weight);
const deltaOf = async (model: Model, path: string): Promise<number[]> => {
  const base = await weightsOf(tinyModel(), path);
  return (await weightsOf(merge(model), path)).map((w, i) => w - base[i]!);
};
const close = (a: readonly number[], b: readonly number[], digits: number): void => {
  expect(a.length).toBe(b.length);
  a.forEach((value, i) => expect(value).toBeCloseTo(b[i]!, digits));
};
const supportOf = async (W: Tensor, given: Record<string, unknown>): Promise<number[]> => {
  const o = parseOptions(dsee, { r: 1, ...given });
  const { index } = (await dsee.init(linearSite(W), o, { rng: new Rng(4), dtype: "f64", sites: [] }, {})) as Own;
  return numbers(index);
};
const largest = (x: readonly number[], n: number): number[] =>
  x
    .map((_, i) => i)
    .sort((a, b) => Math.abs(x[b]!) - Math.abs(x[a]!))
    .slice(0, n)
    .sort((a, b) => a - b);

describe("the support of S", () => {
  it.each(["grebsmo", "rp", "omp"])("has exactly N places of each matrix, in order, and the same ones for the same seed (%s)", async (sparseMethod) => {
    const [a, b] = [await make({ sparseMethod }), await make({ sparseMethod })];
    for (const [i, [, { index }]] of entriesOf(a).entries()) {
      const places = await numbers(index);
      expect(new Set(places).size).toBe(5);
      expect(places).toEqual(places.toSorted((x, y) => x - y));
      expect(places).toEqual(await numbers(entriesOf(b)[i]![1].index));
    }
  });

  it("are the largest weights for omp, whatever the scale of W", async () => {
    const W = leaf([6, 8], 2);
    const expected = largest(await numbers(W), 7);
    expect(await supportOf(W, { numSparse: 7, sparseMethod: "omp" })).toEqual(expected);
    expect(await supportOf(scale(W, -3), { numSparse: 7, sparseMethod: "omp" })).toEqual(expected);
  });

  it("are what a low-rank matrix cannot hold for grebsmo: spikes planted into one of rank 2 are found with one or two rounds", async () => {
    const [u, v] = [await numbers(leaf([20, 2], 1)), await numbers(leaf([2, 24], 2))];
    const spikes = [3, 77, 130, 201, 350, 470];
    const W = Array.from({ length: 480 }, (_, at) => {
      const [i, j] = [Math.floor(at / 24), at % 24];
      return u[i * 2]! * v[j]! + u[i * 2 + 1]! * v[24 + j]! + (spikes.includes(at) ? 1.5 : 0);
    });
    for (const outerIters of [1, 2]) {
      const found = await supportOf(tensor(W, [20, 24], "f64"), { numSparse: 6, outerIters, rankStep: 1 });
      expect(found.filter((place) => spikes.includes(place)).length, `${outerIters}`).toBeGreaterThanOrEqual(5);
    }
    expect(largest(W, 6), "which are not simply the largest").not.toEqual(spikes);
  });

  it("has N places also where fewer are left over, and never more than there are", async () => {
    const W = leaf([3, 4], 2);
    expect((await supportOf(W, { numSparse: 5, threshold: 10 })).length).toBe(5);
    expect((await supportOf(W, { numSparse: 50 })).length).toBe(12);
    expect(await supportOf(W, { numSparse: 0 })).toEqual([]);
  });
});

describe("DSEE, first stage", () => {
  it("answers as the base at its start and trains r·(in + out) + N numbers a matrix", async () => {
    const model = await make();
    expect(await logits(model)).toEqual(await logits(tinyModel()));
    for (const [path, params] of entriesOf(model)) {
      const [out, inner] = model.layers.get(path)!.weight.shape as [number, number];
      const trained = Object.values(params).filter((p) => p instanceof Parameter && p.trainable);
      expect(trained.reduce((sum, { size }) => sum + size, 0)).toBe(2 * (out + inner) + 5);
    }
  });

  it("moves outside of the low-rank part only where the support is, at every step", async () => {
    const model = await make({ r: 0 });
    const first = await Promise.all(entriesOf(model).map(([, { index }]) => numbers(index)));
    await train(model, {
      ...settings,
      regimes: [
        {
          async afterStep() {
            for (const [i, [path]] of entriesOf(model).entries()) {
              const moved = (await deltaOf(model, path)).flatMap((d, at) => (d === 0 ? [] : [at]));
              expect(moved).toEqual(first[i]);
            }
          },
        },
      ],
    });
  });

  it("is LoRA without free entries", async () => {
    const [model, plain] = [await make({ numSparse: 0, alpha: 6 }), await adapt(tinyModel(), lora, { r: 2, alpha: 6 }, { targets })];
    for (const [path, { A }] of entriesOf(model))
      (attachedTo(plain, "default")!.entries.get(path)!["A"] as Parameter).assign(tensor(await numbers(A), A.shape));
    for (const one of [model, plain]) await train(one, settings);
    close(await logits(model), await logits(plain), 5);
  });

  it("is s·(B·A + S), s = alpha / r", async () => {
    const model = await make({ alpha: 6 });
    await train(model, settings);
    for (const [path, { A, B, values, index }] of entriesOf(model)) {
      const [a, b, s, at] = [await numbers(A), await numbers(B), await numbers(values), await numbers(index)];
      const [out, inner] = [B.shape[0]!, A.shape[1]!];
      const expected = Array.from({ length: out * inner }, (_, k) => {
        const [i, j] = [Math.floor(k / inner), k % inner];
        const free = at.includes(k) ? s[at.indexOf(k)]! : 0;
        return 3 * (b[i * 2]! * a[j]! + b[i * 2 + 1]! * a[inner + j]! + free);
      });
      close(await deltaOf(model, path), expected, 5);
    }
  });
});

const modes = ["ABS", "AB", "WABS", "WAB", "W", "NABS", "NAB"] as const;
type Mode = (typeof modes)[number];

/** The score of one entry by the sheet: w of W, ab of B·A, f of S, with s. */
const formulas: Record<Mode, (w: number, ab: number, f: number, s: number) => number> = {
  ABS: (_w, ab, f, s) => Math.abs(s * (ab + f)),
  AB: (_w, ab, _f, s) => Math.abs(s * ab),
  WABS: (w, ab, f, s) => Math.abs(w + ab + s * f),
  WAB: (w, ab, _f, s) => Math.abs(w + s * ab),
  W: (w) => Math.abs(w),
  NABS: (_w, ab, f) => 1 / Math.abs(ab + f),
  NAB: (_w, ab) => 1 / Math.abs(ab),
};

describe("DSEE, second stage", () => {
  /** The bits of a mask, the lowest first. */
  const maskOf = async (model: Model, path: string): Promise<number[]> => {
    const bytes = await numbers((attachedTo(model, "default")!.entries.get(path) as Own).mask!);
    return Array.from({ length: model.layers.get(path)!.weight.size }, (_, i) => (bytes[i >> 3]! >> (i & 7)) & 1);
  };
  const shares = async (model: Model, paths: readonly string[]): Promise<[number, number]> => {
    const bits = (await Promise.all(paths.map((path) => maskOf(model, path)))).flat();
    return [bits.filter((bit) => bit === 0).length, bits.length];
  };

  it("prunes the share of all sites together, once, at its step; what stays is the base's, bit for bit, and the update stays whole", async () => {
    const model = await make({ adPruningRatio: 0.4, pruneAt: 0.5 });
    const zeros: number[] = [];
    const count = async (): Promise<void> => {
      let total = 0;
      for (const [path] of entriesOf(model)) total += (await maskOf(model, path)).filter((m) => m === 0).length;
      zeros.push(total);
    };
    await train(model, { ...settings, regimes: [{ afterStep: count }] });
    const whole = entriesOf(model).reduce((sum, [path]) => sum + model.layers.get(path)!.weight.size, 0);
    expect(zeros).toEqual([0, 0, 0, 1, 1, 1].map((after) => after * Math.round(0.4 * whole)));
    for (const [path, params] of entriesOf(model)) {
      for (const key of ["A", "B", "values"] as const) params[key].assign(scale(params[key], 0));
      const [kept, base, mask] = [await weightsOf(merge(model), path), await weightsOf(tinyModel(), path), await maskOf(model, path)];
      expect(kept.map((w) => w + 0)).toEqual(base.map((w, i) => (mask[i] === 0 ? 0 : w)));
    }
  });

  it.each(modes)("keeps the largest by the score %s", async (pruneMode) => {
    const model = await make({ alpha: 6, adPruningRatio: 0.5, pruneAt: 0.5, pruneMode, numSparse: 20 });
    const scores = new Map<string, number[]>();
    await train(model, {
      ...settings,
      regimes: [
        {
          async afterStep(t) {
            if (t.step !== 2) return;
            for (const [path, { A, B, values, index }] of entriesOf(model)) {
              const [w, a, b, f, at] = [await weightsOf(tinyModel(), path), await numbers(A), await numbers(B), await numbers(values), await numbers(index)];
              const inner = A.shape[1]!;
              scores.set(
                path,
                w.map((value, k) => {
                  const ab = b[Math.floor(k / inner) * 2]! * a[k % inner]! + b[Math.floor(k / inner) * 2 + 1]! * a[inner + (k % inner)]!;
                  return formulas[pruneMode](value, ab, at.includes(k) ? f[at.indexOf(k)]! : 0, 3);
                }),
              );
            }
          },
        },
      ],
    });
    const [kept, gone]: [number[], number[]] = [[], []];
    for (const [path, own] of scores) (await maskOf(model, path)).forEach((m, k) => (m === 0 ? gone : kept).push(own[k]!));
    expect(gone.length).toBe(Math.round(0.5 * (gone.length + kept.length)));
    expect(Math.max(...gone)).toBeLessThanOrEqual(Math.min(...kept) + 1e-6);
  });

  it.each(["ABS", "WABS", "random"])(
    "prunes adapted modules and those that are only pruned as two pools, each exactly by its ratio (%s)",
    async (pruneMode) => {
      const o = { r: 2, numSparse: 5, adapted: ["q_proj", "v_proj"], pruningRatio: 0.35, adPruningRatio: 0.2, pruneMode };
      const model = await adapt(tinyModel(), dsee, o);
      expect(await logits(model)).toEqual(await logits(tinyModel()));
      const [adapted, others] = [true, false].map((own) => entriesOf(model).flatMap(([path]) => (/[qv]_proj$/.test(path) === own ? [path] : [])));
      expect(others!.map((path) => path.split(".").at(-1))).toEqual(
        ["first", "second"].flatMap(() => ["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
      );
      await train(model, settings);
      for (const [pool, ratio] of [
        [adapted!, 0.2],
        [others!, 0.35],
      ] as const) {
        const [zero, all] = await shares(model, pool);
        expect(zero).toBe(Math.round(ratio * all));
      }
      // those that are only pruned have no update: their zeros are zeros, the rest is the base's
      for (const path of others!) {
        const [bits, w, base] = [await maskOf(model, path), await weightsOf(merge(model), path), await weightsOf(tinyModel(), path)];
        expect(w.map((x) => x + 0)).toEqual(base.map((x, i) => (bits[i] === 0 ? 0 : x)));
      }
      const { model: loaded } = await reloaded(tinyModel(), model, dsee);
      expect(await logits(loaded)).toEqual(await logits(model));
    },
  );

  it("is resumed behind its pruning with the mask of the checkpoint", async () => {
    const dir = await mkdtemp(join(tmpdir(), "strut-dsee-"));
    try {
      const options = { adPruningRatio: 0.4, pruneAt: 0.5 };
      const stop = new AbortController();
      const stopping = { afterStep: (t: { step: number }) => void (t.step === 3 && stop.abort()) };
      const begun = await train(await make(options), { ...settings, checkpoint: { dir }, signal: stop.signal, regimes: [stopping] });
      expect(begun.stopped).toBe(true);
      const whole = await train(await make(options), { ...settings, regimes: [{ afterStep: () => undefined }] });
      const resumed = await train(await make(options), { ...settings, checkpoint: { dir }, resume: true, regimes: [{ afterStep: () => undefined }] });
      expect(await logits(resumed.model)).toEqual(await logits(whole.model));
    } finally {
      await rm(dir, { recursive: true });
    }
  });

  it("prunes at random by the run's seed", async () => {
    const masks: string[] = [];
    for (const seed of [1, 1, 2]) {
      const model = await make({ adPruningRatio: 0.5, pruneMode: "random" });
      await train(model, { ...settings, seed });
      masks.push(String(await maskOf(model, entriesOf(model)[0]![0])));
    }
    expect(masks[1]).toBe(masks[0]);
    expect(masks[2]).not.toBe(masks[0]);
  });

  it("is loaded with its support and its mask, and merges into what it computes", async () => {
    const model = await make({ adPruningRatio: 0.3 });
    await train(model, settings);
    const { model: loaded, names } = await reloaded(tinyModel(), model, dsee);
    for (const [path, { mask }] of entriesOf(loaded)) expect(mask!.size).toBe(Math.ceil(model.layers.get(path)!.weight.size / 8));
    for (const name of ["dsee_values", "dsee_indices", "dsee_mask"]) expect(names).toContain(`base_model.model.model.layers.0.self_attn.q_proj.${name}`);
    expect(await logits(loaded)).toEqual(await logits(model));
    close(await logits(merge(model)), await logits(model), 5);
  });

  it("refuses to prune everything, to prune after the run, and decompositions that there are not", async () => {
    await expect(make({ adPruningRatio: 1 })).rejects.toThrow(/adPruningRatio/);
    await expect(make({ pruningRatio: 0.2 })).rejects.toThrow(/modules that are only pruned, and without `adapted` there are none/);
    await expect(make({ pruneAt: 1 })).rejects.toThrow(/pruneAt/);
    await expect(make({ sparseMethod: "svd" })).rejects.toThrow(/sparseMethod/);
  });
});

/** Four heads of four in each of two blocks: LLaMA with two key/value heads, or GPT-2 with a fused c_attn and biases. */
const fourHeads = (kind: "llama" | "gpt2"): Model => {
  const llama = { hidden_size: 16, intermediate_size: 12, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 16 };
  const gpt2 = { n_layer: 2, n_head: 4, n_embd: 16, n_positions: 16 };
  const model = randomModel({ model_type: kind, vocab_size: 16, ...(kind === "llama" ? llama : gpt2) }, (name, shape) =>
    new Rng(6).fork(name).normal(shape, 0.3),
  );
  for (const { bias, spec } of model.layers.values()) bias?.assign(new Rng(4).fork(spec.path).normal(bias.shape, 0.2));
  return model;
};

describe.each(["llama", "gpt2"] as const)("DSEE without whole heads (%s)", (kind) => {
  const [query, value, output] = {
    llama: ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj", "model.layers.1.self_attn.o_proj"],
    gpt2: ["transformer.h.1.attn.c_attn", "transformer.h.1.attn.c_attn", "transformer.h.1.attn.c_proj"],
  }[kind] as [string, string, string];
  const units = kind === "llama" ? 2 : 4;
  /** Rows of a unit in query and value: for GPT-2 behind 0 and 32 rows of the fused matrix. */
  const rowsOf = (unit: number): { path: string; rows: number[] }[] => {
    const range = (from: number, n: number): number[] => Array.from({ length: n }, (_, i) => from + i);
    return kind === "llama"
      ? [
          { path: query, rows: range(unit * 8, 8) },
          { path: value, rows: range(unit * 4, 4) },
        ]
      : [{ path: value, rows: [...range(unit * 4, 4), ...range(32 + unit * 4, 4)] }];
  };
  const trained = async (): Promise<Model> =>
    (await train(await adapt(fourHeads(kind), dsee, { r: 2, alpha: 4, numSparse: 40 }), { ...settings, learningRate: 0.05 })).model;

  it.each(["ABS", "WABS"] as const)("takes the lowest of every block by Σ|BA + S| of query and value, without s (%s)", async (score) => {
    const model = await trained();
    const sums = await Promise.all(
      Array.from({ length: units }, async (_, unit) => {
        let sum = 0;
        for (const { path, rows } of rowsOf(unit)) {
          const { A } = attachedTo(model, "default")!.entries.get(path) as Own;
          const cols = A.shape[1]!;
          const site = model.layers.get(path)!.site!;
          const [w, update] = await Promise.all([site.weight.toDense(), model.layers.get(path)!.attached[0]!.update!(site).toDense()].map(numbers));
          // alpha / r is 2
          for (const row of rows)
            for (let col = 0; col < cols; col++) sum += Math.abs(update![row * cols + col]! / 2) + (score === "WABS" ? Math.abs(w![row * cols + col]!) : 0);
        }
        return sum;
      }),
    );
    const removed = sums.indexOf(Math.min(...sums));
    const smaller = removeHeads(model, 1, { score });
    const wide = await numbers(model.layers.get(output)!.site!.weight.toDense());
    const size = 16 / units;
    const left = wide.filter((_, i) => Math.floor((i % 16) / size) !== removed);
    expect(await numbers(smaller.layers.get(output)!.site!.weight.toDense())).toEqual(left);
    // (heads − 1)·size rows of the projections and columns of the output
    expect([smaller.layers.get(query)!.site!.out, smaller.layers.get(output)!.site!.in]).toEqual([
      (kind === "llama" ? 1 : 3) * 16 - (kind === "llama" ? 8 : 12),
      16 - size,
    ]);
  });

  it("computes what zeroed outputs of those heads give, trains on, and is saved and loaded", async () => {
    const model = await trained();
    const smaller = removeHeads(model, 1);
    const kept = keptHeads(model, smaller);
    // the columns of the output projection that read the removed heads, zeroed
    const merged = merge(model);
    for (const [path, columns] of kept) {
      const { weight, spec } = merged.layers.get(path)!;
      const values = await numbers(weight);
      weight.assign(
        tensor(
          values.map((w, i) => (columns.includes(spec.transposed ? Math.floor(i / 16) : i % 16) ? w : 0)),
          weight.shape,
        ),
      );
    }
    close(await logits(smaller), await logits(merged), 5);
    const { A, B, values } = attachedTo(smaller, "default")!.entries.get(value) as Own;
    expect([A.shape[1], B.shape[0], B.trainable, values.trainable]).toEqual([16, smaller.layers.get(value)!.site!.out, true, true]);
    const before = await logits(smaller);
    await train(smaller, settings);
    expect(await logits(smaller)).not.toEqual(before);
    const dir = await mkdtemp(join(tmpdir(), "strut-heads-"));
    try {
      await saveModel(activate(smaller, []), join(dir, "base"));
      const { model: loaded } = await reloaded(await loadModel(join(dir, "base")), smaller, dsee);
      expect(await logits(loaded)).toEqual(await logits(smaller));
    } finally {
      await rm(dir, { recursive: true });
    }
  });

  /** Columns of the output projections that are left, found by their values. */
  function keptHeads(whole: Model, smaller: Model): Map<string, number[]> {
    return new Map(
      [0, 1].map((block) => {
        const path = output.replace("1", String(block));
        const rowOf = (model: Model): Float32Array => {
          const { weight, spec } = model.layers.get(path)!;
          const [cols, all] = [model.layers.get(path)!.site!.in, hostNumbers(weight) as Float32Array];
          return Float32Array.from({ length: cols }, (_, i) => all[spec.transposed ? i * 16 : i]!);
        };
        const [wide, left] = [rowOf(whole), rowOf(smaller)];
        return [path, Array.from(left, (w) => wide.indexOf(w))];
      }),
    );
  }

  it("refuses to remove all heads, or with an adapter of another kind", async () => {
    const model = await trained();
    expect(() => removeHeads(model, units)).toThrow(new RegExp(`${units} of ${units} heads cannot be removed`));
    expect(() => removeHeads(model, -1)).toThrow(/cannot be removed/);
    const other = await adapt(fourHeads(kind), ia3);
    expect(() => removeHeads(other, 1)).toThrow(/is no DSEE or LoRA/);
  });
});
