import { z } from "zod";
import { StrutError } from "../errors.ts";
import { incrementalPca, type Pca } from "../linalg/index.ts";
import { cycled, type CalibrationBatch, type CalibrationBatches } from "../models/calibration.ts";
import { inputsOf } from "../models/statistics.ts";
import type { Site } from "../nn/contracts.ts";
import { yieldToEvents } from "../nn/events.ts";
import { free, tensor, zeros } from "../tensor/index.ts";
import { readEvaState } from "./eva-state.ts";
import { initializer, type Found, type Watched } from "./initializer.ts";

const options = z.object({
  rho: z.number().min(1).default(2).describe("a site's rank may be up to rho times its own; 1 leaves all as they are; defaults to 2"),
  tau: z.number().min(0).max(1).default(0.99).describe("a component has converged when one more batch turns it by a cosine of at least tau; defaults to 0.99"),
  maxBatches: z.int().positive().default(200).describe("batches that are read at most, again from the first if there are fewer; defaults to 200"),
  center: z.boolean().default(true).describe("principal components of the inputs less their mean, as PEFT has it; defaults to true"),
  svd: z.enum(["exact", "randomized"]).default("exact").describe("randomized has four passes, as PEFT has it, and is faster on wide layers; defaults to exact"),
  metric: z
    .enum(["ratio", "raw", "sum", "max"])
    .default("ratio")
    .describe(
      "what ranks are given for: the share of a layer's variance; the variance; its share of the components' sum, or of the largest; defaults to ratio",
    ),
  state: z.string().optional().describe("a file of saveEvaState's, read in place of batches; ranks are those of the file"),
  useLabelMask: z.boolean().default(true).describe("leave out positions whose label is labelMaskValue; defaults to true"),
  labelMaskValue: z.int().default(-100).describe("label of positions that are left out; defaults to -100"),
  whiten: z.boolean().default(false).describe("divide each component by the root of its singular value; defaults to false"),
  scaleBySingularValues: z.boolean().default(false).describe("multiply each component by its singular value over the largest; defaults to false"),
  adjustScalingFactors: z
    .boolean()
    .default(true)
    .describe("a site's alpha follows its rank, so that alpha / rank stays (with rsLoRA too, as PEFT has it); defaults to true"),
});
type Options = z.output<typeof options>;

export interface EvaFound extends Found {
  /** A of each site by path, row after row, of the largest rank that it may get. */
  readonly rows: ReadonlyMap<string, ArrayLike<number>>;
}

/** Sites with one input: the first in the model stands for all. */
interface Group {
  readonly sites: readonly Site[];
  readonly most: number;
  pca?: Pca;
  converged: readonly boolean[];
}

/** Python's round, which PEFT uses: a half goes to the even number. */
const roundHalfEven = (x: number): number => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

/** Shares of variance over all sites: the largest `budget` of them decide how many components each gets; of equal ones the first in the map. */
export function spreadRanks(shares: ReadonlyMap<string, readonly number[]>, budget: number): Map<string, number> {
  const all = [...shares].flatMap(([path, own]) => own.map((share) => [path, share] as const)).sort((a, b) => b[1] - a[1]);
  const ranks = new Map([...shares.keys()].map((path) => [path, 0]));
  for (const [path] of all.slice(0, budget)) ranks.set(path, ranks.get(path)! + 1);
  return ranks;
}

/** What each component counts for. */
function worth({ singularValues, ratios, rows }: Pca, metric: Options["metric"]): Float64Array {
  if (metric === "ratio") return ratios;
  const variances = singularValues.map((value) => value ** 2 / Math.max(1, rows - 1));
  if (metric === "raw") return variances;
  const whole = metric === "max" ? variances[0]! : variances.reduce((sum, x) => sum + x, 0);
  return variances.map((variance) => (whole > 0 ? variance / whole : 0));
}

/** Components as rows of A. */
function scaledComponents({ components, singularValues }: Pca, { whiten, scaleBySingularValues }: Options): Float64Array {
  const n = components.length / singularValues.length;
  const factor = (sigma: number): number => {
    if (whiten) return sigma > 0 ? 1 / Math.sqrt(sigma) : 0;
    return scaleBySingularValues && sigma > 0 ? sigma / singularValues[0]! : 1;
  };
  return components.map((value, at) => value * factor(singularValues[Math.floor(at / n)]!));
}

/** Cosine of each component with what it was; both are of length 1. */
const turns = (before: Pca, { components: now }: Pca, count: number): number[] => {
  const n = now.length / count;
  return Array.from({ length: count }, (_, i) => now.subarray(i * n, (i + 1) * n).reduce((sum, x, j) => sum + x * before.components[i * n + j]!, 0));
};

/** Batches with a mask that leaves out positions by their label. */
async function* unmasked(batches: CalibrationBatches, { useLabelMask, labelMaskValue }: Options): AsyncGenerator<CalibrationBatch> {
  for await (const batch of batches)
    yield useLabelMask && batch.labels
      ? { ...batch, mask: batch.labels.map((row, r) => Array.from(row, (label, t) => Number(label !== labelMaskValue && (batch.mask?.[r]?.[t] ?? 1) !== 0))) }
      : batch;
}

