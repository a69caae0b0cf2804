import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Task } from "../nn/contracts.ts";
import {
  cast,
  contiguous,
  globalMasks,
  hostNumbers,
  indexSelect,
  mul,
  noGrad,
  Parameter,
  Rng,
  scope,
  tensor,
  transpose,
  type Tensor,
} from "../tensor/index.ts";
import type { CalibrationBatches } from "./calibration.ts";
import { largestPlaces } from "./largest.ts";
import { layerAt, makeLayer, makeModel, type CoupledGroup, type Layer, type Model } from "./model.ts";
import { coupledGroups, unitsLeft, withPruned } from "./pruned-config.ts";
import { inverseFactor, sparseGpt } from "./sparsegpt.ts";
import { collectStatistics } from "./statistics.ts";

/** The neurons and the heads (with grouped queries key/value heads) that a model keeps, in their order, by the depth of their block; blocks that are not named stay whole. */
export type Kept = Readonly<Record<CoupledGroup["kind"], ReadonlyMap<number, Int32Array>>>;

/** Rows or columns of a matrix, in their order. */
export interface Lines {
  readonly side: "out" | "in";
  readonly index: Int32Array;
}

export const pruneOptions = z.object({
  variant: z
    .enum(["stru", "rand", "semi", "unst"])
    .default("stru")
    .describe(
      "what goes: stru, whole neurons and heads by first-order importance |W ⊙ ∂L/∂W|; rand, as many at random; semi, two of every four entries of a row, and unst, a share of each matrix, by the criterion: these two only put zeros there, so they save no memory and no time; defaults to stru",
    ),
  criterion: z
    .enum(["sparsegpt", "taylor"])
    .default("sparsegpt")
    .describe(
      "how semi and unst choose entries: sparsegpt, by what the layer's output loses, with the other entries of the row moved to make up for it; taylor, by |W ⊙ ∂L/∂W|, the others as they were; defaults to sparsegpt",
    ),
  ratio: z
    .number()
    .min(0)
    .lt(1)
    .default(0.5)
    .describe("share of neurons and key/value heads, or of entries for unst, that goes; semi is always half; defaults to 0.5"),
  untouched: z.tuple([z.int().nonnegative(), z.int().nonnegative()]).default([1, 1]).describe("first and last blocks that stay whole; defaults to [1, 1]"),
  seed: z.int().nonnegative().default(0).describe("of a random choice; defaults to 0"),
});
export type PruneOptions = z.input<typeof pruneOptions> & {
  calibration?: CalibrationBatches;
  /** The loss of calibration batches that have `inputs`. */
  task?: Task;
};
type Parsed = z.output<typeof pruneOptions>;

/** The groups of a model that can be cut; a sentence where there are none. */
export function groupsOf(model: Model): CoupledGroup[] {
  if (model.architecture.coupled) return coupledGroups(model);
  throw new StrutError("model", `a ${model.architecture.modelType} model cannot be pruned this way`, { hint: "Use a llama or gpt2 model." });
}

/** The lines of every matrix that a choice of neurons and heads keeps, by path. */
export function keptLines(model: Model, kept: Kept): Map<string, Lines> {
  return new Map(
    groupsOf(model).flatMap(({ kind, depth, units, members }) => {
      const chosen = kept[kind].get(depth);
      if (!chosen) return [];
      if (chosen.some((unit, i) => !(unit >= 0 && unit < units && (i === 0 || unit > chosen[i - 1]!))))
        throw new StrutError("model", `the ${kind} that block ${depth} keeps must rise and lie below ${units}`, { hint: "They were chosen on another model." });
      return members.map(({ path, side, size, roles }): [string, Lines] => {
        const index = roles.flatMap((_, part) =>
          Array.from(chosen).flatMap((unit) => Array.from({ length: size }, (__, i) => (part * units + unit) * size + i)),
        );
        return [path, { side, index: Int32Array.from(index) }];
      });
    }),
  );
}

/** What each unit of a group adds up to: the scores (out×in) of its lines in those members whose role counts. */
export function unitScores({ units, members }: CoupledGroup, scoresOf: (path: string) => Tensor, counts: (role: string) => boolean = () => true): Float64Array {
  const total = new Float64Array(units);
  for (const { path, side, size, roles } of members) {
    if (!roles.some(counts)) continue;
    const scores = scoresOf(path);
    const [values, cols] = [hostNumbers(scores) as Float64Array, scores.shape[1]!];
    values.forEach((value, at) => {
      const line = side === "out" ? Math.floor(at / cols) : at % cols;
      if (counts(roles[Math.floor(line / (units * size))]!)) total[Math.floor(line / size) % units]! += value;
    });
  }
  return total;
}

