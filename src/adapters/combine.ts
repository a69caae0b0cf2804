import { StrutError } from "../errors.ts";
import { layerAt, type Model } from "../models/model.ts";
import { dense, lowRank, sumOf, toLowRank, type LinearOperator } from "../operators/index.ts";
import {
  abs,
  add,
  concat,
  copyOf,
  div,
  equal,
  full,
  globalMasks,
  greater,
  maximum,
  minimum,
  mul,
  noGrad,
  norm,
  Parameter,
  quantile,
  reshape,
  Rng,
  scale,
  scope,
  sign,
  type Real,
  type Tensor,
} from "../tensor/index.ts";
import { required } from "./adapt.ts";
import type { AttachedAdapter } from "./attach.ts";
import { attachFactors, deltaAt, type Factors } from "./to-lora.ts";

const onFactors = ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"] as const;
const onUpdates = ["svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"] as const;
export const combinations = ["cat", ...onFactors, ...onUpdates] as const;
export type Combination = (typeof combinations)[number];

export interface CombineOptions {
  /** Name of the new adapter. */
  as: string;
  /** How, by PEFT's name; defaults to "cat", which is the exact weighted sum. */
  type?: Combination;
  /** Share of entries that ties, dare and magnitude_prune keep. */
  density?: number;
  /** How ties elects a sign: by sums or by counts; defaults to "total". */
  majoritySign?: "total" | "frequency";
  /** Rank of an svd combination; defaults to the largest among the inputs. */
  rank?: number;
  /** Quantile at which svd factors are clipped; defaults to none. */
  clamp?: number;
  /** Of the entries that dare drops; defaults to 0. */
  seed?: number;
  /** Which entries dare keeps, 1 or 0; `of` names site, factor and adapter. Defaults to random ones from the seed. */
  mask?: (of: { path: string; part: "A" | "B" | "delta"; adapter: string }, shape: readonly number[]) => Tensor;
}

/** One of the tensors that are combined, with its weight. */
interface Task {
  readonly value: Tensor;
  readonly weight: number;
  readonly adapter: string;
}

type Keep = (task: Task) => Tensor;

const weighted = (tasks: readonly Task[]): Tensor => tasks.map(({ value, weight }) => scale(value, weight)).reduce((total, x) => add(total, x));

/** Largest entries by magnitude, ties to earlier places. */
const largest = (x: Tensor, density: number): Tensor => (density >= 1 ? x : mul(x, globalMasks([abs(x)], Math.floor(density * x.size))[0]!));

/** Entries of the elected sign, weighted, over how many there are (Yadav et al. 2023, arXiv:2306.01708). A sum of 0 counts as positive. */
function elected(tasks: readonly Task[], majoritySign: "total" | "frequency"): Tensor {
  const votes = tasks.map(({ value }) => (majoritySign === "total" ? value : sign(value))).reduce((total, x) => add(total, x));
  const positive = minimum(add(sign(votes), full([1], 1, votes.dtype)), full([1], 1, votes.dtype)); // 1 where votes ≥ 0, else 0
  const elect = add(scale(positive, 2), full([1], -1, votes.dtype));
  const agree = tasks.map(({ value }) => equal(sign(value), elect));
  const total = tasks.map(({ value, weight }, i) => scale(mul(value, agree[i]!), weight)).reduce((all, x) => add(all, x));
  return div(
    total,
    maximum(
      agree.reduce((all, x) => add(all, x)),
      full([1], 1, votes.dtype),
    ),
  );
}

function combined(type: string, tasks: readonly Task[], { density = 1, majoritySign = "total" }: CombineOptions, keep: Keep): Tensor {
  const pruned = (): Task[] => tasks.map((task) => ({ ...task, value: largest(task.value, density) }));
  const dropped = (): Task[] => tasks.map((task) => ({ ...task, value: density >= 1 ? task.value : scale(mul(task.value, keep(task)), 1 / density) }));
  if (type.startsWith("ties")) return elected(pruned(), majoritySign);
  if (type.startsWith("dare_ties")) return elected(dropped(), majoritySign);
  if (type.startsWith("dare_linear")) return weighted(dropped());
  return weighted(type.startsWith("magnitude_prune") ? pruned() : tasks);
}

/** B and A of a LoRA at a site as matrices, whatever its kind. */
function factorsAt(model: Model, set: AttachedAdapter, path: string): Factors & { scale: number } {
  const { update } = deltaAt(layerAt(model, path), set);
  if (update.kind === "low-rank") return update as ReturnType<typeof lowRank>;
  throw new StrutError("combine", `adapter ${set.name} at ${path} is no low-rank update but ${update.kind}, so its factors cannot be combined`, {
    path,
    hint: "Use one of the svd combinations, or convert it to a LoRA first.",
  });
}

function checkOptions(type: Combination, adapters: readonly string[], weights: readonly number[], { density, clamp }: CombineOptions): void {
  const wrong = (message: string, path: string): never => {
    throw new StrutError("option", message, { path });
  };
  if (adapters.length === 0 || adapters.length !== weights.length)
    wrong(`${adapters.length} adapters and ${weights.length} weights: there must be one weight for each adapter`, "weights");
  if (!weights.every(Number.isFinite)) wrong(`the weights ${weights.join(", ")} must be finite numbers`, "weights");
  if (!combinations.includes(type)) wrong(`there is no combination ${JSON.stringify(type)}; there are ${combinations.join(", ")}`, "type");
  const prunes = /ties|dare|magnitude/.test(type);
  if (prunes && !(density !== undefined && density > 0 && density <= 1)) wrong(`${type} needs a density above 0 and up to 1, not ${density}`, "density");
  if (clamp !== undefined && !(clamp > 0 && clamp <= 1)) wrong(`clamp is ${clamp}; it is a quantile, above 0 and up to 1`, "clamp");
}

