import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, it } from "vitest";
import {
  adalora,
  adapt,
  allora,
  attachedTo,
  dora,
  dsee,
  dylora,
  lora,
  loraGgpo,
  loraXs,
  pissa,
  rslora,
  sora,
  toLora,
  type AdaptOptions,
} from "../adapters/index.ts";
import { incrementalPca, svd } from "../linalg/index.ts";
import { collectStatistics, forward, loadModel, type CalibrationBatch, type Model } from "../models/index.ts";
import { matmul, noGrad, Rng, scope, slice, start, tensor, transpose, type Tensor } from "../tensor/index.ts";
import { train } from "../training/index.ts";
import { numbers, tinyResnet } from "../../test/support/site.ts";
import { apart, calibration, defect, ids, most, moved, parametersOf, ranksOf, rowsOf } from "../../test/support/starts.ts";
import { eva, spreadRanks } from "./index.ts";

interface Case {
  readonly ranks: Readonly<Record<string, number>>;
  readonly rank_pattern: Readonly<Record<string, number>>;
  readonly alpha_pattern: Readonly<Record<string, number>>;
  readonly A?: Readonly<Record<string, number[][]>>;
}

/** Of torch, transformers and PEFT, made by test/golden/eva.py. */
const golden = JSON.parse(readFileSync("test/golden/eva.json", "utf8")) as {
  readonly pca: {
    readonly x: number[][][];
    readonly components: number[][];
    readonly singularValues: number[];
    readonly ratios: number[];
    readonly mean: number[];
  };
  readonly ids: number[][][];
  readonly mask: number[][];
  readonly labels: number[][][];
  readonly cases: Readonly<Record<string, Case>>;
};

let base: Model;

beforeAll(async () => {
  await start();
  base = await loadModel("data/lm/stories260K");
});

const targets = ["q_proj", "v_proj", "down_proj"];
type Options = Readonly<Record<string, unknown>>;
const begin = (given: Options, options: Options = {}, more: Partial<AdaptOptions> = {}, method: Parameters<typeof adapt>[1] = lora): Promise<Model> =>
  adapt(base, method, given as never, { targets, calibration, initializer: { method: eva, options }, ...more });
const plain: CalibrationBatch[] = golden.ids.map((rows) => ({ ids: rows }));

describe("EVA as PEFT 0.21 has it", () => {
  const qv = ["q_proj", "v_proj"];
  const qkv = ["q_proj", "k_proj", "v_proj"];
  const allLinear = [...qkv, "o_proj", "gate_proj", "up_proj", "down_proj"];
  const masked = golden.ids.map((rows, i) => ({ ids: rows, labels: golden.labels[i]!, mask: golden.mask }));
  const patterned = { rankPattern: { "layers.1.self_attn.q_proj": 7 }, alphaPattern: { v_proj: 4 } };
  const cases: [string, Options, Options, Partial<AdaptOptions>][] = [
    ["plain", { r: 4 }, {}, { targets: qv }],
    ["lowrank", { r: 4 }, { svd: "randomized" }, { targets: qv }],
    ["masked", { r: 4 }, {}, { targets: qv, calibration: masked }],
    ["odd", { r: 4 }, {}, { targets: qv, rankPattern: { "layers.0.self_attn.q_proj": 5 } }],
    ["whitened", { r: 4 }, { rho: 1, whiten: true }, { targets: ["q_proj"] }],
    ["patterns", { r: 4 }, { rho: 1.5, adjustScalingFactors: false }, { targets: qkv, ...patterned }],
    ["scaled", { r: 4 }, { rho: 1.5 }, { targets: qkv, ...patterned }],
    ["all-linear", { r: 2 }, {}, { targets: allLinear }],
  ];

  it.each(cases)("gives the same ranks, alphas and components: %s", async (name, given, options, more) => {
    const expected = golden.cases[name]!;
    const model = await begin({ alpha: 8, ...given }, options, { calibration: plain, ...more });
    expect(ranksOf(model)).toEqual(expected.ranks);
    const { siteOptions } = attachedTo(model, "default")!;
    const differing = (key: string, from: number): Record<string, unknown> =>
      Object.fromEntries([...siteOptions].filter(([, o]) => o[key] !== from).map(([path, o]) => [path, o[key]]));
    expect(differing("r", given["r"] as number)).toEqual(expected.rank_pattern);
    expect(differing("alpha", 8)).toEqual(expected.alpha_pattern);
    const A = await rowsOf(model);
    for (const [path, rows] of Object.entries(expected.A ?? {})) {
      const wanted = rows.flat();
      expect(apart(A.get(path)!, wanted) / most(wanted), path).toBeLessThan(2e-3);
    }
  });

  it("updates components as its incremental PCA does", async () => {
    let pca: Awaited<ReturnType<typeof incrementalPca>> | undefined;
    for (const x of golden.pca.x) pca = await incrementalPca(pca, tensor(x.flat(), [12, 6]), { components: 3 });
    for (const name of ["singularValues", "ratios", "mean"] as const) expect(apart([...pca![name]], golden.pca[name]), name).toBeLessThan(2e-5);
    expect(apart([...pca!.components], golden.pca.components.flat())).toBeLessThan(2e-5);
  });
});

