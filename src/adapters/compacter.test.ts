import { beforeAll, describe, expect, it } from "vitest";
import { numbers, stir } from "../../test/laws/subject.ts";
import { sample } from "../../test/support/gradients.ts";
import { loadPublished } from "../../test/support/published.ts";
import { linearSite, reloaded } from "../../test/support/site.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { forward, type Model } from "../models/index.ts";
import type { Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { add, backward, noGrad, Parameter, reshape, Rng, scope, start, sum, sumSquares, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { train } from "../training/index.ts";
import { adapt, adapterParameters, attachedTo, merge } from "./index.ts";
import { compacter, phm } from "./compacter.ts";

beforeAll(async () => {
  await start();
});

const M = (m: number, n: number, a: number): number[] => Array.from({ length: m * n }, (_, at) => Math.sin(a + 0.9 * Math.floor(at / n) + 1.3 * (at % n)));
const stacked = (parts: readonly number[][], shape: readonly number[]): Tensor => tensor(parts.flat(), shape, "f64");
const optionsOf = (given: object) => parseOptions(compacter, given as Record<string, unknown>);
const ids = (): Tensor => tensor([3, 1, 4, 1, 5], [1, 5], "i32");
const answer = (of: Model): Promise<number[]> => numbers(noGrad(() => scope(() => forward(of, ids()))));

/** Sizes of what trains at sites of a width, and of what they share. */
async function sizes(width: number, given: object) {
  const o = optionsOf(given);
  const site: Site = linearSite(zeros([width, 4], "f32"));
  const context = { rng: new Rng(1), dtype: "f32", sites: [site] } as const;
  const shared = (await compacter.shared!([site], o, context)) as Record<string, Tensor>;
  const own = await compacter.init(site, o, context, shared);
  const total = (params: Record<string, Tensor>): number => Object.values(params).reduce((sum, { size }) => sum + size, 0);
  return { own: total(own as Record<string, Tensor>), shared: total(shared) };
}

describe("phm", () => {
  it("has the output of the official layer: y = x·H + b, H = Σ Cᵢ ⊗ sᵢtᵢ", async () => {
    const rule = stacked([M(2, 2, 0.3), M(2, 2, 0.9)], [2, 2, 2]);
    const W = { s: stacked([M(2, 1, 0.5), M(2, 1, 0.8)], [2, 2, 1]), t: stacked([M(1, 3, 0.2), M(1, 3, 0.6)], [2, 1, 3]) };
    const b = tensor(
      Array.from({ length: 6 }, (_, j) => 0.1 * Math.sin(0.1 + 1.3 * j)),
      [6],
      "f64",
    );
    const golden = [0.189463, 0.264434, -0.047991, 0.530752, 1.394851, 0.215491, -0.257959, -0.858025, -0.201083, 0.592852, 1.323872, 0.115417];
    const found = await numbers(phm(tensor(M(2, 4, 0.1), [2, 4], "f64"), { rule, W, b }));
    golden.forEach((value, i) => expect(found[i]).toBeCloseTo(value, 5));
  });

  it.each([
    [1, 3, 2, 1],
    [2, 3, 2, 2],
    [3, 1, 4, 1],
  ])("is x times the explicit Kronecker sum, factored or not: n %i, blocks %i×%i, rank %i", async (n, p, q, rank) => {
    const [C, s, t, full, x] = [sample([n, n, n], 1), sample([n, p, rank], 2), sample([n, rank, q], 3), sample([n, p, q], 4), sample([2, n * p], 5)];
    const [rule, b, input] = [tensor(C, [n, n, n], "f64"), tensor(sample([n * q], 6), [n * q], "f64"), tensor(x, [2, n * p], "f64")];
    const bias = await numbers(b);
    const product = (i: number, row: number, col: number): number => {
      let total = 0;
      for (let k = 0; k < rank; k++) total += s[(i * p + row) * rank + k]! * t[(i * rank + k) * q + col]!;
      return total;
    };
    for (const [W, entry] of [
      [{ s: tensor(s, [n, p, rank], "f64"), t: tensor(t, [n, rank, q], "f64") }, product],
      [tensor(full, [n, p, q], "f64"), (i: number, row: number, col: number) => full[(i * p + row) * q + col]!],
    ] as const) {
      const found = await numbers(phm(input, { rule, W, b }));
      found.forEach((value, at) => {
        const [row, out] = [Math.floor(at / (n * q)), at % (n * q)];
        let expected = bias[out]!;
        for (let inner = 0; inner < n * p; inner++)
          for (let i = 0; i < n; i++)
            expected += x[row * n * p + inner]! * C[(i * n + Math.floor(inner / p)) * n + Math.floor(out / q)]! * entry(i, inner % p, out % q);
        expect(value).toBeCloseTo(expected, 12);
      });
    }
  });

  it("with the rules of the quaternions and 1×1 blocks multiplies by a quaternion", async () => {
    // row vector x times H is the Hamilton product x·w, where H[a, c] is the share of basis c in e_a·w
    const units = [
      [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
      [0, 1, 0, 0, -1, 0, 0, 0, 0, 0, 0, -1, 0, 0, 1, 0],
      [0, 0, 1, 0, 0, 0, 0, 1, -1, 0, 0, 0, 0, -1, 0, 0],
      [0, 0, 0, 1, 0, 0, -1, 0, 0, 1, 0, 0, -1, 0, 0, 0],
    ];
    const [a, b, c, d] = [0.3, -1, 2, 0.5];
    const [e, f, g, h] = [1.5, 0.2, -0.7, 4];
    const hamilton = [a * e - b * f - c * g - d * h, a * f + b * e + c * h - d * g, a * g - b * h + c * e + d * f, a * h + b * g - c * f + d * e];
    const W = tensor([e, f, g, h], [4, 1, 1], "f64");
    const found = await numbers(phm(tensor([a, b, c, d], [1, 4], "f64"), { rule: stacked(units, [4, 4, 4]), W, b: zeros([4], "f64") }));
    hamilton.forEach((value, i) => expect(found[i]).toBeCloseTo(value, 12));
  });
});

describe("compacter", () => {
  it("counts what the paper counts on T5-base: .073 % for Compacter, .047 % for Compacter++, .179 % for the PHM adapter", async () => {
    const norms = 62 * 768;
    const own = await sizes(768, {});
    expect(own).toEqual({ own: 2376, shared: 64 });
    expect(48 * own.own + own.shared + norms).toBe(161_728);
    expect(24 * own.own + own.shared + norms).toBe(104_704);
    const phmAdapter = await sizes(768, { phmDim: 12, factorizedPhmW: false, sharedPhmRule: false });
    expect(phmAdapter).toEqual({ own: 7320, shared: 0 });
    expect(48 * phmAdapter.own + norms).toBe(398_976);
    expect((await sizes(768, { phmDim: 8 })).own, "free of n").toBe(2376);
  });

  it("starts near the identity: rules with standard deviation 1e-4 where shared and .01 where not, factors within √2·Xavier's bound", async () => {
    const site = linearSite(zeros([768, 4], "f64"));
    const context = { rng: new Rng(1), dtype: "f64", sites: [site] } as const;
    const deviation = (x: Tensor): number => Math.sqrt(sumSquares([x]) / x.size);
    const shared = (await compacter.shared!([site], optionsOf({ phmDim: 12 }), context)) as Record<string, Tensor>;
    expect(deviation(shared["rule"]!) / 1e-4).toBeCloseTo(1, 1);
    const apart = (await compacter.init(site, optionsOf({ phmDim: 12, sharedPhmRule: false }), context, {})) as Record<string, Tensor>;
    expect(deviation(apart["downRule"]!) / 0.01).toBeCloseTo(1, 1);
    const bound = Math.SQRT2 * Math.sqrt(6 / (768 / 12 + 1));
    const largest = Math.max(...(await numbers(apart["downLeft"]!)).map(Math.abs));
    expect(largest).toBeLessThanOrEqual(bound);
    expect(largest).toBeGreaterThan(0.98 * bound);
    expect((await numbers(apart["upBias"]!)).every((value) => value === 0)).toBe(true);
  });

  it("draws uniform rules within ±1 where shared and ±.01 where not", async () => {
    const site = linearSite(zeros([768, 4], "f64"));
    const context = { rng: new Rng(1), dtype: "f64", sites: [site] } as const;
    const shared = (await compacter.shared!([site], optionsOf({ phmDim: 12, phmCInit: "uniform" }), context)) as Record<string, Tensor>;
    const own = (await compacter.init(site, optionsOf({ phmDim: 12, phmCInit: "uniform", sharedPhmRule: false }), context, {})) as Record<string, Tensor>;
    for (const [rule, bound] of [
      [shared["rule"]!, 1],
      [own["downRule"]!, 0.01],
    ] as const) {
      const largest = Math.max(...(await numbers(rule)).map(Math.abs));
      expect(largest).toBeLessThanOrEqual(bound);
      expect(largest).toBeGreaterThan(0.98 * bound);
    }
  });

  it("has one set of rules for the whole model: its gradient is the sum over the sites, and every site hears of a change", async () => {
    const model = stir(await adapt(tinyModel(), compacter, { width: 4, phmDim: 2, unfreezeLayerNorms: false }));
    const set = attachedTo(model, "default")!;
    expect([...adapterParameters(set).keys()].filter((name) => /rule/i.test(name))).toEqual(["default/shared/rule"]);
    const rule = set.shared["rule"] as Parameter;
    const o = set.options as never;
    const y = tensor(sample([3, 8], 4), [3, 8]);
    const sites = [...set.entries].map(([path, p]) => ({ site: model.layers.get(path)!.site!, p }));
    const out = ({ site, p }: (typeof sites)[number]) => sum(compacter.forward!(y, y, p as never, site, o, set.live, set.shared as never));
    const apart = await Promise.all(sites.map(async (one) => numbers(backward(out(one)).get(rule)!)));
    const together = await numbers(backward(sites.map(out).reduce((a, b) => add(a, b))).get(rule)!);
    together.forEach((value, i) =>
      expect(value).toBeCloseTo(
        apart.reduce((total, one) => total + one[i]!, 0),
        3,
      ),
    );
    const outputs = () => Promise.all(sites.map(async (one) => (await numbers(noGrad(() => out(one))))[0]!));
    const before = await outputs();
    rule.assign(noGrad(() => add(rule, tensor(sample([8], 3), [2, 2, 2]))));
    (await outputs()).forEach((value, i) => expect(value).not.toBe(before[i]));
  });

  it("gives y + b_up where the rules are zero", async () => {
    const model = stir(await adapt(tinyModel(), compacter, { width: 4, phmDim: 2, unfreezeLayerNorms: false }));
    const set = attachedTo(model, "default")!;
    (set.shared["rule"] as Parameter).assign(zeros([2, 2, 2]));
    const [path, p] = [...set.entries][0]!;
    const y = tensor(sample([1, 8], 4), [1, 8]);
    const found = await numbers(compacter.forward!(y, y, p as never, model.layers.get(path)!.site!, set.options as never, set.live, set.shared as never));
    const [before, bias] = [await numbers(y), await numbers(reshape(p["upBias"]!, [1, 8]))];
    found.forEach((value, i) => expect(value).toBeCloseTo(before[i]! + bias[i]!, 6));
  });

  it("trains no rules when told not to", async () => {
    const adapted = await adapt(tinyModel(), compacter, { width: 4, phmDim: 2, learnPhm: false });
    const before = await numbers(attachedTo(adapted, "default")!.shared["rule"]!);
    const { model } = await train(adapted, { batches: tinyBatches(3), steps: 3, learningRate: 1e-2, seed: 1 });
    expect(await numbers(attachedTo(model, "default")!.shared["rule"]!)).toEqual(before);
  });

  it("is no matrix: merging ends in a sentence", async () => {
    await expect(adapt(tinyModel(), compacter, { width: 4, phmDim: 2 }).then((model) => merge(model))).rejects.toThrow(/merge/);
  });

  it.each([
    {},
    { sharedPhmRule: false, factorizedPhmW: false },
    { factorizedPhmRule: true, phmRank: 2 },
    { sharedWPhm: true, learnPhm: false },
    { sharedWPhm: true, sharedPhmRule: false, addLayerNormBefore: true },
  ])("is the same after saving and loading, each shared tensor once in the file: %o", async (given) => {
    const base = tinyModel();
    const model = stir(await adapt(base, compacter, { width: 4, phmDim: 2, unfreezeLayerNorms: false, ...given }, { seed: 7 }));
    const { model: again, names } = await reloaded(base, model, compacter);
    const shared = Object.keys(attachedTo(model, "default")!.shared).length;
    expect(names.filter((name) => name.startsWith("base_model.phm_"))).toHaveLength(shared);
    expect(await answer(again)).toEqual(await answer(model));
    expect(await answer(again)).not.toEqual(await answer(base));
  });

  it.each([
    [{ width: 3, phmDim: 2 }, /phmDim 2 must divide the width 8 of model.layers.0.self_attn.o_proj and its bottleneck 3/],
    [{ reductionFactor: 16 }, /leaves no bottleneck/],
    [{ width: 4, phmDim: 0 }, /phmDim/],
  ])("refuses %o in a sentence", async (given, sentence) => {
    await expect(adapt(tinyModel(), compacter, given)).rejects.toThrow(sentence);
  });

  it("shares its factors only between sites of one width", async () => {
    const given = { width: 4, phmDim: 2, sharedWPhm: true };
    await expect(adapt(tinyModel(), compacter, given, { targets: ["o_proj", "up_proj"] })).rejects.toThrow(/one width; .* has 8 and .* 12/);
  });
});

describe("a file of the paper's code or of AdapterHub", () => {
  const foreign: Record<string, string> = {
    Left: "W_left",
    Right: "W_right",
    W: "W",
    Bias: "b",
    Rule: "phm_rule",
    RuleLeft: "phm_rule_left",
    RuleRight: "phm_rule_right",
  };
  type Layout = (path: string, way: string, name: string) => string;
  const paper: Layout = (path, way, name) => `${path.slice(0, path.lastIndexOf("."))}.adapter_controller.adapters.mrpc.${way}_sampler.${name}`;
  const hub: Layout = (path, way, name) => {
    const place = path.endsWith("o_proj") ? "attention" : "output";
    return `${path.split(".").slice(0, 3).join(".")}.${place}_adapters.adapters.mrpc.adapter_${way === "down" ? "down.0" : way}.${name}`;
  };
  const settings = { width: 4, phmDim: 2, unfreezeLayerNorms: false };
  const make = async (given: object): Promise<Model> => stir(await adapt(tinyModel(), compacter, { ...settings, ...given }, { seed: 7 }));

  /** The adapter's tensors as that code stores them: shared ones of the paper's code at every module too. */
  function stored(model: Model, layout: Layout): Record<string, Tensor> {
    const { entries, shared } = attachedTo(model, "default")!;
    const held: Record<string, Tensor> = {};
    for (const [path, p] of entries)
      for (const [name, x] of Object.entries(p)) {
        const [, way, part] = /^(down|up)(.+)$/.exec(name)!;
        held[layout(path, way!, foreign[part!]!)] = x;
      }
    for (const [name, x] of Object.entries(shared)) {
      const [, way, part] = /^(down|up)?(.+)$/.exec(name)!;
      const own = foreign[part!.charAt(0).toUpperCase() + part!.slice(1)]!;
      if (layout === hub) held[`shared_parameters.mrpc.${way ? own.replace("W", `W_${way}`) : own}`] = x;
      else {
        if (!way) held[own] = x;
        for (const path of entries.keys()) for (const side of way ? [way] : ["down", "up"]) held[layout(path, side, own)] = x;
      }
    }
    return held;
  }

  it.each(
    [
      {},
      { sharedPhmRule: false, factorizedPhmW: false },
      { factorizedPhmRule: true, phmRank: 2 },
      { sharedWPhm: true },
      { sharedWPhm: true, factorizedPhmW: false },
    ].flatMap((given) => [["the paper's", paper, given] as const, ["AdapterHub's", hub, given] as const]),
  )("is read under its own keys: %s, %o %o", async (_, layout, given) => {
    const model = await make(given);
    const again = await loadPublished(tinyModel(), compacter, { ...settings, ...given }, stored(model, layout));
    expect(await answer(again)).toEqual(await answer(model));
    expect(await answer(again)).not.toEqual(await answer(tinyModel()));
  });

  it("takes T5's layers and BERT's, where adapters stand beside the sublayer's last matrix", () => {
    const name = compacter.layout.published!;
    const modules = ["encoder.block.0.layer.0.SelfAttention.o", "encoder.block.0.layer.1.DenseReluDense.wo", "l.0.attention.output.dense", "l.0.output.dense"];
    const o = { sharedPhmRule: true };
    expect(name("encoder.block.0.layer.0.adapter_controller.adapters.mrpc.down_sampler.W_left", modules, o)).toBe(
      "base_model.model.encoder.block.0.layer.0.SelfAttention.o.phm_down_left",
    );
    expect(name("encoder.block.0.layer.1.adapter_controller.adapters.mrpc.up_sampler.b", modules, o)).toBe(
      "base_model.model.encoder.block.0.layer.1.DenseReluDense.wo.phm_up_bias",
    );
    expect(name("l.0.output.adapters.mrpc.adapter_up.W_right", modules, o)).toBe("base_model.model.l.0.output.dense.phm_up_right");
    expect(name("l.0.attention.output.adapters.mrpc.adapter_down.0.b", modules, o)).toBe("base_model.model.l.0.attention.output.dense.phm_down_bias");
  });

  it("is refused in a sentence where a tensor is missing, misshapen or unknown, or copies of the rules differ", async () => {
    const held = stored(await make({}), paper);
    const load = (tensors: Record<string, Tensor>) => loadPublished(tinyModel(), compacter, settings, tensors);
    const key = paper("model.layers.0.mlp.down_proj", "down", "W_left");
    const { [key]: left, ...rest } = held;
    expect(left!.shape).toEqual([2, 4, 1]);
    await expect(load(rest)).rejects.toThrow(/downLeft of model.layers.0.mlp.down_proj is missing, expected \[2,4,1\]/);
    await expect(load({ ...rest, [key]: zeros([2, 1, 4]) })).rejects.toThrow(
      /downLeft of model.layers.0.mlp.down_proj has shape \[2,1,4\], expected \[2,4,1\]/,
    );
    for (const name of [`${key}_too`, key.replace("W_left", "constructor"), key.replace("mlp", "norm")])
      await expect(load({ ...held, [name]: zeros([1]) })).rejects.toThrow(`cannot place:\n1 × no part of this method:\n  + ${name}`);
    await expect(load({ ...held, [paper("model.layers.0.mlp.down_proj", "up", "phm_rule")]: zeros([2, 2, 2]) })).rejects.toThrow(
      /one shared tensor twice, with different values/,
    );
  });
});
