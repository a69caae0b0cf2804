import { StrutError } from "../errors.ts";
import type { Observer, Site, Statistic } from "../nn/contracts.ts";
import {
  abs,
  contiguous,
  embedding,
  free,
  gemmInto,
  keep,
  mul,
  noGrad,
  Parameter,
  reshape,
  Rng,
  scale,
  scope,
  slice,
  stopGradient,
  tensor,
  transpose,
  zeros,
  type Tensor,
} from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import type { Prepared } from "./calibration.ts";
import { inChunks, RowMoments, widened, type Moments } from "./moments.ts";

/** What was collected at one site: a tensor for each statistic that was wanted, f64 but for `inputs`. */
export interface SiteStatistics extends Readonly<Partial<Record<Statistic, Tensor>>> {
  /** Rows that counted. */
  readonly rows: number;
  /** First site with the same input. Sites with one input have the same tensors, not copies. */
  readonly input: string;
}

export interface RecorderOptions {
  readonly wants: ReadonlySet<Statistic>;
  readonly products: "f64" | "f32";
  readonly inputRows: number;
  readonly inputSample: "reservoir" | "first";
  readonly seed: number;
}

/** Turns what an observer sees into statistics, batch after batch. */
export class Recorder {
  tokens = 0;
  sequences = 0;
  /** Labels that were scored. */
  scored = 0;
  readonly #options: RecorderOptions;
  readonly #inputs = new Map<string, { first: string; moments: RowMoments }>();
  readonly #gradients = new Map<string, RowMoments>();
  readonly #weightGradients = new Map<string, Tensor>();
  readonly #counts = new Map<string, Float64Array>();
  readonly #inputMoments: Moments;
  readonly #gradientMoments: Moments;

  constructor(options: RecorderOptions) {
    this.#options = options;
    const any = (...names: Statistic[]): boolean => names.some((name) => options.wants.has(name));
    const gram = (name: Statistic): Moments["gram"] => (options.wants.has(name) ? options.products : undefined);
    this.#inputMoments = { gram: gram("inputGram"), sums: any("inputMean", "inputAbsMean", "inputNorm") };
    this.#gradientMoments = { gram: gram("outputGradientGram"), sums: any("outputGradientMean", "outputGradientNorm") };
    this.wantsGradients = any("outputGradientGram", "outputGradientMean", "outputGradientNorm", "weightGradient", "weightTimesGradient");
    if (this.wantsGradients) this.#leaf = noGrad(() => new Parameter(zeros([1]), "statistics", true));
    this.#wantsWeights = any("weightGradient", "weightTimesGradient");
  }

  readonly #leaf: Parameter | undefined;
  readonly wantsGradients: boolean;
  readonly #wantsWeights: boolean;

  /** Notes one batch, when it starts. */
  begin({ tokens, rows, scored }: Prepared): void {
    this.tokens += tokens;
    this.sequences += rows;
    this.scored += scored;
  }