const ids = (index: Int32Array): Tensor => tensor(index, [index.length], "i32");

function cut(layer: Layer, { side, index }: Lines): Layer {
  const { spec } = layer;
  return noGrad(() => {
    const leaf = (value: Tensor, kind: string): Parameter => new Parameter(value, `${spec.path}.${kind}`, false);
    const weight = indexSelect(layer.weight, (side === "out") === (spec.transposed ?? false) ? 1 : 0, ids(index));
    const bias = layer.bias && side === "out" ? leaf(indexSelect(layer.bias, 0, ids(index)), "bias") : layer.bias;
    const shape = side === "out" ? [index.length, spec.shape[1]!] : [spec.shape[0]!, index.length];
    return makeLayer({ ...spec, shape }, leaf(weight, "weight"), bias);
  });
}

/**
 * The model with only what is kept: smaller matrices, and a config.json that says so (`pruned_mlp_interval`, `pruned_mlp_ratio`,
 * `pruned_attn_interval`, `pruned_attn_ratio`), so that it can be saved and loaded. Adapters are left behind.
 *
 * @example
 * const small = pruneModel(base, await chooseKept(base, { ratio: 0.5, variant: "rand" }));
 */
export function pruneModel(model: Model, kept: Kept): Model {
  const lines = keptLines(model, kept);
  const layers = new Map([...model.layers].map(([path, layer]) => [path, lines.has(path) ? cut(layer, lines.get(path)!) : { ...layer, attached: [] }]));
  const left = groupsOf(model).map((group) => ({ ...group, units: kept[group.kind].get(group.depth)?.length ?? group.units }));
  return makeModel({ ...model, layers, config: withPruned(model, left), adapters: new Map(), active: [] });
}

/** Calibration batches and the loss of those that have `inputs`. */
interface Seen {
  readonly calibration: CalibrationBatches;
  readonly task: Task | undefined;
}

/** The options, and the groups of the blocks that are not left whole. */
function choice(model: Model, { calibration, task, ...given }: PruneOptions): { options: Parsed; groups: CoupledGroup[]; seen: Seen } {
  const options = parsed(given);
  const { depth } = model.dimensions;
  const [first, last] = options.untouched;
  const groups = groupsOf(model).filter((group) => group.depth >= first && group.depth < depth - last);
  if (!calibration && options.variant !== "rand" && groups.length > 0)
    throw new StrutError("data", "the importance of neurons, heads and entries needs calibration batches", {
      path: "calibration",
      hint: 'Give them, or choose the variant "rand".',
    });
  return { options, groups, seen: { calibration: calibration ?? [], task } };
}

const pathsOf = (groups: readonly CoupledGroup[]): string[] => [...new Set(groups.flatMap(({ members }) => members.map(({ path }) => path)))];

/** |W ⊙ ∂L/∂W| [out, in] of each matrix in these groups. */
async function taylor(model: Model, groups: readonly CoupledGroup[], { calibration, task }: Seen): Promise<(path: string) => Tensor> {
  const { sites } = await collectStatistics(model, calibration, { wants: ["weightTimesGradient"], sites: pathsOf(groups), ...(task ? { task } : {}) });
  return (path) => sites.get(path)!.weightTimesGradient!;
}

function parsed(given: z.input<typeof pruneOptions>): Parsed {
  const result = pruneOptions.safeParse(given);
  if (result.success) return result.data;
  const { path, message } = result.error.issues[0]!;
  throw new StrutError("option", `${path.join(".")} is ${JSON.stringify(given[path[0] as "ratio"])}: ${message}`, { path: path.join(".") });
}

/**
 * What a structured pruning keeps: neurons of each MLP and heads with what reads them, the least important gone. Stage P of LoRAM
 * (Zhang et al. 2025, arXiv:2502.13533); the importance of a unit is Σ|W ⊙ ∂L/∂W| over all of its lines, as in LLM-Pruner.
 *
 * @example
 * const kept = await chooseKept(base, { ratio: 0.5, variant: "rand" });
 */
export async function chooseKept(model: Model, given: PruneOptions): Promise<Kept> {
  const { options, groups, seen } = choice(model, given);
  const { variant, ratio, seed } = options;
  if (variant === "semi" || variant === "unst")
    throw new StrutError("option", `the variant ${variant} keeps every row and column`, { path: "variant", hint: "Use prune() for it, or stru or rand here." });
  const kept = { neurons: new Map<number, Int32Array>(), heads: new Map<number, Int32Array>() };
  if (groups.length === 0) return kept;
  const importance = variant === "rand" ? undefined : await taylor(model, groups, seen);
  for (const group of groups) {
    const { kind, depth, units } = group;
    const left = unitsLeft(kind, units, ratio);
    if (left === 0) throw new StrutError("option", `ratio ${ratio} leaves none of ${units} ${kind}`, { path: "ratio", hint: "Choose a smaller one." });
    const scores = importance ? unitScores(group, importance) : new Rng(seed).fork(`prune/${kind}/${depth}`).permutation(units);
    kept[kind].set(depth, Int32Array.from(largestPlaces(scores, left)));
  }
  return kept;
}

