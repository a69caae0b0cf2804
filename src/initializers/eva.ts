import { z } from "zod";
import { StrutError } from "../errors.ts";
import { eigh } from "../linalg/index.ts";
import type { SiteStatistics } from "../models/recorder.ts";
import type { Site } from "../nn/contracts.ts";
import {
  cast,
  copyOf,
  hostNumbers,
  indexSelect,
  keep,
  matmul,
  mul,
  reshape,
  scale,
  slice,
  sub,
  tensor,
  transpose,
  zeros,
  type Tensor,
} from "../tensor/index.ts";
import { initializer } from "./initializer.ts";

const options = z.object({
  rho: z.number().min(1).default(2).describe("a site's rank may be up to rho times the mean; 1 leaves all alike; defaults to 2"),
  center: z.boolean().default(true).describe("principal components of the inputs less their mean, as PEFT has it; defaults to true"),
  whiten: z.boolean().default(false).describe("divide each component by its standard deviation; defaults to false"),
  adjustScalingFactors: z.boolean().default(true).describe("a site's alpha follows its rank, so that alpha / rank stays; defaults to true"),
});
type Options = z.output<typeof options>;

interface Components {
  /** Eigenvectors of the inputs' second moment, one a row, largest first; signs so that the largest entry is positive. */
  readonly rows: Tensor;
  readonly variances: readonly number[];
}

const known = new WeakMap<Tensor, Map<boolean, Promise<Components>>>();

/** Principal components of a site's inputs, from its Gram; sites with one input share them. */
function componentsOf({ inputGram, inputMean, rows }: SiteStatistics, center: boolean): Promise<Components> {
  const of = known.get(inputGram!) ?? new Map<boolean, Promise<Components>>();
  known.set(inputGram!, of);
  if (!of.has(center)) of.set(center, decompose(inputGram!, center ? inputMean! : undefined, rows));
  return of.get(center)!;
}

async function decompose(gram: Tensor, mean: Tensor | undefined, count: number): Promise<Components> {
  const n = gram.shape[0]!;
  const second = scale(cast(gram, "f64"), 1 / Math.max(1, count));
  const column = mean && reshape(cast(mean, "f64"), [n, 1]);
  // its vectors have their largest entry positive
  const { eigenvalues, eigenvectors } = await eigh(column ? sub(second, matmul(column, transpose(column))) : second);
  const falling = tensor(
    Int32Array.from({ length: n }, (_, i) => n - 1 - i),
    [n],
    "i32",
  );
  const variances = Array.from(hostNumbers(eigenvalues) as Float64Array, (value) => Math.max(0, value)).reverse();
  return { rows: keep(copyOf(indexSelect(transpose(eigenvectors), 0, falling))), variances };
}

/** Shares of each site's variance, over all sites: the largest `budget` of them decide how many components each gets. */
export function spreadRanks(shares: ReadonlyMap<string, readonly number[]>, budget: number): Map<string, number> {
  const all = [...shares].flatMap(([path, own]) => own.map((share) => [path, share] as const)).sort((a, b) => b[1] - a[1]);
  const ranks = new Map([...shares.keys()].map((path) => [path, 0]));
  for (const [path] of all.slice(0, budget)) ranks.set(path, ranks.get(path)! + 1);
  return ranks;
}

function enough(site: Site, { rows }: SiteStatistics, rank: number): void {
  if (rows >= rank) return;
  throw new StrutError("data", `eva: ${rows} inputs of ${site.path} cannot give ${rank} components`, { hint: "Give more calibration batches." });
}

/**
 * EVA: A = leading principal components of a site's inputs, B = 0; ranks go where components explain most variance. Paischer et al. 2024,
 * arXiv:2410.07170. Components come from the whole Gram matrix in f64, where the authors update a truncated SVD batch by batch.
 *
 * @example
 * const calibration = [{ ids: [[1, 403, 407, 261, 378, 432, 290, 401]] }];
 * const tuned = await adapt(model, lora, { r: 2 }, { initializer: { method: eva, options: { rho: 1 } }, calibration });
 */
export const eva = initializer({
  id: "eva",
  title: "EVA",
  paper: "arXiv:2410.07170",
  options,
  needs: ["inputGram", "inputMean"],
  async start(site, rank, o: Options, { dtype, statistics }) {
    enough(site, statistics, rank);
    const { rows, variances } = await componentsOf(statistics, o.center);
    const A = slice(rows, 0, 0, rank);
    const weights = tensor(
      variances.slice(0, rank).map((variance) => (variance > 0 ? 1 / Math.sqrt(variance * statistics.rows) : 0)),
      [rank, 1],
      "f64",
    );
    return { A: copyOf(cast(o.whiten ? mul(A, weights) : A, dtype)), B: zeros([site.out, rank], dtype) };
  },
  async allocate(sites, rank, o, statistics) {
    const shares = new Map<string, readonly number[]>();
    for (const site of sites) {
      const { variances } = await componentsOf(statistics.get(site.path)!, o.center);
      const total = variances.reduce((sum, x) => sum + x, 0);
      const most = Math.min(Math.round(rank * o.rho), site.out, site.in);
      shares.set(
        site.path,
        variances.slice(0, most).map((variance) => (total > 0 ? variance / total : 0)),
      );
    }
    return spreadRanks(shares, rank * sites.length);
  },
  keepsScale: (o) => o.adjustScalingFactors,
  config: (o) => ({
    init_lora_weights: "eva",
    eva_config: { rho: o.rho, tau: 0.99, use_label_mask: true, label_mask_value: -100, whiten: o.whiten, adjust_scaling_factors: o.adjustScalingFactors },
  }),
});
