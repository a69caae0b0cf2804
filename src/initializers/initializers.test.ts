import { beforeAll, describe, expect, it } from "vitest";
import { adapt, attachedTo, dora, lora, loraXs, pissa, toLora, type AdaptOptions } from "../adapters/index.ts";
import { eva, loraSb, spreadRanks } from "./index.ts";
import { singularValues } from "../linalg/index.ts";
import { collectStatistics, loadModel, unfreeze, type Model } from "../models/index.ts";
import { languageModelLoss } from "../training/index.ts";
import { backward, matmul, noGrad, Rng, sign, scale, start, sub, transpose, type Parameter, type Tensor } from "../tensor/index.ts";
import { outputOf } from "../../test/laws/scaffolds.ts";

const calibration = [{ ids: [Array.from({ length: 48 }, (_, i) => 1 + ((i * 37) % 500)), Array.from({ length: 48 }, (_, i) => 1 + ((i * 91 + 5) % 500))] }];
const targets = ["q_proj", "v_proj", "down_proj"];
const scaffold = { name: "", dtype: "f32", config: {}, mostRank: 8, ids: calibration[0]!.ids } as const;
let base: Model;

beforeAll(async () => {
  await start();
  base = await loadModel("data/lm/stories260K");
});

const numbers = async (x: Tensor): Promise<number[]> => [...(await x.data())].map(Number);
const most = (values: readonly number[]): number => Math.max(...values.map(Math.abs));
const logits = (model: Model): Promise<number[]> => numbers(noGrad(() => outputOf(model, scaffold)));
const distance = (a: readonly number[], b: readonly number[]): number => most(a.map((x, i) => x - b[i]!));
const begin = (method: Parameters<typeof adapt>[1], options: object, more: Partial<AdaptOptions> = {}): Promise<Model> =>
  adapt(base, method, options as never, { targets, calibration, ...more });
const entries = (model: Model): [string, Record<string, Parameter>][] => [...attachedTo(model, "default")!.entries] as never;

/** Largest distance of M·Mᵀ from the identity. */
async function defect(rows: Tensor): Promise<number> {
  const n = rows.shape[0]!;
  return most((await numbers(noGrad(() => matmul(rows, transpose(rows))))).map((x, i) => x - Number(i % (n + 1) === 0)));
}

