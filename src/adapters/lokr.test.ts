import { beforeAll, describe, expect, it } from "vitest";
import { leaf, sample } from "../../test/support/gradients.ts";
import { liveOf, numbers, siteOf } from "../../test/support/site.ts";
import type { Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { noGrad, Rng, start, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { factorization, lokr } from "./lokr.ts";

beforeAll(async () => {
  await start();
});

const optionsOf = (given: Record<string, unknown>) => parseOptions(lokr, given);
const drawn = (site: Site, given: Record<string, unknown>) =>
  lokr.init(site, optionsOf(given), { rng: new Rng(3), dtype: "f64", sites: [] }, {}) as Record<string, Tensor>;
const shapes = (site: Site, given: Record<string, unknown>) => Object.entries(drawn(site, given)).map(([name, t]) => `${name} ${t.shape.join("×")}`);

describe("lokr", () => {
  // Made by peft.tuners.lokr.layer.factorization of PEFT 0.21.0.
  it.each([
    [256, -1, [16, 16]],
    [128, -1, [8, 16]],
    [127, -1, [1, 127]],
    [172, -1, [4, 43]],
    [48, -1, [6, 8]],
    [128, 4, [4, 32]],
    [64, 16, [16, 4]],
    [12, 6, [6, 2]],
    [12, 5, [3, 4]],
    [60, 7, [6, 10]],
  ])("splits %i by factor %i as PEFT does", (dimension, factor, expected) => {
    expect(factorization(dimension, factor)).toEqual(expected);
  });

  // 12 → 64 with decompose_factor 16 and r 8 in PEFT 0.21.0: lokr_w1 (16, 3), lokr_w2 (4, 4).
  it("gives its factors PEFT's shapes, a factor above the square root too", () => {
    expect(shapes(siteOf(64, 12), { r: 8, decomposeFactor: 16 })).toEqual(["w1 16×3", "w2 4×4"]);
  });

  it("has w2 in two where r is below half of its larger side, w1 only with decomposeBoth", () => {
    const site = siteOf(256, 128);
    expect(shapes(site, { r: 7 })).toEqual(["w1 16×8", "w2a 16×7", "w2b 7×16"]);
    expect(shapes(site, { r: 8 })).toEqual(["w1 16×8", "w2 16×16"]);
    expect(shapes(site, { r: 7, decomposeBoth: true })).toEqual(["w1a 16×7", "w1b 7×8", "w2a 16×7", "w2b 7×16"]);
    expect(shapes(site, { r: 8, decomposeBoth: true })).toEqual(["w1 16×8", "w2 16×16"]);
  });

  it("has the kernel in w2 of a convolution, and a core where asked for", () => {
    const site = siteOf(64, 64 * 9, { kernel: [3, 3] });
    expect(shapes(site, { r: 4 })).toEqual(["w1 8×8", "w2 8×8×3×3"]);
    expect(shapes(site, { r: 2 })).toEqual(["w1 8×8", "w2a 8×2", "w2b 2×72"]);
    expect(shapes(site, { r: 2, useEffectiveConv2d: true })).toEqual(["w1 8×8", "t2 2×2×3×3", "w2a 2×8", "w2b 2×8"]);
  });

  it.each([
    [{}, ["w1"]],
    [{ decomposeBoth: true }, ["w1a"]],
    [{ initWeights: "lycoris" }, ["w2b"]],
    [{ initWeights: "lycoris", r: 8 }, ["w2"]],
    [{ initWeights: false }, []],
  ])("starts zero in one factor, so at the base, %o", async (given, expected) => {
    const p = drawn(siteOf(256, 256), { r: 2, ...given });
    const zero = await Promise.all(Object.entries(p).map(async ([name, t]) => ((await numbers(t)).every((value) => value === 0) ? [name] : [])));
    expect(zero.flat()).toEqual(expected);
  });

  it("is (α/r)·w1 ⊗ w2, entry by entry, with factors multiplied out", async () => {
    const p = { w1a: leaf([2, 1], 1), w1b: leaf([1, 3], 2), w2a: leaf([4, 1], 3), w2b: leaf([1, 2], 4) };
    const [a1, b1, a2, b2] = await Promise.all([p.w1a, p.w1b, p.w2a, p.w2b].map(numbers));
    const found = await numbers(lokr.update!(p, siteOf(8, 6), optionsOf({ r: 1, alpha: 3 }), liveOf(false), {}).toDense());
    for (let o = 0; o < 8; o++)
      for (let i = 0; i < 6; i++) expect(found[o * 6 + i]).toBeCloseTo(3 * a1![Math.floor(o / 4)]! * b1![Math.floor(i / 2)]! * a2![o % 4]! * b2![i % 2]!, 12);
  });

  it("is scaled by alpha / r with whole factors too", async () => {
    const update = (alpha: number) =>
      lokr.update!({ w1: leaf([2, 2], 1), w2: leaf([2, 2], 2) }, siteOf(4, 4), optionsOf({ r: 4, alpha }), liveOf(false), {}).toDense();
    const [one, two] = [await numbers(update(4)), await numbers(update(8))];
    two.forEach((value, i) => expect(value).toBeCloseTo(2 * one[i]!, 12));
    expect(one[0]).toBeCloseTo(sample([2, 2], 1)[0]! * sample([2, 2], 2)[0]!, 12);
  });

  it("drops whole outputs in training, and divides by the share that is kept only when told so", async () => {
    const site = siteOf(200, 4);
    const p = { w1: leaf([10, 2], 1), w2: leaf([20, 2], 2) };
    const x = tensor(sample([1, 4], 9), [1, 4], "f64");
    const part = (training: boolean, rankDropoutScale: boolean) =>
      numbers(noGrad(() => lokr.forward!(x, zeros([1, 200], "f64"), p, site, optionsOf({ rankDropout: 0.4, rankDropoutScale }), liveOf(training), {})));
    const whole = await part(false, true);
    for (const rescale of [true, false]) {
      const found = await part(true, rescale);
      const kept = found.filter((value) => value !== 0).length / 200;
      expect(Math.abs(kept - 0.6)).toBeLessThan(0.1);
      found.forEach((value, i) => value !== 0 && expect(value).toBeCloseTo(whole[i]! / (rescale ? kept : 1), 10));
    }
  });
});