/**
 * Several adapters as one new LoRA, by PEFT's combinations. `cat` and `svd` (with enough rank) are the weighted sum of the updates;
 * `linear` and its kin combine A and B apart, as PEFT does, so cross terms appear. The scale of the result is 1: where PEFT keeps
 * an rsLoRA's setting and is √r off, this is not. A module that an adapter lacks gets nothing from it.
 *
 * @example
 * const two = await adapt(await adapt(model, lora, {}, { name: "poems" }), lora, {}, { name: "letters" });
 * const both = await combine(two, ["poems", "letters"], [0.7, 0.3], { as: "both", type: "svd", rank: 8 });
 */
export async function combine(model: Model, adapters: readonly string[], weights: readonly number[], options: CombineOptions): Promise<Model> {
  const { as, seed = 0, clamp } = options;
  const wanted = options.type ?? "cat";
  checkOptions(wanted, adapters, weights, options);
  const type = adapters.length === 1 ? "linear" : wanted; // PEFT: one adapter is always linear
  const sets = adapters.map((name) => required(model, name));
  const paths = model.sites.map(({ path }) => path).filter((path) => sets.some(({ entries }) => entries.has(path)));
  const rng = new Rng(seed);
  const keepAt =
    (path: string, part: "A" | "B" | "delta"): Keep =>
    ({ adapter, value }) =>
      options.mask?.({ path, part, adapter }, value.shape) ?? coins(rng.fork(`${path}/${part}/${adapter}`), value.shape, options.density!, value.dtype as Real);
  const factors = new Map<string, Factors>();
  for (const path of paths) {
    const here = sets.map((set, i) => ({ set, weight: weights[i]! })).filter(({ set }) => set.entries.has(path));
    const held = (value: Tensor): Tensor => new Parameter(copyOf(value), path, false);
    await noGrad(() =>
      scope(async () => {
        const { B, A } = (onUpdates as readonly string[]).includes(type) ? await ofUpdates(path) : ofFactors(path);
        factors.set(path, { B: held(B), A: held(A) });
      }),
    );
    async function ofUpdates(at: string): Promise<Factors> {
      const tasks = here.map(({ set, weight }) => ({ update: deltaAt(layerAt(model, at), set).update, weight, adapter: set.name }));
      const most = Math.min(tasks[0]!.update.out, tasks[0]!.update.in);
      const rank = Math.min(options.rank ?? Math.max(...here.map(({ set }) => rankOf(set, at, most))), most);
      const total =
        type === "svd"
          ? tasks.map(({ update, weight }) => times(update, weight)).reduce(sumOf)
          : dense(
              combined(
                type,
                tasks.map(({ update, ...task }) => ({ ...task, value: update.toDense() })),
                options,
                keepAt(at, "delta"),
              ),
            );
      const { operator } = await toLowRank(total, rank);
      return clamp === undefined ? operator : clipped(operator, clamp);
    }
    function ofFactors(at: string): Factors {
      const parts = here.map(({ set, weight }) => ({ ...factorsAt(model, set, at), weight, adapter: set.name }));
      if (type === "cat")
        return {
          B: concat(
            parts.map(({ B }) => B),
            1,
          ),
          A: concat(
            parts.map(({ A, weight, scale: s }) => scale(A, weight * s)),
            0,
          ),
        };
      const [first] = parts;
      if (parts.some(({ A }) => A.shape[0] !== first!.A.shape[0]))
        throw new StrutError("combine", `${type} needs adapters of one rank, at ${at} they have ${parts.map(({ A }) => A.shape[0]).join(" and ")}`, {
          path: at,
          hint: 'Use "cat", or one of the svd combinations.',
        });
      // √|w·s| on both factors, the sign on A alone
      const tasks = (part: "A" | "B"): Task[] =>
        parts.map((own) => ({
          value: own[part],
          adapter: own.adapter,
          weight: Math.sqrt(Math.abs(own.weight * own.scale)) * (part === "A" && own.weight * own.scale < 0 ? -1 : 1),
        }));
      return { A: combined(type, tasks("A"), options, keepAt(at, "A")), B: combined(type, tasks("B"), options, keepAt(at, "B")) };
    }
  }
  return attachFactors(model, as, factors);
}

const times = (operator: LinearOperator, factor: number): LinearOperator => {
  if (operator.kind !== "low-rank") return dense(scale(operator.toDense(), factor));
  const { B, A, scale: own } = operator as ReturnType<typeof lowRank>;
  return lowRank(B, A, own * factor);
};

function rankOf(set: AttachedAdapter, path: string, most: number): number {
  const r = (set.siteOptions.get(path) ?? set.options)["r"];
  return typeof r === "number" ? Math.min(r, most) : most;
}

/** U·S and Vh with both clipped at a quantile of all their numbers. */
function clipped({ B, A }: Factors, clamp: number): Factors {
  const roots = norm(B, { axes: [0] });
  const [up, down] = [mul(B, roots), div(A, maximum(reshape(roots, [roots.size, 1]), full([1], 1e-30, A.dtype)))];
  const most = quantile(concat([reshape(up, [-1]), reshape(down, [-1])]), clamp);
  const clip = (x: Tensor): Tensor => maximum(minimum(x, most), scale(most, -1));
  return { B: clip(up), A: clip(down) };
}

/** 1 with the given probability, else 0. */
const coins = (rng: Rng, shape: readonly number[], probability: number, dtype: Real): Tensor =>
  greater(full([1], 2 * probability - 1, dtype), rng.uniform(shape, 1, dtype));