describe("EVA", () => {
  it("starts at the base, with orthonormal rows of A that q and v share as far as both go", async () => {
    const model = await begin(lora, { r: 3 }, { initializer: { method: eva } });
    expect(distance(await logits(model), await logits(base))).toBe(0);
    const of = new Map(entries(model));
    for (const [path, { A }] of of) expect(await defect(A!), path).toBeLessThan(1e-4);
    const [q, v] = ["q_proj", "v_proj"].map((name) => of.get(`model.layers.1.self_attn.${name}`)?.["A"]);
    if (q && v) {
      const shared = Math.min(q.size, v.size);
      expect(distance((await numbers(q)).slice(0, shared), (await numbers(v)).slice(0, shared))).toBe(0);
    }
  });

  it("spends exactly the budget, no site above rho times the mean, and at rho 1 all alike", async () => {
    const ranks = (model: Model): number[] => entries(model).map(([, { A }]) => A!.shape[0]!);
    const spread = ranks(await begin(lora, { r: 4 }, { initializer: { method: eva, options: { rho: 2 } } }));
    expect(spread.reduce((a, b) => a + b)).toBe(4 * 15);
    expect(Math.max(...spread)).toBeLessThanOrEqual(8);
    expect(new Set(spread).size, "ranks differ").toBeGreaterThan(1);
    expect(new Set(ranks(await begin(lora, { r: 4 }, { initializer: { method: eva, options: { rho: 1 } } })))).toEqual(new Set([4]));
  });

  it("gives ranks to the largest shares of all, as a sort by hand does", () => {
    const shares = new Map([
      ["flat", [0.26, 0.25, 0.25, 0.24]],
      ["spiked", [0.9, 0.06, 0.03, 0.01]],
    ]);
    expect([...spreadRanks(shares, 4)]).toEqual([
      ["flat", 3],
      ["spiked", 1],
    ]);
    expect([...spreadRanks(shares, 6).values()]).toEqual([4, 2]);
  });

  it("keeps alpha / rank where it changes a rank, and whitens on demand", async () => {
    const model = await begin(lora, { r: 4, alpha: 8 }, { initializer: { method: eva } });
    const set = attachedTo(model, "default")!;
    for (const o of set.siteOptions.values()) expect((o["alpha"] as number) / (o["r"] as number)).toBe(2);
    const plain = entries(await begin(lora, { r: 2 }, { initializer: { method: eva, options: { rho: 1 } } }))[0]![1]["A"]!;
    const white = entries(await begin(lora, { r: 2 }, { initializer: { method: eva, options: { rho: 1, whiten: true } } }))[0]![1]["A"]!;
    const [a, b] = [await numbers(plain), await numbers(white)];
    const ratio = (i: number): number => b[i]! / a[i]!;
    expect(ratio(0) / ratio(1)).toBeCloseTo(1, 4);
    expect(ratio(64), "the second component has less variance").toBeGreaterThan(ratio(0));
  });

  it("explains as much of the inputs as the best of its rank can", async () => {
    const path = "model.layers.2.mlp.down_proj";
    const { sites } = await collectStatistics(base, calibration, { wants: ["inputGram"], sites: [path] });
    const gram = sites.get(path)!.inputGram!;
    const model = await begin(lora, { r: 5 }, { initializer: { method: eva, options: { rho: 1, center: false } }, targets: ["down_proj"] });
    const A = new Map(entries(model)).get(path)!["A"]!;
    const values = await numbers(await singularValues(gram));
    const [rows, g] = [await numbers(A), await numbers(gram)];
    const n = A.shape[1]!;
    let held = 0;
    for (let r = 0; r < 5; r++) for (let i = 0; i < n; i++) for (let j = 0; j < n; j++) held += rows[r * n + i]! * g[i * n + j]! * rows[r * n + j]!;
    expect(held / values.slice(0, 5).reduce((x, y) => x + y)).toBeCloseTo(1, 5);
  });

  it("needs calibration, enough of it, and factors to put them into", async () => {
    await expect(adapt(base, lora, { r: 2 }, { targets, initializer: { method: eva } })).rejects.toThrow(
      /needs inputGram and inputMean .* there was no calibration/,
    );
    await expect(begin(loraXs, { r: 2 }, { initializer: { method: eva, options: { rho: 1 } } })).resolves.toBeDefined();
    await expect(
      adapt(base, lora, { r: 60 }, { targets: ["down_proj"], initializer: { method: eva, options: { rho: 1 } }, calibration: [{ ids: [[1, 5, 9]] }] }),
    ).rejects.toThrow(/inputs of .* cannot give 60 components/);
  });

  it("goes with DoRA too", async () => {
    const model = await begin(dora, { r: 2 }, { initializer: { method: eva, options: { rho: 1 } } });
    expect(distance(await logits(model), await logits(base))).toBeLessThan(1e-4);
  });
});

