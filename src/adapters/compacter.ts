import { z } from "zod";
import { add, matmul, Parameter, permute, reshape, sum, zeros, type Rng, type Tensor } from "../tensor/index.ts";
import { StrutError } from "../errors.ts";
import { peftKey } from "../formats/peft-keys.ts";
import type { Site } from "../nn/contracts.ts";
import { adapter, type InitContext } from "./adapter.ts";
import { behindAttention, behindFeedForward, bottleneckOptions, normNames, norms, serialDefaults, serially, widthOf } from "./bottleneck.ts";

const options = bottleneckOptions.extend({
  phmDim: z.int().positive().default(4).describe("n: how many Kronecker terms, each with an n×n rule; must divide width and bottleneck; defaults to 4"),
  phmRank: z.int().positive().default(1).describe("rank of the other factor of each term; defaults to 1"),
  factorizedPhmW: z.boolean().default(true).describe("that factor is of low rank; defaults to true"),
  factorizedPhmRule: z.boolean().default(false).describe("the rules are of rank 1 too; defaults to false"),
  sharedPhmRule: z.boolean().default(true).describe("one set of rules for the whole model; defaults to true"),
  sharedWPhm: z.boolean().default(false).describe("one set of the other factors too, for sites of one width; defaults to false"),
  learnPhm: z.boolean().default(true).describe("train the rules; defaults to true"),
  phmCInit: z.enum(["normal", "uniform"]).default("normal").describe("how rules start: normal, or uniform within ±1 (own ones ±0.01); defaults to normal"),
  phmInitRange: z.number().positive().default(1e-4).describe("standard deviation of normal shared rules at the start (own ones have 0.01); defaults to 1e-4"),
});
type Options = z.output<typeof options>;
type Params = Record<string, Tensor>;

/** Rules of one PHM layer: n×n×n, or left and right n×n×1 and n×1×n. */
export interface PhmLayer {
  readonly rule: Tensor;
  /** n×(k/n)×(d/n), or its factors s n×(k/n)×ρ and t n×ρ×(d/n). */
  readonly W: Tensor | { readonly s: Tensor; readonly t: Tensor };
  readonly b: Tensor;
}

/**
 * x·H + b with H = Σᵢ Cᵢ ⊗ Wᵢ, k×d, never built: x as […, n, k/n] goes through Wᵢ (or sᵢ), Cᵢ and tᵢ in turn.
 *
 * @example
 * const y = phm(ones([1, 4]), { rule: ones([2, 2, 2]), W: { s: ones([2, 2, 1]), t: ones([2, 1, 3]) }, b: zeros([6]) }); // [1, 6]
 */
export function phm(x: Tensor, { rule, W, b }: PhmLayer): Tensor {
  const n = rule.shape[0]!;
  const rows = x.size / x.shape.at(-1)!;
  const first = "s" in W ? W.s : W;
  const [, p, q] = first.shape as [number, number, number];
  // u[row·a, i·q] = Σ_p x[row, a, p]·W[i, p, q]
  const u = matmul(reshape(x, [rows * n, p]), reshape(permute(first, [1, 0, 2]), [p, n * q]));
  // v[i, row·q, c] = Σ_a u[row, a, i, q]·C[i, a, c]
  const v = reshape(matmul(reshape(permute(reshape(u, [rows, n, n, q]), [2, 0, 3, 1]), [n, rows * q, n]), rule), [n, rows, q, n]);
  const y = "s" in W ? matmul(reshape(permute(v, [1, 3, 0, 2]), [rows * n, n * q]), reshape(W.t, [n * q, -1])) : permute(sum(v, { axes: [0] }), [0, 2, 1]);
  return add(reshape(y, [...x.shape.slice(0, -1), b.size]), b);
}

/** Uniform with Xavier's bound for gain √2 on each slice. */
const xavier = (rng: Rng, n: number, rows: number, cols: number, dtype: InitContext["dtype"]): Tensor =>
  rng.uniform([n, rows, cols], Math.SQRT2 * Math.sqrt(6 / (rows + cols)), dtype);