/** A base that was made small, or sparse in its old shapes. */
export interface Pruned {
  readonly model: Model;
  readonly kept: Kept;
  /** Entries are zero; nothing was cut. */
  readonly sparse: boolean;
}

const nothing: Kept = { neurons: new Map(), heads: new Map() };

/**
 * A smaller or sparser model to train an adapter on, and what it keeps of the rows and columns: all of them for semi and unst, which put
 * zeros into matrices of the same shape, so that they save no memory and no time. The zeros are SparseGPT's, block after block
 * (Frantar & Alistarh 2023, arXiv:2301.00774).
 *
 * @example
 * const { model: small, kept } = await prune(base, { ratio: 0.5, variant: "rand" });
 */
export async function prune(model: Model, given: PruneOptions = {}): Promise<Pruned> {
  const { variant = "stru" } = given;
  if (variant === "stru" || variant === "rand") {
    const kept = await chooseKept(model, given);
    return { model: pruneModel(model, kept), kept, sparse: false };
  }
  const { options, groups, seen } = choice(model, given);
  const sparse = groups.length === 0 ? withMatrices(model, [], (_, W) => W) : await zeroEntries(model, groups, seen, options);
  return { model: sparse, kept: nothing, sparse: true };
}

/** The model with zeros in the matrices of these groups. */
async function zeroEntries(model: Model, groups: readonly CoupledGroup[], seen: Seen, { variant, ratio, criterion }: Parsed): Promise<Model> {
  const sites = pathsOf(groups);
  if (criterion === "taylor") {
    const importance = await taylor(model, groups, seen);
    const masked = (path: string): Tensor => (variant === "semi" ? halfOfFours(importance(path)) : largestEntries(importance(path), ratio));
    return withMatrices(model, sites, (path, W) => mul(W, cast(masked(path), W.dtype)));
  }
  let made = model;
  // each block sees what comes out of the blocks that have their zeros already
  await collectStatistics(model, seen.calibration, {
    wants: ["inputGram"],
    sites,
    stream: "compensated",
    replace: (block, before) =>
      scope(() => {
        const grams = new Set([...block.sites.values()].map(({ inputGram }) => inputGram!));
        const factors = new Map([...grams].map((gram) => [gram, inverseFactor(gram)]));
        const factorAt = (path: string): Tensor => factors.get(block.sites.get(path)!.inputGram!)!;
        const sparsity = variant === "semi" ? "2:4" : { share: ratio };
        return (made = withMatrices(before, [...block.sites.keys()], (path, W) => sparseGpt(W, factorAt(path), sparsity)));
      }),
  });
  return made;
}

/** The model with other matrices [out, in] at these paths. Adapters are left behind. */
function withMatrices(model: Model, sites: readonly string[], replaced: (path: string, W: Tensor) => Tensor): Model {
  const layers = new Map(model.layers);
  for (const path of sites) {
    const { spec, weight, bias } = layerAt(model, path);
    const turn = (x: Tensor): Tensor => (spec.transposed ? transpose(x) : x);
    const value = noGrad(() => scope(() => contiguous(turn(replaced(path, turn(weight))))));
    layers.set(path, makeLayer(spec, new Parameter(value, `${path}.weight`, false), bias));
  }
  return makeModel({ ...model, layers, adapters: new Map(), active: [] });
}

/** 1 at the two largest of every four entries of a row (of what is left at its end the larger half), else 0. */
function halfOfFours(scores: Tensor): Tensor {
  const [values, cols] = [hostNumbers(scores) as Float64Array, scores.shape[1]!];
  const mask = new Float32Array(values.length);
  for (let row = 0; row < values.length; row += cols)
    for (let at = 0; at < cols; at += 4) {
      const four = values.subarray(row + at, row + Math.min(at + 4, cols));
      for (const place of largestPlaces(four, Math.ceil(four.length / 2))) mask[row + at + place] = 1;
    }
  return tensor(mask, scores.shape);
}

/** 1 at the largest entries of a matrix, 0 at the share that goes. */
function largestEntries(scores: Tensor, share: number): Tensor {
  const left = scores.size - Math.round(share * scores.size);
  return left === scores.size ? tensor(new Float32Array(left).fill(1), scores.shape) : globalMasks([scores], left)[0]!;
}
