import { beforeAll, describe, expect, it } from "vitest";
import { numbers, stir } from "../../test/laws/subject.ts";
import { sample } from "../../test/support/gradients.ts";
import { distance, fromTensor, plain, product, randomMatrix, toTensor, transposed, withSingularValues, type Plain } from "../../test/support/matrices.ts";
import { linearSite, reloaded, tinyResnet } from "../../test/support/site.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { singularValues } from "../linalg/index.ts";
import { forward } from "../models/index.ts";
import type { Live } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { backward, linear, meanSquaredError, mul, noGrad, Parameter, Rng, scope, start, sum, tensor, type Tensor } from "../tensor/index.ts";
import { train } from "../training/index.ts";
import { adapt, attachedTo, merge } from "./index.ts";
import { loldu } from "./loldu.ts";

beforeAll(async () => {
  await start();
});

const live: Live = { training: false, step: 0, rng: new Rng(4), values: {} };

type Made = { z: Parameter; z0: Tensor; L: Tensor; U: Tensor; order: Tensor; scale?: Parameter };

async function made(given: object, W: Plain = randomMatrix(7, 5)) {
  const site = linearSite(toTensor(W));
  const o = parseOptions(loldu, { r: 5, alpha: 5, ...given });
  const found = await loldu.init(site, o, { rng: new Rng(3), dtype: "f64", sites: [site] }, {});
  const p: Made = { ...found, z: new Parameter(found.z, "z"), ...(found.scale ? { scale: new Parameter(found.scale, "scale") } : {}) } as Made;
  const update = () => noGrad(() => loldu.update!(p, site, o, live, {}).toDense());
  return { W, site, o, p, update };
}

const put = (p: Parameter, values: readonly number[]): void => p.assign(tensor(values, p.shape, "f64"));
const diagonal = (d: readonly number[]): Plain => plain(d.length, d.length, (i, j) => (i === j ? d[i]! : 0));
const times = (L: Plain, d: readonly number[], U: Plain): Plain => product(product(L, diagonal(d)), U);

