import { beforeAll, describe, expect, it } from "vitest";
import { numbers, stir } from "../../test/laws/subject.ts";
import { sample } from "../../test/support/gradients.ts";
import { loadPublished } from "../../test/support/published.ts";
import { linearSite, reloaded, tinyResnet } from "../../test/support/site.ts";
import { tinyModel } from "../../test/support/tiny-model.ts";
import { modeProduct, singularValues, tucker } from "../linalg/index.ts";
import { forward } from "../models/index.ts";
import type { Live, Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { dense } from "../operators/index.ts";
import {
  backward,
  noGrad,
  Parameter,
  permute,
  reshape,
  Rng,
  scale,
  scope,
  start,
  sub,
  sum,
  sumSquares,
  tensor,
  transpose,
  zeros,
  type Tensor,
} from "../tensor/index.ts";
import { adapt, adapterParameters, attachedTo, merge, toLora } from "./index.ts";
import { flora } from "./flora.ts";

beforeAll(async () => {
  await start();
});

const live: Live = { training: false, step: 0, rng: new Rng(4), values: {} };
type Made = { G: Tensor; P0: Tensor; P1: Tensor; P2?: Tensor; P3?: Tensor };

/** M(m, n, a) = sin(a + .9i + 1.3j), of the sheet's goldens. */
const M = (m: number, n: number, a: number): Tensor =>
  tensor(
    Array.from({ length: m * n }, (_, at) => Math.sin(a + 0.9 * Math.floor(at / n) + 1.3 * (at % n))),
    [m, n],
    "f64",
  );

const convSite = (out: number, inner: number, kernel: readonly [number, number], groups = 1): Site => ({
  path: "layer1.0.conv1",
  depth: 0,
  role: "conv1",
  kind: "conv2d",
  out,
  in: (inner / groups) * kernel[0] * kernel[1],
  weight: dense(zeros([out, (inner / groups) * kernel[0] * kernel[1]], "f64")),
  conv: { kernel, stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups },
});

const optionsOf = (given: object) => parseOptions(flora, given as Record<string, unknown>);
const updateOf = (p: Made, site: Site, given: object): Tensor => noGrad(() => flora.update!(p, site, optionsOf(given), live, {}).toDense());
const drawn = (site: Site, given: object) => flora.init(site, optionsOf(given), { rng: new Rng(3), dtype: "f64", sites: [site] }, {}) as Made;

describe("flora", () => {
  it("has the ΔW of the official code on a linear layer, P₁ Gᵀ P₀ᵀ times s", async () => {
    const p = { G: M(2, 2, 0.3), P0: M(4, 2, 0.5), P1: M(3, 2, 0.7) };
    const golden = [6.566871, 6.289936, 1.252903, -4.732302, 5.211957, 3.944492, -0.308087, -4.327512, -0.087262, -1.386066, -1.635923, -0.647746];
    const found = await numbers(updateOf(p, linearSite(zeros([3, 4], "f64")), { r: [2, 2], scale: 4 }));
    golden.forEach((value, i) => expect(found[i]).toBeCloseTo(value, 5));
  });

  it("has the ΔW of the official code on a convolution, out × in × height × width", async () => {
    const G = tensor(
      Array.from({ length: 4 }, (_, n) => Math.sin(0.3 + n)),
      [1, 2, 1, 2],
      "f64",
    );
    const p = { G, P0: M(2, 1, 0.5), P1: M(2, 2, 0.7), P2: M(2, 1, 0.2), P3: M(2, 2, 0.9) };
    const golden = [
      0.406201, 0.329777, 1.82217, 1.47934, 0.834938, 0.67785, 3.745435, 3.040755, 0.426453, 0.190453, 1.913016, 0.85435, 0.876565, 0.391473, 3.932167, 1.7561,
    ];
    const found = await numbers(updateOf(p, convSite(2, 2, [2, 2]), { r: [1, 2, 1, 2], scale: 4 }));
    golden.forEach((value, i) => expect(found[i]).toBeCloseTo(value, 5));
  });

  it("starts at zero, with the core zero and factors of standard deviation 1/√(2r), whose first gradient is zero while the core's is not", async () => {
    const site = linearSite(zeros([300, 400], "f64"));
    const p = drawn(site, { r: [8, 32] });
    expect((await numbers(updateOf(p, site, { r: [8, 32] }))).every((value) => value === 0)).toBe(true);
    for (const [factor, r] of [
      [p.P0, 8],
      [p.P1, 32],
    ] as const)
      expect(Math.sqrt(sumSquares([factor]) / factor.size) * Math.sqrt(2 * r)).toBeCloseTo(1, 1);
    const leaves = { G: new Parameter(p.G, "G"), P0: new Parameter(p.P0, "P0"), P1: new Parameter(p.P1, "P1") };
    const slopes = backward(sum(flora.update!(leaves, site, optionsOf({ r: [8, 32] }), live, {}).toDense()));
    expect((await numbers(slopes.get(leaves.P0)!)).every((value) => value === 0)).toBe(true);
    expect((await numbers(slopes.get(leaves.G)!)).some((value) => value !== 0)).toBe(true);
  });

  it.each([
    ["deberta", { P0: 0.02, P1: 0.02 }],
    ["llama", { P0: 1 / Math.sqrt(3 * 400), P1: 1 / Math.sqrt(3 * 16) }],
  ] as const)("draws A and B as the language experiments do, and scales by alpha / r: %s", async (coreInit, std) => {
    const site = linearSite(zeros([300, 400], "f64"));
    const p = drawn(site, { r: 16, coreInit });
    for (const name of ["P0", "P1"] as const) expect(Math.sqrt(sumSquares([p[name]]) / p[name].size) / std[name]).toBeCloseTo(1, 1);
    const [one] = await numbers(updateOf({ ...p, G: M(16, 16, 0.1) }, site, { r: 16, coreInit, alpha: 8 }));
    const [plain] = await numbers(updateOf({ ...p, G: M(16, 16, 0.1) }, site, { r: 16, scale: 1 }));
    expect(one! / plain!).toBeCloseTo(0.5, 6);
  });

  it("counts Π rᵢ + Σ dimᵢ·rᵢ: 5148 for a 7×7 convolution 128 → 128 at [16, 16, 2, 2], 588 for a 3×3 one 64 → 64 at [4, 4, 2, 2]", () => {
    for (const [site, r, count] of [
      [convSite(128, 128, [7, 7]), [16, 16, 2, 2], 5148],
      [convSite(64, 64, [3, 3]), [4, 4, 2, 2], 588],
      [linearSite(zeros([3, 4], "f64")), [2, 3], 6 + 8 + 9],
    ] as const)
      expect(Object.values(drawn(site, { r })).reduce((total, { size }) => total + size, 0)).toBe(count);
  });

  it("has mode-i unfoldings of rank at most rᵢ", async () => {
    const r = [3, 2, 2, 1];
    const site = convSite(6, 5, [3, 3]);
    const p = { ...drawn(site, { r }), G: tensor(sample(r, 2), r, "f64") };
    const ΔW = reshape(updateOf(p, site, { r }), [6, 5, 3, 3]);
    for (const [axis, most] of [
      [1, r[0]!],
      [0, r[1]!],
      [2, r[2]!],
      [3, r[3]!],
    ] as const) {
      const first = [axis, ...[0, 1, 2, 3].filter((one) => one !== axis)];
      const spectrum = await numbers(await singularValues(reshape(permute(ΔW, first), [ΔW.shape[axis]!, -1])));
      expect(spectrum.filter((value) => value > 1e-10 * spectrum[0]!)).toHaveLength(most);
    }
  });

  it("is LoRA without alpha / r when the core is the identity, and a linear layer where a kernel is 1×1", async () => {
    const p = { G: tensor([1, 0, 0, 1], [2, 2], "f64"), P0: M(4, 2, 0.5), P1: M(3, 2, 0.7) };
    const found = await numbers(updateOf(p, linearSite(zeros([3, 4], "f64")), { r: [2, 2], scale: 0.3 }));
    const [A, B] = [await numbers(p.P0), await numbers(p.P1)];
    found.forEach((value, at) => {
      const [o, i] = [Math.floor(at / 4), at % 4];
      expect(value).toBeCloseTo(0.3 * (B[o * 2]! * A[i * 2]! + B[o * 2 + 1]! * A[i * 2 + 1]!), 12);
    });
    const [h, w] = [tensor([2], [1, 1], "f64"), tensor([-3], [1, 1], "f64")];
    const conv = await numbers(updateOf({ ...p, G: reshape(p.G, [2, 2, 1, 1]), P2: h, P3: w }, convSite(3, 4, [1, 1]), { r: [2, 2, 1, 1], scale: 0.3 }));
    conv.forEach((value, i) => expect(value).toBeCloseTo(-6 * found[i]!, 12));
  });

  it("spans, with whole kernel ranks and orthogonal kernel factors, one LoRA of its own for each place of the kernel", async () => {
    const r = [3, 2, 2, 2];
    const site = convSite(5, 4, [2, 2]);
    const { P0, P1 } = drawn(site, { r });
    const [cos, sin] = [Math.cos(0.7), Math.sin(0.7)];
    const turn = tensor([cos, -sin, sin, cos], [2, 2], "f64");
    // a core for each place, and the one that the turned factors make of them
    const places = tensor(sample(r, 4), r, "f64");
    const G = [2, 3].reduce((x, axis) => modeProduct(x, transpose(turn), axis), places);
    const [found, core, inner, outer] = await Promise.all([updateOf({ G, P0, P1, P2: turn, P3: turn }, site, { r, scale: 1 }), places, P0, P1].map(numbers));
    found!.forEach((value, at) => {
      const [o, i, place] = [Math.floor(at / 16), Math.floor(at / 4) % 4, at % 4];
      let expected = 0;
      for (let a = 0; a < 3; a++) for (let b = 0; b < 2; b++) expected += outer![o * 2 + b]! * core![(a * 2 + b) * 4 + place]! * inner![i * 3 + a]!;
      expect(value).toBeCloseTo(expected, 12);
    });
  });

  it("reaches a kernel of multilinear rank (4, 4, 2, 2) to 1e-6, where a flattened LoRA of as many numbers cannot", async () => {
    const r = [4, 4, 2, 2];
    const site = convSite(16, 16, [3, 3]);
    const teacher = { ...drawn(site, { r }), G: new Rng(8).normal(r, 0.5, "f64") };
    const target = updateOf(teacher, site, { r });
    // the flattened LoRA of rank 1 has 16 + 144 numbers and of rank 2 320, FLoRA 204: the best of rank 2 is the truncated SVD
    const spectrum = await numbers(await singularValues(target));
    const energy = (values: readonly number[]): number => values.reduce((total, value) => total + value * value, 0);
    expect(Math.sqrt(energy(spectrum.slice(2)) / energy(spectrum))).toBeGreaterThan(0.1);
    const { core, factors } = await tucker(permute(reshape(target, [16, 16, 3, 3]), [1, 0, 2, 3]), r);
    const [P0, P1, P2, P3] = factors as [Tensor, Tensor, Tensor, Tensor];
    const own = updateOf({ G: scale(core, 1 / 4), P0, P1, P2, P3 }, site, { r });
    const error = sumSquares([noGrad(() => sub(own, target))]);
    expect(Math.sqrt(error / energy(spectrum))).toBeLessThan(1e-6);
  });

  it("sits on convolutions: forward and merged agree, and it converts to a LoRA of rank r_out exactly", async () => {
    const base = tinyResnet();
    const model = stir(await adapt(base, flora, { r: 3 }, { targets: ["conv1", "conv2"] }));
    const images = tensor(sample([2, 3, 8, 8], 5), [2, 3, 8, 8], "f64");
    const answer = async (of: typeof model) => numbers(noGrad(() => scope(() => forward(of, images))));
    const own = await answer(model);
    const size = Math.max(...own.map(Math.abs));
    for (const [i, value] of (await answer(merge(model))).entries()) expect(Math.abs(value - own[i]!)).toBeLessThan(1e-11 * size);
    for (const [i, value] of (await answer((await toLora(model, { rank: 3 })).model)).entries()) expect(Math.abs(value - own[i]!)).toBeLessThan(1e-7 * size);
    expect((await answer(base)).some((value, i) => Math.abs(value - own[i]!) > 1e-3 * size)).toBe(true);
    // the first convolution has 3 channels and 3×3 kernels
    const shapes = Object.values(attachedTo(model, "default")!.entries.get("conv1")!).map(({ shape }) => shape);
    expect(shapes).toEqual([
      [3, 3, 2, 2],
      [3, 3],
      [8, 3],
      [3, 2],
      [3, 2],
    ]);
  });

  it("counts the channels of a group, not all, on a grouped convolution", () => {
    expect(drawn(convSite(6, 6, [3, 3], 6), { r: 4 }).P0.shape).toEqual([1, 1]);
    expect(drawn(convSite(6, 6, [3, 3], 2), { r: 4 }).P0.shape).toEqual([3, 3]);
  });

  it("is the same after saving and loading", async () => {
    for (const [base, targets, x] of [
      [tinyModel(), ["q_proj", "embed_tokens"], tensor([3, 1, 4, 1, 5], [1, 5], "i32")],
      [tinyResnet(), ["conv2"], tensor(sample([1, 3, 8, 8], 5), [1, 3, 8, 8], "f64")],
    ] as const) {
      const model = stir(await adapt(base, flora, { r: 2, coreInit: "llama" }, { targets, seed: 7 }));
      const { model: again, names } = await reloaded(base, model, flora);
      expect(names).toHaveLength(adapterParameters(attachedTo(model, "default")!).size);
      const answer = (of: typeof model) => numbers(noGrad(() => scope(() => forward(of, x))));
      expect(await answer(again)).toEqual(await answer(model));
      expect(await answer(again)).not.toEqual(await answer(base));
    }
  });

  it.each([
    [{ r: 99 }, ["q_proj"], /rank 99 is above/],
    [{ r: [4, 99] }, ["q_proj"], /does not fit model.layers.0.self_attn.q_proj, whose weight is 8×8/],
    [{ r: [4] }, ["q_proj"], /"?r"?/],
    [{ coreInit: "svd" }, ["q_proj"], /coreInit/],
  ])("refuses %o in a sentence", async (given, targets, sentence) => {
    await expect(adapt(tinyModel(), flora, given as never, { targets })).rejects.toThrow(sentence);
  });

  it("wants a rank for each axis of a kernel", async () => {
    await expect(adapt(tinyResnet(), flora, { r: [2, 2] }, { targets: ["conv2"] })).rejects.toThrow(/whose weight is 8×8×3×3/);
  });
});

describe("a file of the official FLoRA", () => {
  const parts = async (model: ReturnType<typeof tinyModel>): Promise<Record<string, Tensor>> =>
    Object.fromEntries(
      [...attachedTo(model, "default")!.entries].flatMap(([path, p]) =>
        Object.entries(p).map(([name, x]) => [`${path}.flora_layer.param_${name === "G" ? name : name.slice(1)}`, x as Tensor]),
      ),
    );

  it.each([
    ["linear layers", tinyModel, ["q_proj", "v_proj"], { r: [2, 3], scale: 0.5 }],
    ["convolutions", tinyResnet, ["conv1"], { r: [2, 3, 1, 2], scale: 0.5 }],
  ] as const)("is read under its own keys: %s", async (_, base, targets, given) => {
    const model = stir(await adapt(base(), flora, { ...given, r: [...given.r] }, { targets: [...targets] }));
    const again = await loadPublished(base(), flora, given, await parts(model));
    const [before, after] = [model, again].map((of) => [...attachedTo(of, "default")!.entries]);
    expect(after!.length).toBeGreaterThan(1);
    for (const [path, p] of before!)
      for (const [name, x] of Object.entries(p)) expect(await numbers(new Map(after).get(path)![name]!)).toEqual(await numbers(x));
  });

  it("is refused in a sentence where a factor has another shape, or a key is not FLoRA's", async () => {
    const given = { r: [2, 3] };
    const held = await parts(await adapt(tinyModel(), flora, given, { targets: ["q_proj"] }));
    const path = "model.layers.0.self_attn.q_proj";
    const spoilt = { ...held, [`${path}.flora_layer.param_1`]: zeros([8, 2]) };
    await expect(loadPublished(tinyModel(), flora, given, spoilt)).rejects.toThrow(/needs at model.layers.0.self_attn.q_proj a core G .* found .*P1 \[8,2\]/);
    await expect(loadPublished(tinyModel(), flora, given, { ...held, [`${path}.flora_layer.param_9`]: zeros([1]) })).rejects.toThrow(
      /cannot place:[^]*param_9/,
    );
  });
});
