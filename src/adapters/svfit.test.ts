import { beforeAll, describe, expect, it } from "vitest";
import { numbers, stir } from "../../test/laws/subject.ts";
import { sample } from "../../test/support/gradients.ts";
import { distance, fromTensor, plain, product, toTensor, transposed, withSingularValues, type Plain } from "../../test/support/matrices.ts";
import { linearSite, reloaded, tinyResnet } from "../../test/support/site.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { forward } from "../models/index.ts";
import type { Live } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { backward, linear, meanSquaredError, mul, noGrad, Parameter, Rng, scope, start, sum, tensor, type Tensor } from "../tensor/index.ts";
import { train } from "../training/index.ts";
import { adapt, merge } from "./index.ts";
import { leadingCount, svfit } from "./svfit.ts";

beforeAll(async () => {
  await start();
});

const live: Live = { training: false, step: 0, rng: new Rng(4), values: {} };
const SIGMA = [8, 4, 2, 1, 0.5];

type Made = { z: Parameter; sigma: Tensor; U: Tensor; V: Tensor; between?: Parameter; index?: Tensor };

/** A 7×5 site of known singular values, the method's parameters, and ΔW. */
async function made(given: object, W: Plain = withSingularValues(7, 5, SIGMA, 3)) {
  const site = linearSite(toTensor(W));
  const o = parseOptions(svfit, given as Record<string, unknown>);
  const found = await svfit.init(site, o, { rng: new Rng(3), dtype: "f64", sites: [site] }, {});
  const p: Made = { ...found, z: new Parameter(found.z, "z"), ...(found.between ? { between: new Parameter(found.between, "between") } : {}) } as Made;
  const update = () => noGrad(() => svfit.update!(p, site, o, live, {}).toDense());
  return { W, site, o, p, update };
}

const put = (p: Parameter, values: readonly number[]): void => p.assign(tensor(values, p.shape, "f64"));
const diagonal = (d: readonly number[]): Plain => plain(d.length, d.length, (i, j) => (i === j ? d[i]! : 0));