/** The factors of one direction: names behind `down` or `up`. */
function factors(prefix: string, k: number, d: number, o: Options, rng: Rng, dtype: InitContext["dtype"]): Params {
  const n = o.phmDim;
  if (!o.factorizedPhmW) return { [`${prefix}W`]: xavier(rng, n, k / n, d / n, dtype) };
  return { [`${prefix}Left`]: xavier(rng, n, k / n, o.phmRank, dtype), [`${prefix}Right`]: xavier(rng, n, o.phmRank, d / n, dtype) };
}

function rules(o: Options, rng: Rng, dtype: InitContext["dtype"]): Params {
  const n = o.phmDim;
  const start = (stream: Rng, shape: readonly number[]): Tensor =>
    o.phmCInit === "uniform" ? stream.uniform(shape, o.sharedPhmRule ? 1 : 0.01, dtype) : stream.normal(shape, o.sharedPhmRule ? o.phmInitRange : 0.01, dtype);
  const drawn = (name: string, shape: readonly number[]): Tensor => new Parameter(start(rng.fork(name), shape), "", o.learnPhm);
  return o.factorizedPhmRule ? { RuleLeft: drawn("left", [n, n, 1]), RuleRight: drawn("right", [n, 1, n]) } : { Rule: drawn("rule", [n, n, n]) };
}

const renamed = (params: Params, name: (key: string) => string): Params => Object.fromEntries(Object.entries(params).map(([key, value]) => [name(key), value]));
const lower = (key: string): string => key.charAt(0).toLowerCase() + key.slice(1);

function bottleneck(site: Site, o: Options): number {
  const m = widthOf(site, o);
  if (site.out % o.phmDim === 0 && m % o.phmDim === 0) return m;
  throw new StrutError("option", `phmDim ${o.phmDim} must divide the width ${site.out} of ${site.path} and its bottleneck ${m}`, {
    path: "phmDim",
    hint: "Choose reductionFactor so that width / reductionFactor is a multiple of phmDim.",
  });
}

/** One direction's layer out of a site's parameters and the shared ones. */
function layerOf(prefix: "down" | "up", p: Params, shared: Params): PhmLayer {
  const found = (name: string): Tensor | undefined => p[`${prefix}${name}`] ?? shared[`${prefix}${name}`];
  const rule = (name: string): Tensor | undefined => p[`${prefix}${name}`] ?? shared[lower(name)];
  const left = rule("RuleLeft");
  const W = found("W") ?? { s: found("Left")!, t: found("Right")! };
  return { rule: left ? matmul(left, rule("RuleRight")!) : rule("Rule")!, W, b: p[`${prefix}Bias`]! };
}

const names = ["Left", "Right", "W", "Bias", "Rule", "RuleLeft", "RuleRight"].flatMap((part) => [`down${part}`, `up${part}`]);
const sharedNames = ["rule", "ruleLeft", "ruleRight", ...["Left", "Right", "W"].flatMap((part) => [`down${part}`, `up${part}`])];
const snake = (name: string): string => `phm_${name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}`;
const snaked = (all: readonly string[]): Record<string, string> => Object.fromEntries(all.map((name) => [name, snake(name)]));

/** What the paper's code and AdapterHub call a tensor of one direction: ours behind `down` or `up`. */
const foreign = new Map(
  Object.entries({ W_left: "Left", W_right: "Right", W: "W", b: "Bias", phm_rule: "Rule", phm_rule_left: "RuleLeft", phm_rule_right: "RuleRight" }),
);
/** `….layer.0.adapter_controller.adapters.TASK.down_sampler.W_left` of the paper's code. */
const paper = /^(?<parent>.+)\.adapter_controller\.adapters\.[^.]+\.(?<way>down|up)_sampler\.(?<name>\w+)$/;
/** `….output_adapters.adapters.NAME.adapter_down.0.W_left` of AdapterHub; in older versions `….output.adapters.NAME`. */
const hub = /^(?<parent>.+?)(?:\.(?<place>attention|output)_adapters)?\.adapters\.[^.]+\.adapter_(?<way>down|up)(?:\.\d)?\.(?<name>\w+)$/;
/** What is one for the model: `phm_rule` of the paper's, `shared_parameters.NAME.phm_rule` and `.W_down_left` of AdapterHub's. */
const whole = /(?:^|\.)(?<name>phm_rule(?:_left|_right)?|W_(?<way>down|up)(?:_left|_right)?)$/;