describe("LoRA-SB", () => {
  const options = { r: 4, alpha: 4 };

  it("starts at the best approximation of −η·sign(G) with orthonormal B and A, for any scale", async () => {
    const path = "model.layers.1.self_attn.q_proj";
    const model = await begin(loraXs, options, { initializer: { method: loraSb, options: { etaEff: 0.01 } } });
    const trained = unfreeze(base);
    const g = backward(languageModelLoss(trained, calibration[0]!)).get(trained.layers.get(path)!.weight)!;
    const step = scale(sign(g), -0.01);
    const { A, B, R } = new Map(entries(model)).get(path)!;
    expect(await defect(A!)).toBeLessThan(1e-5);
    expect(await defect(transpose(B!))).toBeLessThan(1e-5);
    const update = noGrad(() => matmul(matmul(B!, R!), A!));
    const sigma = await numbers(await singularValues(step));
    const rest = await numbers(noGrad(() => sub(step, update)));
    expect(Math.hypot(...rest) / Math.hypot(...sigma.slice(4))).toBeCloseTo(1, 4);
    const other = await begin(loraXs, { r: 4, alpha: 16 }, { initializer: { method: loraSb, options: { etaEff: 0.01 } } });
    expect(distance(await logits(other), await logits(model))).toBeLessThan(1e-4);
  });

  it("moves the model at once, unless its core starts at zero; r² numbers train", async () => {
    const moved = await begin(loraXs, options, { initializer: { method: loraSb } });
    expect(distance(await logits(moved), await logits(base))).toBeGreaterThan(1e-3);
    const still = await begin(loraXs, options, { initializer: { method: loraSb, options: { zeroCore: true } } });
    expect(distance(await logits(still), await logits(base))).toBe(0);
    for (const [path, params] of entries(moved))
      expect(
        Object.values(params)
          .filter(({ trainable }) => trainable)
          .map(({ size }) => size),
        path,
      ).toEqual([16]);
  });

  it("is the projection of a full step: no other core is nearer to the gradient between B and A", async () => {
    const model = await begin(loraXs, options, { initializer: { method: loraSb } });
    const { A, B } = entries(model)[0]![1] as { A: Parameter; B: Parameter };
    const G = new Rng(3).normal([B.shape[0]!, A.shape[1]!], 1);
    const gap = async (X: Tensor): Promise<number> => Math.hypot(...(await numbers(noGrad(() => sub(G, matmul(matmul(B, X), A))))));
    const best = noGrad(() => matmul(matmul(transpose(B), G), transpose(A)));
    for (const seed of [4, 5, 6]) expect(await gap(best)).toBeLessThan(await gap(new Rng(seed).normal([4, 4], 1)));
  });

  it("wants an adapter with a core", async () => {
    await expect(begin(lora, { r: 2 }, { initializer: { method: loraSb } })).rejects.toThrow(/starts a core between B and A, which the adapter does not have/);
  });
});

describe("starts that the base gives away", () => {
  it("leave the model where it is, to become a LoRA of twice the rank that is exact", async () => {
    const model = await begin(pissa, { r: 3, alpha: 6 });
    expect(distance(await logits(model), await logits(base))).toBeLessThan(1e-4);
    const { A, B } = entries(model)[0]![1] as { A: Parameter; B: Parameter };
    const sigma = (await numbers(await singularValues(base.layers.get(entries(model)[0]![0])!.site!.weight.toDense()))).slice(0, 3);
    const gram = await numbers(noGrad(() => matmul(transpose(B), B)));
    sigma.forEach((s, i) => expect(gram[i * 4]! / (s / 2), "BᵀB = diag(S/s)").toBeCloseTo(1, 4));
    for (const p of [A, B]) p.assign(noGrad(() => scale(p, 1.3)));
    const { model: plain, error } = await toLora(model, { rank: 6 });
    expect(error.total).toBeLessThan(1e-5);
    expect(distance(await logits(plain), await logits(model))).toBeLessThan(1e-3);
  });

  it("may be randomised, and orthogonal starts leave the base alone", async () => {
    const exact = await begin(pissa, { r: 3 });
    const near = await begin(pissa, { r: 3, initLoraWeights: "pissa_niter_16" });
    const norm = async (model: Model): Promise<number> => Math.hypot(...(await numbers(entries(model)[0]![1]["A"]!)));
    expect((await norm(near)) / (await norm(exact))).toBeCloseTo(1, 3);
    const orthogonal = await begin(lora, { r: 4, initLoraWeights: "orthogonal" });
    expect(attachedTo(orthogonal, "default")!.taken.size).toBe(0);
    expect(distance(await logits(orthogonal), await logits(base))).toBeLessThan(1e-4);
    await expect(begin(lora, { r: 3, initLoraWeights: "orthogonal" })).rejects.toThrow(/needs an even rank/);
  });
});