function refuse(sites: readonly Site[]): void {
  for (const { path, kind, conv } of sites)
    if (kind === "embedding" || (conv?.groups ?? 1) > 1)
      throw new StrutError(
        "targets",
        `eva needs the features that a layer reads, and ${path} is ${kind === "embedding" ? "an embedding" : "a grouped convolution"}`,
        {
          path: "targets",
          hint: "Leave this module out.",
        },
      );
}

function refuseStarved(groups: readonly Group[]): void {
  const starved = groups.find(({ pca }) => !pca);
  if (!starved) return;
  throw new StrutError("data", `eva: no batch has the ${starved.most} inputs of ${starved.sites[0]!.path} that its components need`, {
    path: "calibration",
    hint: "Give larger calibration batches, or a smaller r or rho.",
  });
}

/** Groups of sites with one input, each with room for the components that its largest rank may need. */
function grouped(inputs: readonly { readonly sites: readonly Site[] }[], rank: Watched["rank"], rho: number): Group[] {
  return inputs.map(({ sites }) => {
    const most = Math.min(sites[0]!.in, Math.max(...sites.map((site) => roundHalfEven(rank(site) * rho))));
    return { sites, most, converged: Array.from({ length: most }, () => false) };
  });
}

/** What the components of each site count for; the first of each group comes before all others, so that of equal shares it gets the rank. */
function shares(groups: readonly Group[], metric: Options["metric"]): Map<string, readonly number[]> {
  const of = ({ pca, most }: Group, { path, out, in: inner }: Site): [string, readonly number[]] => [
    path,
    [...worth(pca!, metric).subarray(0, Math.min(most, out, inner))],
  ];
  return new Map([...groups.map((group) => of(group, group.sites[0]!)), ...groups.flatMap((group) => group.sites.slice(1).map((site) => of(group, site)))]);
}

async function watch({ model, sites, batches, rank }: Watched, o: Options): Promise<EvaFound> {
  refuse(sites);
  if (o.state) return readEvaState(o.state, sites);
  if (!batches)
    throw new StrutError("data", "eva needs calibration batches, and there were none", { path: "calibration", hint: "Give adapt() `calibration` batches." });
  const budget = sites.reduce((sum, site) => sum + rank(site), 0);
  let groups: Group[] = [];
  let ranks = new Map<string, number>();
  const settled = ({ sites: [first], most, converged }: Group): boolean => converged.slice(0, ranks.get(first!.path) ?? most).every(Boolean);
  let read = 0;
  let open: Group[] = [];
  for await (const { batch, round } of cycled(unmasked(batches, o))) {
    open = groups.filter((group) => !settled(group));
    if ((groups.length > 0 && open.length === 0) || read++ === o.maxBatches) break;
    if (round > 0) refuseStarved(groups);
    const inputs = inputsOf(model, batch, groups.length > 0 ? open.map(({ sites: [first] }) => first!) : sites);
    if (groups.length === 0) groups = grouped(inputs, rank, o.rho);
    for (const { rows, sites: seen } of inputs) {
      const group = groups.find(({ sites: [first] }) => first === seen[0])!;
      if (rows.shape[0]! >= group.most) {
        const pca = await incrementalPca(group.pca, rows, { components: group.most, center: o.center, method: o.svd });
        if (group.pca) group.converged = turns(group.pca, pca, group.most).map((cosine) => cosine >= o.tau);
        group.pca = pca;
      }
      free(rows);
      await yieldToEvents();
    }
    if (groups.every(({ pca }) => pca)) ranks = spreadRanks(shares(groups, o.metric), budget);
  }
  if (groups.length === 0) throw new StrutError("data", "eva was given no calibration batch", { path: "calibration", hint: "Give batches of the task." });
  refuseStarved(groups);
  const rows = new Map(groups.flatMap(({ sites: own, pca }) => own.map(({ path }) => [path, scaledComponents(pca!, o)] as const)));
  const turning = open.filter((group) => !settled(group));
  const warnings =
    turning.length > 0 && read > o.maxBatches
      ? [`eva: after ${o.maxBatches} batches components of ${turning.map(({ sites: [first] }) => first!.path).join(", ")} still turn by more than tau allows`]
      : [];
  return { ranks, warnings, rows };
}

/**
 * EVA: A = leading principal components of a site's inputs, B = 0; ranks go where components explain most variance. Components are updated
 * batch by batch until no more turns them, layer by layer. Paischer et al. 2024, arXiv:2410.07170; file and defaults as in PEFT.
 *
 * @example
 * const calibration = [{ ids: [[1, 403, 407, 261, 378, 432, 290, 401]] }];
 * const tuned = await adapt(model, lora, { r: 2 }, { initializer: { method: eva, options: { rho: 1 } }, calibration });
 */
export const eva = initializer<typeof options, EvaFound>({
  id: "eva",
  title: "EVA",
  paper: "arXiv:2410.07170",
  options,
  starts: "factors",
  watch,
  start: (site, rank, _o, { dtype, found }) => ({
    A: tensor(Array.from(found.rows.get(site.path)!).slice(0, rank * site.in), [rank, site.in], dtype),
    B: zeros([site.out, rank], dtype),
  }),
  keepsScale: (o) => o.adjustScalingFactors,
  config: (o) => ({
    init_lora_weights: "eva",
    eva_config: {
      rho: o.rho,
      tau: o.tau,
      use_label_mask: o.useLabelMask,
      label_mask_value: o.labelMaskValue,
      whiten: o.whiten,
      adjust_scaling_factors: o.adjustScalingFactors,
    },
  }),
});