/** A key of either as ours. The paper's code stores shared tensors again at every module. */
function published(key: string, modules: readonly string[], o: Readonly<Record<string, unknown>>): string | undefined {
  const { parent, place, way, name } = { ...(paper.exec(key) ?? hub.exec(key))?.groups };
  if (!parent) {
    const one = whole.exec(key)?.groups;
    const part = one && foreign.get(one["name"]!.replace(/_(down|up)/, ""))!;
    return part && `base_model.${snake(one["way"] ? one["way"] + part : lower(part))}`;
  }
  const part = foreign.get(name!);
  const rule = part?.startsWith("Rule");
  if (part && (rule ? o["sharedPhmRule"] : o["sharedWPhm"] && part !== "Bias")) return `base_model.${snake(rule ? lower(part) : way + part)}`;
  const sites = modules.filter((path) => {
    const attention = behindAttention.test(path);
    return path.startsWith(`${parent}.`) && (attention || behindFeedForward.test(path)) && (!place || attention === (place === "attention"));
  });
  return part && sites.length === 1 ? peftKey(sites[0]!, snake(way + part) as never) : undefined;
}

/**
 * Compacter: y + f(y·H_down + b)·H_up + b behind a sublayer's output y, each H = Σᵢ Cᵢ ⊗ (sᵢtᵢ), with one set of rules C for the
 * whole model. Karimi Mahabadi, Henderson & Ruder 2021, arXiv:2106.04647. Compacter++ is `mhAdapter: false`; a PHM-Adapter has
 * phmDim 12, factorizedPhmW and sharedPhmRule false. It starts near the base, not at it. Tensors of the paper's code and of AdapterHub
 * are read where a strut.json beside them gives the options.
 *
 * @example
 * const tuned = await adapt(model, compacter, { reductionFactor: 8, phmDim: 4 });
 */
export const compacter = adapter({
  id: "compacter",
  title: "Compacter",
  paper: "arXiv:2106.04647",
  kinds: ["linear"],
  options,
  size: "width",
  waives: [{ law: "starts at the base", because: 'compacter.md: "near-identity, **not** exactly identity at init"' }],
  defaults: serialDefaults,
  shared(sites, o, { rng, dtype }) {
    const shared = o.sharedPhmRule ? renamed(rules(o, rng, dtype), lower) : {};
    if (!o.sharedWPhm) return shared;
    const width = sites[0]!.out;
    const other = sites.find((site) => site.out !== width);
    if (other)
      throw new StrutError("option", `sharedWPhm needs sites of one width; ${sites[0]!.path} has ${width} and ${other.path} ${other.out}`, {
        path: "sharedWPhm",
      });
    const m = bottleneck(sites[0]!, o);
    return { ...shared, ...factors("down", width, m, o, rng.fork("down"), dtype), ...factors("up", m, width, o, rng.fork("up"), dtype) };
  },
  init(site, o, { rng, dtype }): Params {
    const m = bottleneck(site, o);
    const own = (prefix: "down" | "up", k: number, d: number): Params => ({
      ...(o.sharedWPhm ? {} : factors(prefix, k, d, o, rng.fork(prefix), dtype)),
      ...(o.sharedPhmRule ? {} : renamed(rules(o, rng.fork(`${prefix}/rule`), dtype), (key) => prefix + key)),
      [`${prefix}Bias`]: zeros([d], dtype),
    });
    return { ...own("down", site.out, m), ...own("up", m, site.out), ...norms(site.out, o, dtype) };
  },
  forward: (_x, y, p, _site, o, _live, shared) => serially(y, p, o, (h, way) => phm(h, layerOf(way, p, shared))),
  layout: { tensors: { linear: { ...snaked(names), ...normNames } }, shared: snaked(sharedNames), published, derived: true },
});