  /** What one pass of a batch is to be seen by. */
  observer(batch: Prepared, sees: (site: Site) => boolean): Observer {
    const seen = new Map<Tensor, RowMoments>();
    const held = new Map<string, Tensor>();
    const input = (site: Site, x: Tensor): void => {
      if (site.kind === "embedding") return this.#count(site, x, batch);
      if (this.#wantsWeights) held.set(site.path, x);
      const before = this.#inputs.get(site.path);
      const shared = seen.get(x);
      if (!shared) {
        const moments = before?.moments ?? new RowMoments(site.in, this.#momentsFor(site));
        seen.set(x, moments);
        noGrad(() => scope(() => moments.add(countedRows(site, x, site.in, batch))));
        if (!before) this.#inputs.set(site.path, { first: site.path, moments });
      } else if (!before)
        this.#inputs.set(
          site.path,
          [...this.#inputs.values()].find(({ moments }) => moments === shared)!,
        );
    };
    if (!this.wantsGradients) return { sees, input };
    const outputGradient = (site: Site, g: Tensor): void =>
      scope(() => {
        const rows = countedRows(site, g, site.out, batch);
        const moments = this.#gradients.get(site.path) ?? new RowMoments(site.out, this.#gradientMoments);
        this.#gradients.set(site.path, moments);
        moments.add(rows);
        if (this.#wantsWeights) this.#addWeightGradient(site, flat(g, site.out), flat(held.get(site.path)!, site.in));
      });
    return { sees, input, outputGradient, leaf: this.#leaf! };
  }

  #momentsFor(site: Site): Moments {
    const { wants, inputRows, inputSample, seed } = this.#options;
    if (!wants.has("inputs")) return this.#inputMoments;
    const draw = inputSample === "reservoir" ? { draw: new Rng(seed).fork(site.path) } : {};
    return { ...this.#inputMoments, sample: { rows: inputRows, ...draw } };
  }

  /** How often each row of a table is looked up; positions are looked up once a row of the batch. */
  #count(site: Site, ids: Tensor, { counts }: Prepared): void {
    const table = this.#counts.get(site.path) ?? new Float64Array(site.out);
    this.#counts.set(site.path, table);
    const values = hostView(contiguous(ids)) as Int32Array;
    for (let i = 0; i < counts.length; i++) table[values[i % values.length]!]! += counts[i]!;
  }

  /** Σ gᵀ·x over all rows, also those that do not count: their gradient is part of the weight's. */
  #addWeightGradient(site: Site, g: Tensor, x: Tensor): void {
    const total = this.#weightGradients.get(site.path) ?? keep(zeros([site.out, site.in], "f64"));
    this.#weightGradients.set(site.path, total);
    inChunks(g, (part, from) => gemmInto(total, transpose(widened(part)), widened(slice(x, 0, from, from + part.shape[0]!)), { beta: 1 }));
  }

  /** What was collected at some sites. */
  finish(sites: readonly Site[]): Map<string, SiteStatistics> {
    if (this.tokens === 0)
      throw new StrutError("data", "there was nothing to collect statistics from: no batch has a token that counts", {
        hint: "Give at least one batch, and check its mask.",
      });
    if (this.wantsGradients && this.scored === 0)
      throw new StrutError("data", "statistics of gradients need at least one scored label", { hint: "Check labels and mask of the batches." });
    const done = new Map<RowMoments, Partial<Record<Statistic, Tensor>>>();
    return new Map(sites.map((site): [string, SiteStatistics] => [site.path, this.#siteStatistics(site, done)]));
  }

  #siteStatistics(site: Site, done: Map<RowMoments, Partial<Record<Statistic, Tensor>>>): SiteStatistics {
    const { wants } = this.#options;
    const table = this.#counts.get(site.path);
    if (table) {
      const idCounts = keep(tensor(table, [table.length], "f64"));
      return { rows: table.reduce((sum, n) => sum + n, 0), input: site.path, ...(wants.has("idCounts") ? { idCounts } : {}) };
    }
    const { first, moments } = this.#inputs.get(site.path)!;
    const shared = done.get(moments) ?? pick(wants, moments, `the input of ${first}`, inputStatistics);
    done.set(moments, shared);
    const gradients = this.#gradients.get(site.path);
    return {
      rows: moments.rows,
      input: first,
      ...shared,
      ...(gradients ? pick(wants, gradients, `the gradient of ${site.path}'s output`, gradientStatistics) : {}),
      ...(this.#wantsWeights ? this.#weightStatistics(site) : {}),
    };
  }

  #weightStatistics(site: Site): Partial<Record<Statistic, Tensor>> {
    const { wants } = this.#options;
    return noGrad(() => {
      const total = this.#weightGradients.get(site.path)!;
      const weightGradient = keep(scale(total, 1 / this.scored));
      free(total);
      const weightTimesGradient = wants.has("weightTimesGradient")
        ? { weightTimesGradient: keep(scope(() => abs(mul(widened(contiguous(site.weight.toDense())), weightGradient)))) }
        : {};
      if (wants.has("weightGradient")) return { weightGradient, ...weightTimesGradient };
      free(weightGradient);
      return weightTimesGradient;
    });
  }
}

const inputStatistics = {
  inputGram: (m: RowMoments) => m.gram(),
  inputMean: (m: RowMoments) => m.mean(),
  inputAbsMean: (m: RowMoments) => m.absMean(),
  inputNorm: (m: RowMoments) => m.norm(),
  inputs: (m: RowMoments) => m.sample(),
};
const gradientStatistics = {
  outputGradientGram: (m: RowMoments) => m.gram(),
  outputGradientMean: (m: RowMoments) => m.mean(),
  outputGradientNorm: (m: RowMoments) => m.norm(),
};

function pick(wants: ReadonlySet<Statistic>, moments: RowMoments, what: string, all: Partial<Record<Statistic, (m: RowMoments) => Tensor>>) {
  moments.check(what);
  const wanted = Object.entries(all).filter(([name]) => wants.has(name as Statistic));
  return Object.fromEntries(wanted.map(([name, of]) => [name, of(moments)])) as Partial<Record<Statistic, Tensor>>;
}

/** The rows of x […, width] at a site that count; behind a pooling there is one for each row of the batch, and all count. */
export function countedRows(site: Site, x: Tensor, width: number, { places, counts, rows: batch }: Prepared): Tensor {
  if (x.shape.at(-1) !== width)
    throw new StrutError("shape", `${site.path} shows its observer a tensor of shape [${x.shape}], expected rows of ${width} features`, {
      hint: "A convolution shows its unfolded patches.",
    });
  const rows = flat(x, width);
  if (!places) return rows;
  if (rows.shape[0] !== counts.length && rows.shape[0] === batch) return rows;
  if (rows.shape[0] !== counts.length)
    throw new StrutError("shape", `${site.path} sees ${rows.shape[0]} rows where the mask has ${counts.length} tokens`, {
      hint: "Collect it from batches without a mask.",
    });
  return embedding(rows, tensor(places, [places.length], "i32"));
}

const flat = (x: Tensor, width: number): Tensor => reshape(contiguous(stopGradient(x)), [x.size / width, width]);