describe("EVA", () => {
  it("starts at the base, with orthonormal rows of A; members of a group share them as far as they go", async () => {
    const model = await begin({ r: 3 });
    expect(await moved(model, base)).toBe(0);
    const of = parametersOf(model);
    for (const [path, { A }] of of) expect(await defect(A!), path).toBeLessThan(1e-4);
    for (const layer of [0, 1, 2, 3, 4]) {
      const [q, v] = await Promise.all(["q_proj", "v_proj"].map((name) => numbers(of.get(`model.layers.${layer}.self_attn.${name}`)!["A"]!)));
      expect(q!.length, "the first of a group has the most").toBeGreaterThanOrEqual(v!.length);
      expect(q!.slice(0, v!.length)).toEqual(v);
    }
  });

  it("spends exactly the budget, no site above round(r·rho), and at rho 1 all alike", async () => {
    const spread = Object.values(ranksOf(await begin({ r: 3 }, { rho: 1.5 })));
    expect(spread.reduce((a, b) => a + b)).toBe(3 * 15);
    expect(Math.max(...spread), "Python rounds 4.5 to 4").toBe(4);
    expect(new Set(spread).size, "ranks differ").toBeGreaterThan(1);
    expect(new Set(Object.values(ranksOf(await begin({ r: 4 }, { rho: 1 }))))).toEqual(new Set([4]));
  });

  it("trains fewer numbers than LoRA where it is the small layers whose inputs lie in few directions", async () => {
    // noise lies in all directions: 12 of the head's input, 27 to 108 of the patches of convolutions
    const model = tinyResnet();
    const trained = async (options: Options | undefined): Promise<number> => {
      const started = options && { initializer: { method: eva, options }, calibration: [{ ids: [], inputs: { x: images } }] };
      const adapted = await adapt(model, lora, { r: 4 }, { targets: ["conv1", "conv2", "linear"], ...started });
      return [...parametersOf(adapted).values()].reduce((sum, { A, B }) => sum + A!.size + B!.size, 0);
    };
    const images = new Rng(3).normal([12, 3, 8, 8], 1, "f64");
    expect(await trained({})).toBeLessThan(await trained(undefined));
  });

  it("gives ranks to the largest shares of all, as a sort by hand does; a spiked spectrum needs few", async () => {
    const shares = new Map([
      ["flat", [0.26, 0.25, 0.25, 0.24]],
      ["spiked", [0.9, 0.06, 0.03, 0.01]],
    ]);
    expect([...spreadRanks(shares, 4)]).toEqual([
      ["flat", 3],
      ["spiked", 1],
    ]);
    expect([...spreadRanks(shares, 6).values()]).toEqual([4, 2]);
    expect([...spreadRanks(shares, 99).values()], "unused components").toEqual([4, 4]);
    const inputs = (std: (j: number) => number): Tensor =>
      tensor(
        Array.from({ length: 100 * 8 }, (_, at) => std(at % 8) * Math.sin(1 + at * at * 0.37)),
        [100, 8],
        "f64",
      );
    const ratios = async (std: (j: number) => number): Promise<number[]> => [...(await incrementalPca(undefined, inputs(std), { components: 6 })).ratios];
    const real = new Map([
      ["flat", await ratios(() => 1)],
      ["spiked", await ratios((j) => (j < 2 ? 5 : 0.2))],
    ]);
    const limit = [...real.values()].flat().sort((a, b) => b - a)[6]!;
    const byHand = [...real.values()].map((own) => own.filter((share) => share > limit).length);
    expect([...spreadRanks(real, 6).values()]).toEqual(byHand);
    expect(byHand).toEqual([4, 2]);
    const equal = [0.5, 0.2];
    expect([...spreadRanks(new Map(["first", "second"].map((name) => [name, equal])), 3).values()], "of equal shares the first").toEqual([2, 1]);
    const reversed = spreadRanks(new Map([...shares].reverse()), 6);
    expect([reversed.get("flat"), reversed.get("spiked")], "the order of layers decides nothing but ties").toEqual([4, 2]);
  });

  it("keeps alpha / rank where it changes a rank; divides rows by the root of their singular value, or scales them by it, on demand", async () => {
    const set = attachedTo(await begin({ r: 4, alpha: 8 }), "default")!;
    expect(set.siteOptions.size).toBeGreaterThan(0);
    for (const o of set.siteOptions.values()) expect((o["alpha"] as number) / (o["r"] as number)).toBe(2);
    const path = "model.layers.0.self_attn.q_proj";
    const first = async (options: Options): Promise<Tensor> => parametersOf(await begin({ r: 3 }, { rho: 1, ...options })).get(path)!["A"]!;
    const [rows, white, scaled] = [await first({}), await first({ whiten: true }), await first({ scaleBySingularValues: true })];
    const lengths = async (A: Tensor): Promise<number[]> => {
      const gram = await numbers(noGrad(() => matmul(A, transpose(A))));
      return [0, 4, 8].map((at) => gram[at]!);
    };
    expect(await lengths(rows)).toEqual([1, 1, 1].map((x) => expect.closeTo(x, 4)));
    const [inverse, ratios] = [await lengths(white), (await lengths(scaled)).map(Math.sqrt)];
    expect(await defect(white, (i) => inverse[i]!), "A·Aᵀ is diagonal").toBeLessThan(1e-4 * inverse[2]!);
    ratios.forEach((ratio, i) => expect(ratio, "1/σᵢ against σᵢ/σ₁").toBeCloseTo(inverse[0]! / inverse[i]!, 4));
    expect(ratios[1]).toBeLessThan(1);
  });

  it("is the full PCA where all inputs come at once, and near to it where they come in pieces", async () => {
    const [rows, n, k] = [400, 12, 4];
    const x = noGrad(() =>
      matmul(
        new Rng(5).normal([rows, n], 1, "f64"),
        tensor(
          Array.from({ length: n * n }, (_, at) => (at % (n + 1) === 0 ? 2 ** -(at / (n + 1)) : 0)),
          [n, n],
          "f64",
        ),
      ),
    );
    for (const center of [true, false]) {
      const values = await numbers(x);
      const mean = Array.from({ length: n }, (_, j) => (center ? values.reduce((sum, v, at) => sum + (at % n === j ? v : 0), 0) / rows : 0));
      const { Vh, S } = await svd(
        tensor(
          values.map((v, at) => v - mean[at % n]!),
          [rows, n],
          "f64",
        ),
      );
      const [V, sigma] = [await numbers(Vh), await numbers(S)];
      const energy = sigma.reduce((sum, s) => sum + s * s, 0);
      const whole = await incrementalPca(undefined, x, { components: k, center });
      let pieces: typeof whole | undefined;
      for (let at = 0; at < rows; at += 40) pieces = await incrementalPca(pieces, slice(x, 0, at, at + 40), { components: k, center });
      for (let i = 0; i < k; i++) {
        const cosine = (c: Float64Array): number => Math.abs(V.slice(i * n, (i + 1) * n).reduce((sum, v, j) => sum + v * c[i * n + j]!, 0));
        expect(cosine(whole.components)).toBeCloseTo(1, 9);
        expect(cosine(pieces!.components)).toBeGreaterThan(0.95);
        expect(whole.ratios[i]).toBeCloseTo(sigma[i]! ** 2 / energy, 9);
        const row = [...whole.components.subarray(i * n, (i + 1) * n)];
        expect(Math.max(...row), "its largest entry is positive").toBe(most(row));
      }
      expect(pieces!.energy / energy).toBeCloseTo(1, 9);
      expect(apart([...pieces!.mean], mean)).toBeLessThan(1e-12);
    }
    await expect(incrementalPca(undefined, slice(x, 0, 0, 3), { components: 4 })).rejects.toThrow("3 rows of 12 features cannot give 4 components");
  });

  it("without the mean, gives B the largest expected gradient that any A of its rank can", async () => {
    const path = "model.layers.2.mlp.down_proj";
    const { sites } = await collectStatistics(base, calibration, { wants: ["inputGram"], sites: [path] });
    const gram = sites.get(path)!.inputGram!;
    const A = parametersOf(await begin({ r: 5 }, { rho: 1, center: false, tau: 0 }, { targets: ["down_proj"] })).get(path)!["A"]!;
    const energy = async (rows: Tensor): Promise<number> => {
      const n = rows.shape[0]!;
      const held = await numbers(noGrad(() => matmul(matmul(rows, transpose(transpose(gram))), transpose(rows))));
      return held.filter((_, at) => at % (n + 1) === 0).reduce((sum, value) => sum + value, 0);
    };
    const wide = tensor(await numbers(A), A.shape, "f64");
    const { S } = await svd(gram);
    const best = (await numbers(S)).slice(0, 5).reduce((sum, value) => sum + value, 0);
    expect((await energy(wide)) / best).toBeCloseTo(1, 4);
  });

  it("reads no batch after the layers have converged, and says where it had to stop before", async () => {
    let read = 0;
    const endless = async function* (): AsyncGenerator<CalibrationBatch> {
      for (;;) {
        read++;
        yield calibration[0]!;
      }
    };
    const model = await begin({ r: 2 }, { rho: 1 }, { calibration: endless() });
    expect(read, "the same batch again turns nothing").toBeLessThan(10);
    expect(attachedTo(model, "default")!.warnings).toEqual([]);
    const stopped = await begin({ r: 2 }, { tau: 1, maxBatches: 2 }, { calibration: plain });
    expect(attachedTo(stopped, "default")!.warnings[0]).toMatch(/after 2 batches components of .* still turn by more than tau allows/);
  });

  it("leaves out positions by mask and label, as if they were not there", async () => {
    const half = (i: number): number => Number(i < 24);
    const short = [{ ids: ids.map((row) => row.slice(0, 24)) }];
    const masks = [{ ids, mask: ids.map((row) => row.map((_, i) => half(i))) }];
    const labels = [{ ids, labels: ids.map((row) => row.map((id, i) => (half(i) ? id : -100))) }];
    const first = async (batches: readonly CalibrationBatch[], options: Options = {}): Promise<number[]> =>
      [...(await rowsOf(await begin({ r: 2 }, { rho: 1, ...options }, { calibration: batches }))).values()].flat();
    const wanted = await first(short);
    expect(apart(await first(masks), wanted)).toBeLessThan(1e-3);
    expect(apart(await first(labels), wanted)).toBeLessThan(1e-3);
    expect(apart(await first(labels, { useLabelMask: false }), wanted)).toBeGreaterThan(1e-2);
    expect(apart(await first(labels, { labelMaskValue: -1 }), wanted)).toBeGreaterThan(1e-2);
  });

  it("ranks by other measures of variance too", async () => {
    const by = async (metric: string): Promise<number[]> => Object.values(ranksOf(await begin({ r: 3 }, { metric })));
    const ratio = await by("ratio");
    for (const metric of ["raw", "sum", "max"]) {
      const ranks = await by(metric);
      expect(
        ranks.reduce((a, b) => a + b),
        metric,
      ).toBe(45);
      expect(ranks, metric).not.toEqual(ratio);
    }
  });

  it("goes with every adapter whose update is B·A, which still starts at the base, learns, and can become a LoRA", async () => {
    for (const method of [lora, rslora, dora, dylora, allora, loraGgpo, sora, dsee] as unknown as (typeof lora)[]) {
      const model = await begin({ r: 3 }, { rho: 1 }, { targets: ["o_proj"] }, method);
      expect(await moved(model, base), method.id).toBeLessThan(1e-4);
      const before = await rowsOf(model);
      for (const A of before.values()) expect(await defect(tensor(A, [3, 64])), method.id).toBeLessThan(1e-4);
      const { model: trained } = await train(model, { batches: () => calibration[0]!, steps: 2, learningRate: 1e-2 });
      expect(await moved(trained, base), `${method.id} learns`).toBeGreaterThan(1e-2);
      if (!["dora", "allora"].includes(method.id)) expect((await toLora(trained, { rank: 64 })).error.total, method.id).toBeLessThan(1e-4);
    }
  });

  it("refuses what it cannot start", async () => {
    const refused = (why: RegExp, ...given: Parameters<typeof begin>): Promise<void> => expect(begin(...given)).rejects.toThrow(why);
    await expect(adapt(base, lora, { r: 2 }, { targets, initializer: { method: eva } })).rejects.toThrow("eva needs calibration batches, and there were none");
    await refused(/no calibration batch/, { r: 2 }, {}, { calibration: [] });
    await refused(/no batch has the 60 inputs of .*down_proj/, { r: 60 }, { rho: 1 }, { targets: ["down_proj"], calibration: [{ ids: [[1, 5, 9]] }] });
    // B frozen at 0 would never learn, nor would E = 0 between B = 0 and A
    await refused(/eva starts B and A, which both train, and lora-xs takes no such start/, { r: 2 }, {}, {}, loraXs as never);
    await refused(/eva starts B and A, which both train, and adalora takes no such start/, {}, {}, {}, adalora as never);
    await refused(/initLoraWeights pissa chooses a start, and so does the initialiser eva/, { r: 2 }, {}, {}, pissa as never);
    await refused(/initLoraWeights gaussian chooses a start/, { r: 2, initLoraWeights: "gaussian" });
    await refused(/eva needs the features that a layer reads, and model.embed_tokens is an embedding/, { r: 2 }, {}, { targets: ["embed_tokens"] });
    await expect(adapt(base, lora, { r: 2, initLoraWeights: "eva" }, { targets })).rejects.toThrow(/initLoraWeights eva starts from inputs/);
  });

  it("calibrates on any task's inputs: encoders with their mask, images, and features", async () => {
    const resnet = tinyResnet();
    const images = [{ ids: [], inputs: { x: new Rng(3).normal([6, 3, 8, 8], 1, "f64") } }];
    const conv = await adapt(resnet, lora, { r: 3 }, { initializer: { method: eva }, calibration: images, targets: ["conv1", "conv2", "linear"] });
    for (const [path, { A }] of parametersOf(conv)) {
      const r = A!.shape[0]!;
      expect(await defect(tensor(await numbers(A!), [r, A!.size / r], "f64")), path).toBeLessThan(1e-9);
    }
    const output = async (model: Model): Promise<number[]> => numbers(noGrad(() => scope(() => forward(model, images[0]!.inputs.x))));
    expect(apart(await output(conv), await output(resnet))).toBe(0);
    const encoder = await loadModel("data/encoder/use-lite");
    const padded = (tail: readonly number[]): CalibrationBatch => ({
      ids: [],
      inputs: { x: tensor([5, 6, 7, ...tail, 9, 10, 11, 12, 13, 14], [2, 6], "i32"), mask: tensor([1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1], [2, 6], "i32") },
    });
    const started = async (tail: readonly number[]): Promise<number[]> =>
      [
        ...(
          await rowsOf(
            await adapt(
              encoder,
              lora,
              { r: 2 },
              { initializer: { method: eva, options: { rho: 1 } }, calibration: [padded(tail)], targets: ["q_proj", "fc2", "pooler"] },
            ),
          )
        ).values(),
      ].flat();
    expect(apart(await started([0, 0, 0]), await started([77, 88, 99])), "padding is not seen").toBeLessThan(1e-5);
    await expect(adapt(resnet, lora, { r: 2 }, { initializer: { method: eva }, calibration: [{ ids: [], inputs: {} }], targets: ["linear"] })).rejects.toThrow(
      /calibration batch 0 has no inputs.x/,
    );
  });
});