describe("svfit", () => {
  it("starts with z = σ, the singular values of W, on orthonormal subspaces, and with W exactly", async () => {
    const { p, update } = await made({ r: 5 });
    (await numbers(p.z)).forEach((value, i) => expect(value).toBeCloseTo(SIGMA[i]!, 12));
    for (const basis of [p.U, p.V]) {
      const q = await fromTensor(basis);
      expect(distance(product(transposed(q), q), diagonal([1, 1, 1, 1, 1]))).toBeLessThan(1e-12);
    }
    expect((await numbers(update())).every((value) => value === 0)).toBe(true);
  });

  it("is U·diag(z)·Vᵀ once z is others and r = k: the singular subspaces stay, and a negative z turns a direction", async () => {
    const { W, p, update } = await made({ r: 5 });
    const z = [3, 9, -2, 0, 1];
    put(p.z, z);
    const [U, V, change] = [await fromTensor(p.U), await fromTensor(p.V), await fromTensor(update())];
    const merged = plain(7, 5, (i, j) => W.values[i * 5 + j]! + change.values[i * 5 + j]!);
    expect(distance(product(product(transposed(U), merged), V), diagonal(z))).toBeLessThan(1e-12);
    expect(distance(merged, product(product(U, diagonal(z)), transposed(V)))).toBeLessThan(1e-12);
  });

  it("changes W only in its leading r directions, by s·(z − σ), or by s·σ·δ where relative", async () => {
    for (const [given, values, change] of [
      [{ r: 2, scale: 0.5 }, [10, 3], [1, -0.5]],
      [{ r: 2, relative: true, scale: 2 }, [0.25, -0.5], [4, -4]],
    ] as const) {
      const { W, p, update } = await made(given);
      put(p.z, values);
      const ΔW = await fromTensor(update());
      const full = await made({ r: 5 }, W);
      const [U, V] = [await fromTensor(full.p.U), await fromTensor(full.p.V)];
      expect(distance(product(product(transposed(U), ΔW), V), diagonal([...change, 0, 0, 0]))).toBeLessThan(1e-12);
    }
  });

  it("gives z the gradient diag(UᵀGV), and the same change whatever the sign of a pair of singular vectors", async () => {
    const { p, site, o, update } = await made({ r: 3 });
    put(p.z, [1, 2, 3]);
    const [x, c] = [sample([4, 5], 8), sample([4, 7], 9)];
    const y = svfit.update!(p, site, o, live, {}).apply(tensor(x, [4, 5], "f64"));
    const found = await numbers(backward(sum(mul(y, tensor(c, [4, 7], "f64")))).get(p.z)!);
    const G = product(
      plain(7, 4, (i, j) => c[j * 7 + i]!),
      plain(4, 5, (i, j) => x[i * 5 + j]!),
    );
    const core = product(product(transposed(await fromTensor(p.U)), G), await fromTensor(p.V));
    found.forEach((value, i) => expect(value).toBeCloseTo(core.values[i * 3 + i]!, 12));
    const before = await fromTensor(update());
    const signs = tensor([1, -1, 1], [3], "f64");
    Object.assign(p, { U: mul(p.U, signs), V: mul(p.V, signs) });
    expect(distance(await fromTensor(update()), before)).toBeLessThan(1e-14);
  });

  it("takes the fewest singular values that hold the share of Σσ² or of Σσ, never fewer for a larger share", async () => {
    // σ² is 64, 16, 4, 1, .25 of 85.25; σ is 8, 4, 2, 1, .5 of 15.5
    expect((await made({})).p.z.size).toBe(4); // 85/85.25 = .997, 84/85.25 = .985
    expect((await made({ energy: 0.9 })).p.z.size).toBe(2);
    expect((await made({ energy: 0.9, criterion: "sum" })).p.z.size).toBe(3);
    expect((await made({ energy: 1 })).p.z.size).toBe(5);
    const counts = Array.from({ length: 99 }, (_, i) => leadingCount(SIGMA, (i + 1) / 99, "energy"));
    expect(counts).toEqual([...counts].sort((a, b) => a - b));
    expect(leadingCount([0, 0], 0.99, "energy")).toBe(1);
  });

  it("finds a target that is W with other singular values", async () => {
    const { p, site, o } = await made({ r: 5 });
    const [U, V] = [await fromTensor(p.U), await fromTensor(p.V)];
    const goal = [2, 5, 1, 0.5, 3];
    const target = toTensor(product(product(U, diagonal(goal)), transposed(V)));
    const x = tensor(sample([20, 5], 8), [20, 5], "f64");
    for (let step = 0; step < 400; step++) {
      const y = svfit.update!(p, site, o, live, {}).addTo!(linear(x, site.weight.toDense()), x);
      const slope = await numbers(backward(meanSquaredError(y, linear(x, target))).get(p.z)!);
      put(
        p.z,
        (await numbers(p.z)).map((value, i) => value - 4 * slope[i]!),
      );
    }
    (await numbers(p.z)).forEach((value, i) => expect(value).toBeCloseTo(goal[i]!, 6));
  });

  it("with a band between singular directions trains k(2d+1) − d(d+1) numbers, M in U·(Σ + M)·Vᵀ, from zero", async () => {
    const { p, update } = await made({ r: 5, pattern: "banded", offDiagonals: 2 });
    expect(p.z.size + p.between!.size).toBe(5 * 5 - 2 * 3);
    expect((await numbers(update())).every((value) => value === 0)).toBe(true);
    put(
      p.between!,
      Array.from({ length: 14 }, (_, i) => i + 1),
    );
    const core = product(product(transposed(await fromTensor(p.U)), await fromTensor(update())), await fromTensor(p.V));
    // row by row, what stands within two places of the diagonal
    const M = [0, 1, 2, 0, 0, 3, 0, 4, 5, 0, 6, 7, 0, 8, 9, 0, 10, 11, 0, 12, 0, 0, 13, 14, 0];
    core.values.forEach((value, i) => expect(value).toBeCloseTo(M[i]!, 11));
  });

  it("at random places trains as many numbers as a band, off the diagonal, each once", async () => {
    const { p } = await made({ r: 5, pattern: "random", offDiagonals: 1 });
    const index = await numbers(p.index!);
    expect(new Set(index).size).toBe(5 * 3 - 2 - 5);
    expect(index.every((at) => at % 6 !== 0 && at < 25)).toBe(true);
  });

  it("at the top places trains those off the diagonal where left and right singular vectors are most alike", async () => {
    const { p } = await made({ r: 4, pattern: "top", offDiagonals: 1 }, withSingularValues(5, 5, SIGMA, 3));
    const alike = product(transposed(await fromTensor(p.U)), await fromTensor(p.V)).values.map(Math.abs);
    const index = await numbers(p.index!);
    const left = alike.map((_, at) => at).filter((at) => at % 5 !== 0 && !index.includes(at));
    expect(index.length).toBe(4 * 3 - 2 - 4);
    expect(index.every((at) => at % 5 !== 0)).toBe(true);
    expect(Math.min(...index.map((at) => alike[at]!))).toBeGreaterThan(Math.max(...left.map((at) => alike[at]!)));
    await expect(made({ r: 4, pattern: "top" })).rejects.toThrow(/is 7×5, not square/);
  });

  it.each([{}, { relative: true }])("counts singular values below 0 as 0 where told to, %o", async (given) => {
    const W = withSingularValues(7, 5, SIGMA, 3);
    const { p, update } = await made({ r: 5, nonNegative: true, ...given }, W);
    const z = [3, -9, 1, -0.5, 2];
    put(p.z, "relative" in given ? z.map((value, i) => value / SIGMA[i]! - 1) : z);
    const [U, V, change] = [await fromTensor(p.U), await fromTensor(p.V), await fromTensor(update())];
    const merged = plain(7, 5, (i, j) => W.values[i * 5 + j]! + change.values[i * 5 + j]!);
    expect(distance(product(product(transposed(U), merged), V), diagonal(z.map((value) => Math.max(0, value))))).toBeLessThan(1e-12);
  });

  it("keeps decay from the singular values, and lets it pull relative ones back to the base", async () => {
    const sizes = async (given: object, weightDecay: number) => {
      const model = await adapt(tinyModel(), svfit, { r: 2, ...given }, { targets: ["q_proj"] });
      const { model: trained } = await train(model, { batches: tinyBatches(4), steps: 4, learningRate: 1e-2, weightDecay, seed: 1 });
      return numbers(trained.adapters.get("default")!.entries.values().next().value!["z"]!);
    };
    expect(await sizes({}, 0.5)).toEqual(await sizes({}, 0));
    expect(await sizes({ relative: true }, 0.5)).not.toEqual(await sizes({ relative: true }, 0));
  });

  it("sits on convolutions as out × in·kh·kw matrices: forward and merged agree, and the rank is at most r", async () => {
    const base = tinyResnet();
    const model = stir(await adapt(base, svfit, { r: 3 }, { targets: ["conv1", "conv2"] }));
    const images = tensor(sample([2, 3, 8, 8], 5), [2, 3, 8, 8], "f64");
    const answer = async (of: typeof model) => numbers(noGrad(() => scope(() => forward(of, images))));
    const [own, merged, before] = [await answer(model), await answer(merge(model)), await answer(base)];
    own.forEach((value, i) => expect(value).toBeCloseTo(merged[i]!, 10));
    expect(own.some((value, i) => Math.abs(value - before[i]!) > 1e-3)).toBe(true);
  });

  it.each([true, false])("is the same after saving and loading, with its subspaces in the file: %s", async (saveSubspace) => {
    const base = tinyModel();
    const model = stir(await adapt(base, svfit, { saveSubspace, pattern: "random" }, { targets: ["q_proj", "down_proj"], seed: 7 }));
    const { model: again, names } = await reloaded(base, model, svfit);
    expect(names.some((name) => name.endsWith("svfit_U"))).toBe(saveSubspace);
    expect(names).toContain("base_model.model.model.layers.1.mlp.down_proj.svfit_z");
    const ids = tensor([3, 1, 4, 1, 5], [1, 5], "i32");
    const answer = (of: typeof model) => numbers(noGrad(() => scope(() => forward(of, ids))));
    expect(await answer(again)).toEqual(await answer(model));
    expect(await answer(again)).not.toEqual(await answer(base));
  });

  it.each([
    [{ r: 99 }, /rank 99 is above/],
    [{ energy: 1.2 }, /energy/],
    [{ pattern: "full" }, /pattern/],
    [{ r: 0 }, /"?r"?/],
  ])("refuses %o in a sentence", async (given, sentence) => {
    await expect(adapt(tinyModel(), svfit, given as never, { targets: ["q_proj"] })).rejects.toThrow(sentence);
  });
});