describe("loldu", () => {
  it.each([
    [7, 5],
    [5, 7],
    [5, 5],
  ])("factors a %i×%i W as P·L·diag(D)·U: unit triangular, entries of P·L at most 1, and z starts at D", async (rows, cols) => {
    const W = randomMatrix(rows, cols);
    for (const pivoting of ["partial", "rook"]) {
      const { p } = await made({ pivoting }, W);
      const [L, U, D] = [await fromTensor(p.L), await fromTensor(p.U), await numbers(p.z)];
      expect(distance(times(L, D, U), W)).toBeLessThan(1e-12);
      expect(Math.max(...L.values.map(Math.abs))).toBeLessThanOrEqual(1 + 1e-12);
      // column i of P·L is 0 in the rows of the pivots before it: each row has its 1 at its pivot, and zeros behind
      const lasts = Array.from({ length: rows }, (_, i) => [4, 3, 2, 1, 0].find((j) => L.values[i * 5 + j] !== 0)!);
      for (let j = 0; j < 5; j++) expect(lasts.some((last, i) => last === j && Math.abs(L.values[i * 5 + j]! - 1) < 1e-12)).toBe(true);
      if (pivoting === "partial") for (let i = 0; i < 5; i++) for (let j = 0; j <= i; j++) expect(U.values[i * cols + j]).toBeCloseTo(j === i ? 1 : 0, 12);
    }
  });

  it.each(["lu", "uniform", "normal", "constant", "s_uniform", "s_normal", "ones", "zeros"])("starts at W exactly, with z %s", async (initMethod) => {
    const { update, p } = await made({ initMethod, r: 4 });
    expect((await numbers(update())).every((value) => value === 0)).toBe(true);
    const D = await numbers((await made({ r: 4 })).p.z);
    const mean = D.reduce((a, b) => a + b, 0) / 4;
    const z = await numbers(p.z);
    const most = { uniform: Math.abs(mean) / 2, s_uniform: 1 }[initMethod];
    if (most) expect(Math.max(...z.map(Math.abs))).toBeLessThanOrEqual(most);
    const exactly = { lu: D, constant: Array<number>(4).fill(mean), ones: [1, 1, 1, 1], zeros: [0, 0, 0, 0] }[initMethod];
    exactly?.forEach((value, i) => expect(z[i]).toBeCloseTo(value, 12));
  });

  it("counts from D when told to, as the official code does: zeros and ones then move the output at the start", async () => {
    for (const initMethod of ["zeros", "ones"] as const) {
      const { update, p } = await made({ initMethod, residual: "D", alpha: 10 });
      const D = await numbers((await made({})).p.z);
      const expected = times(
        await fromTensor(p.L),
        D.map((d) => 2 * ((initMethod === "ones" ? 1 : 0) - d)),
        await fromTensor(p.U),
      );
      expect(distance(await fromTensor(update()), expected)).toBeLessThan(1e-12);
    }
  });

  it("changes W by (α/r)·P·L_r·diag(z − z₀)·U_r, of rank at most r", async () => {
    const { p, update } = await made({ r: 2, alpha: 3 });
    put(
      p.z,
      (await numbers(p.z)).map((d, i) => d + [0.5, -2][i]!),
    );
    expect(distance(await fromTensor(update()), times(await fromTensor(p.L), [0.75, -3], await fromTensor(p.U)))).toBeLessThan(1e-13);
    const spectrum = await numbers(await singularValues(update()));
    expect(spectrum.filter((value) => value > 1e-12)).toHaveLength(2);
  });

  it("gives zᵢ the gradient σ·(P·lᵢ)ᵀ·G·uᵢᵀ", async () => {
    const { p, site, o } = await made({ r: 3, alpha: 6 });
    const [x, c] = [sample([4, 5], 8), sample([4, 7], 9)];
    const y = loldu.update!(p, site, o, live, {}).apply(tensor(x, [4, 5], "f64"));
    const found = await numbers(backward(sum(mul(y, tensor(c, [4, 7], "f64")))).get(p.z)!);
    const G = product(
      plain(7, 4, (i, j) => c[j * 7 + i]!),
      plain(4, 5, (i, j) => x[i * 5 + j]!),
    );
    const core = product(product(transposed(await fromTensor(p.L)), G), transposed(await fromTensor(p.U)));
    found.forEach((value, i) => expect(value).toBeCloseTo(2 * core.values[i * 3 + i]!, 12));
  });

  it("has the same z whatever the order of W's rows, up to P", async () => {
    const W = randomMatrix(7, 5);
    const order = [3, 6, 0, 5, 1, 4, 2];
    const [a, b] = [
      await made({}, W),
      await made(
        {},
        plain(7, 5, (i, j) => W.values[order[i]! * 5 + j]!),
      ),
    ];
    const z = await numbers(a.p.z);
    (await numbers(b.p.z)).forEach((value, i) => expect(value).toBeCloseTo(z[i]!, 12));
    const [L, permuted] = [await fromTensor(a.p.L), await fromTensor(b.p.L)];
    expect(
      distance(
        permuted,
        plain(7, 5, (i, j) => L.values[order[i]! * 5 + j]!),
      ),
    ).toBeLessThan(1e-12);
  });

  it.each(["partial", "rook"])("leaves pivots near zero in the base: a singular W gives finite numbers with %s pivoting", async (pivoting) => {
    for (const W of [plain(7, 5, () => 0), withSingularValues(7, 5, [3, 2, 1, 0, 0], 2), withSingularValues(7, 5, [3, 2, 1, 1e-9, 1e-10], 2)]) {
      const { p, update } = await made({ pivoting }, W);
      put(
        p.z,
        (await numbers(p.z)).map((d) => d + 1),
      );
      const change = await numbers(update());
      expect(change.every(Number.isFinite)).toBe(true);
      expect(Math.max(...change.map(Math.abs))).toBeLessThan(100);
    }
  });

  it("finds a target that is W with another diagonal", async () => {
    const { p, site, o } = await made({});
    const goal = (await numbers(p.z)).map((d, i) => d * (1 + 0.3 * Math.sin(i + 1)));
    const target = toTensor(times(await fromTensor(p.L), goal, await fromTensor(p.U)));
    const x = tensor(sample([20, 5], 8), [20, 5], "f64");
    const error = async (): Promise<number> => {
      const loss = meanSquaredError(loldu.update!(p, site, o, live, {}).addTo!(linear(x, site.weight.toDense()), x), linear(x, target));
      const slope = await numbers(backward(loss).get(p.z)!);
      put(
        p.z,
        (await numbers(p.z)).map((value, i) => value - 0.3 * slope[i]!),
      );
      return Number((await numbers(loss))[0]);
    };
    const first = await error();
    let last = first;
    for (let step = 0; step < 400; step++) last = await error();
    expect(last).toBeLessThan(1e-4 * first);
  });

  it("trains its scale when told to, from α/r", async () => {
    const model = await adapt(tinyModel(), loldu, { r: 2, alpha: 3, trainScale: true }, { targets: ["q_proj"] });
    const scaleOf = (of: typeof model) => numbers(attachedTo(of, "default")!.entries.get("model.layers.0.self_attn.q_proj")!["scale"]!);
    expect(await scaleOf(model)).toEqual([1.5]);
    const { model: trained } = await train(model, { batches: tinyBatches(4), steps: 4, learningRate: 1e-2, seed: 1 });
    expect((await scaleOf(trained))[0]).not.toBe(1.5);
  });

  it("sits on convolutions as out × in·kh·kw matrices: forward and merged agree", async () => {
    const base = tinyResnet();
    const model = stir(await adapt(base, loldu, { r: 3 }, { targets: ["conv1", "conv2"] }));
    const images = tensor(sample([2, 3, 8, 8], 5), [2, 3, 8, 8], "f64");
    const answer = async (of: typeof model) => numbers(noGrad(() => scope(() => forward(of, images))));
    const [own, merged, before] = [await answer(model), await answer(merge(model)), await answer(base)];
    const size = Math.max(...before.map(Math.abs));
    own.forEach((value, i) => expect(Math.abs(value - merged[i]!)).toBeLessThan(1e-11 * Math.max(size, ...own.map(Math.abs))));
    expect(own.some((value, i) => Math.abs(value - before[i]!) > 1e-3 * size)).toBe(true);
  });

  it.each([true, false])("is the same after saving and loading, with its factors in the file: %s", async (saveFactors) => {
    const base = tinyModel();
    const options = { saveFactors, r: 2, initMethod: "uniform", trainScale: true } as const;
    const model = stir(await adapt(base, loldu, options, { targets: ["q_proj", "down_proj"], seed: 7 }));
    const { model: again, names } = await reloaded(base, model, loldu);
    expect(names.some((name) => name.endsWith("loldu_L"))).toBe(saveFactors);
    expect(names).toContain("base_model.model.model.layers.1.mlp.down_proj.loldu_z0");
    const ids = tensor([3, 1, 4, 1, 5], [1, 5], "i32");
    const answer = (of: typeof model) => numbers(noGrad(() => scope(() => forward(of, ids))));
    expect(await answer(again)).toEqual(await answer(model));
    expect(await answer(again)).not.toEqual(await answer(base));
  });

  it.each(["partial", "rook"])("without its factors in the file is refused on a base that factors with other pivots (%s)", async (pivoting) => {
    const model = stir(await adapt(tinyModel(), loldu, { saveFactors: false, r: 3, pivoting }, { targets: ["q_proj"] }));
    const { names } = await reloaded(tinyModel(), model, loldu);
    expect(names).toContain("base_model.model.model.layers.0.self_attn.q_proj.loldu_perm");
    await expect(reloaded(tinyModel(2), model, loldu)).rejects.toThrow(/q_proj factors with other pivots than the matrix that was trained/);
  });

  it.each([
    [{ r: 99 }, /rank 99 is above/],
    [{ initMethod: "orthogonal" }, /initMethod/],
    [{ pivoting: "complete" }, /pivoting/],
  ])("refuses %o in a sentence", async (given, sentence) => {
    await expect(adapt(tinyModel(), loldu, given as never, { targets: ["q_proj"] })).rejects.toThrow(sentence);
  });
});
