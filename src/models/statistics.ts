import { nearest, StrutError } from "../errors.ts";
import type { Awaitable, Observer, Run, Site, Statistic, Task } from "../nn/contracts.ts";
import { yieldToEvents } from "../nn/events.ts";
import { backward, copyOf, crossEntropy, free, full, keep, linearCrossEntropy, noGrad, reshape, scope, stopGradient, type Tensor } from "../tensor/index.ts";
import { prepared, type CalibrationBatches, type Prepared } from "./calibration.ts";
import { applyLinear, hidden, plainWeight, type Model } from "./model.ts";
import { countedRows, Recorder, type SiteStatistics } from "./recorder.ts";

/** What a calibration pass collected. */
export interface Statistics {
  /** Tokens that counted, and the rows of the batches. */
  readonly tokens: number;
  readonly sequences: number;
  /** By site path. */
  readonly sites: ReadonlyMap<string, SiteStatistics>;
}

export interface StatisticsProgress {
  /** Batches and tokens seen so far; in the compensated stream, of this block. */
  readonly batches: number;
  readonly tokens: number;
  /** The block under way, in the compensated stream. */
  readonly block?: number;
}

export interface StatisticsOptions {
  /**
   * inputGram Σxᵀx [in, in] · inputMean, inputAbsMean, inputNorm √Σx² [in] · inputs, rows as they were · idCounts, look-ups of
   * each row of an embedding · outputGradientGram, -Mean, -Norm, of ∂/∂y of the summed loss · weightGradient ∂/∂W [out, in] of
   * the mean loss over all scored tokens · weightTimesGradient |W ⊙ weightGradient|.
   */
  readonly wants: readonly Statistic[];
  /** Paths, or a choice. Defaults to every linear layer but the head, and to embeddings if idCounts are wanted. */
  readonly sites?: readonly string[] | ((site: Site) => boolean);
  /**
   * Whose inputs are seen: the model's; a teacher's at the same paths; or, block by block, those that come out of the blocks
   * that `replace` has compressed already. Defaults to the model's.
   */
  readonly stream?: "original" | "compensated" | "teacher";
  readonly teacher?: Model;
  /**
   * For the compensated stream: gets a block's statistics, and gives the model to go on with. Between blocks one hidden state
   * a batch is kept, which is all that grows with the number of batches.
   */
  readonly replace?: (block: Statistics, model: Model) => Awaitable<Model>;
  /**
   * How Gram matrices of f32 inputs are multiplied: in f64; or in f32 over 512 rows, added up in f64, which takes about half
   * the time and errs by some 1e-6 of the matrix's size. Defaults to f64.
   */
  readonly products?: "f64" | "f32";
  /** Most rows kept for `inputs`; defaults to 1024. */
  readonly inputRows?: number;
  /** Which rows are kept: every row with the same chance, or the first; defaults to reservoir. */
  readonly inputSample?: "reservoir" | "first";
  /** Of the reservoir; defaults to 0. */
  readonly seed?: number;
  /** The loss of batches that have `inputs`, for statistics of gradients. */
  readonly task?: Task;
  readonly onProgress?: (progress: StatisticsProgress) => void;
  /** Throws its reason when it fires. */
  readonly signal?: AbortSignal;
}

const known: readonly Statistic[] = [
  ...(["inputGram", "inputMean", "inputAbsMean", "inputNorm", "inputs", "idCounts"] as const),
  ...(["outputGradientGram", "outputGradientMean", "outputGradientNorm", "weightGradient", "weightTimesGradient"] as const),
];

/**
 * One calibration pass: sums over the inputs and gradients of chosen sites, in f64, batch by batch. Sites with one input
 * (q, k, v; gate, up) share its statistics. Without gradients the head is not run.
 *
 * @example
 * const statistics = await collectStatistics(model, [{ ids: [[1, 403, 407, 261]] }], { wants: ["inputGram"] });
 * const gram = statistics.sites.get("model.layers.0.mlp.up_proj")!.inputGram;
 */
export async function collectStatistics(model: Model, batches: CalibrationBatches, options: StatisticsOptions): Promise<Statistics> {
  const sites = chosen(model, options);
  const { inputRows = 1024, inputSample = "reservoir", seed = 0, products = "f64", stream = "original" } = options;
  if (!Number.isInteger(inputRows) || inputRows < 1)
    throw new StrutError("option", `inputRows is ${inputRows}; it must be a whole number of at least 1`, { path: "inputRows" });
  for (const [path, value, allowed] of [
    ["products", products, ["f64", "f32"]],
    ["inputSample", inputSample, ["reservoir", "first"]],
    ["stream", stream, ["original", "compensated", "teacher"]],
  ] as const)
    if (!(allowed as readonly string[]).includes(value))
      throw new StrutError("option", `${path} is ${value}; it must be one of ${allowed.join(", ")}`, { path });
  const recorder = new Recorder({ wants: new Set(options.wants), products, inputRows, inputSample, seed });
  const pass = new Pass(recorder, options);
  if (stream === "compensated") return pass.blockByBlock(model, sites, batches);
  const subject = stream === "teacher" ? teacherOf(model, sites, options.teacher) : model;
  await pass.straight(subject, sites, batches);
  return { tokens: recorder.tokens, sequences: recorder.sequences, sites: recorder.finish(sites.map(({ path }) => subject.layers.get(path)!.site!)) };
}

/** The sites an options object names; every mistake ends in a sentence. */
function chosen(model: Model, { wants, sites, stream, replace }: StatisticsOptions): Site[] {
  if (wants.length === 0) throw new StrutError("option", "no statistic is wanted", { path: "wants", hint: `Statistics are ${known.join(", ")}.` });
  for (const want of wants)
    if (!known.includes(want)) {
      const [near] = nearest(want, known, 1);
      throw new StrutError("option", `${want} is not a statistic`, {
        path: "wants",
        hint: near ? `Did you mean ${near}?` : `Statistics are ${known.join(", ")}.`,
      });
    }
  if (stream === "compensated") {
    if (!replace)
      throw new StrutError("option", "the compensated stream was given nothing that compresses a block", { path: "replace", hint: "Give `replace`." });
    const gradient = wants.find((want) => /gradient/i.test(want));
    if (gradient)
      throw new StrutError("option", `${gradient} needs the whole network at once, and the compensated stream goes block by block`, {
        path: "stream",
        hint: "Collect gradients from the original or a teacher network.",
      });
  }
  const [counts, sums] = [wants.includes("idCounts"), wants.some((want) => want !== "idCounts")];
  const fits = ({ kind }: Site): boolean => (kind === "embedding" ? counts : sums);
  if (typeof sites !== "object") {
    const found = model.sites.filter((site) => fits(site) && (sites ? sites(site) : site.path !== model.architecture.head));
    if (found.length > 0) return found;
    throw new StrutError("targets", "no site was chosen that has the wanted statistics", {
      path: "sites",
      hint: "idCounts are of embeddings, all else of other layers.",
    });
  }
  return sites.map((path) => {
    const site = model.sites.find((candidate) => candidate.path === path);
    if (!site) {
      const near = nearest(
        path,
        model.sites.map((candidate) => candidate.path),
        2,
      );
      throw new StrutError("targets", `the model has no site ${path}`, {
        path: "sites",
        hint: near.length > 0 ? `Did you mean ${near.join(" or ")}?` : `Sites look like ${model.sites[0]!.path}.`,
      });
    }
    if (!fits(site))
      throw new StrutError("targets", `${path} is of kind ${site.kind}, which has none of ${wants.join(", ")}`, {
        path: "sites",
        hint: "idCounts are of embeddings, all else of other layers.",
      });
    return site;
  });
}

function teacherOf(model: Model, sites: readonly Site[], teacher: Model | undefined): Model {
  if (!teacher)
    throw new StrutError("option", "the teacher stream has no teacher", { path: "teacher", hint: "Give the model whose inputs are wanted as `teacher`." });
  for (const { path, in: width, out } of sites) {
    const same = teacher.layers.get(path)?.site;
    if (same?.in !== width || same.out !== out)
      throw new StrutError("targets", `the teacher's ${path} is ${same ? `${same.out}×${same.in}` : "missing"}, the model's ${out}×${width}`, {
        path: "teacher",
        hint: "Teacher and model must agree at the sites that are measured.",
      });
  }
  return teacher;
}

/** Runs batches through a network while the recorder looks on. */
class Pass {
  readonly #recorder: Recorder;
  readonly #options: StatisticsOptions;

  constructor(recorder: Recorder, options: StatisticsOptions) {
    this.#recorder = recorder;
    this.#options = options;
  }

  async #pause(batches: number, tokens: number, block?: number): Promise<void> {
    this.#options.onProgress?.({ batches, tokens, ...(block === undefined ? {} : { block }) });
    await yieldToEvents();
    this.#options.signal?.throwIfAborted();
  }

  async straight(model: Model, sites: readonly Site[], batches: CalibrationBatches): Promise<void> {
    this.#options.signal?.throwIfAborted();
    const paths = new Set(sites.map(({ path }) => path));
    let count = 0;
    for await (const batch of prepared(batches, this.#options.task)) {
      if (this.#recorder.wantsGradients && !batch.targets && !batch.of)
        throw new StrutError("option", "statistics of gradients need a loss, and calibration batches with `inputs` do not say theirs", {
          path: "task",
          hint: "Give `task`, such as classification or regression.",
        });
      this.#recorder.begin(batch);
      const observer = this.#recorder.observer(batch, ({ path }) => paths.has(path));
      if (this.#recorder.wantsGradients && batch.scored > 0) withGradients(model, batch, observer);
      else look(model, batch, { observer });
      await this.#pause(++count, this.#recorder.tokens);
    }
  }

  /** Each block twice: as it is, to look at it, and as `replace` left it, for the inputs of the next. */
  async blockByBlock(given: Model, sites: readonly Site[], source: CalibrationBatches): Promise<Statistics> {
    this.#options.signal?.throwIfAborted();
    let model = given;
    const batches: Prepared[] = [];
    for await (const batch of prepared(source)) batches.push(batch);
    for (const batch of batches) this.#recorder.begin(batch);
    const { tokens, sequences } = this.#recorder;
    const all = new Map<string, SiteStatistics>();
    const states = new Map<Prepared, Tensor>();
    const depths = [...new Set(sites.map(({ depth }) => depth))].sort((a, b) => a - b);
    for (const [stage, depth] of depths.entries()) {
      const here = sites.filter((site) => site.depth === depth);
      const paths = new Set(here.map(({ path }) => path));
      const partOf = (batch: Prepared, until: number): Run["part"] => ({
        from: stage === 0 ? 0 : depth,
        until,
        ...(states.has(batch) ? { x: states.get(batch)! } : {}),
      });
      let seen = 0;
      for (const [i, batch] of batches.entries()) {
        const observer = this.#recorder.observer(batch, ({ path }) => paths.has(path));
        look(model, batch, { observer, part: partOf(batch, depth + 1)! });
        await this.#pause(i + 1, (seen += batch.tokens), depth);
      }
      const found = this.#recorder.finish(here);
      for (const [path, statistics] of found) all.set(path, statistics);
      model = await this.#options.replace!({ tokens, sequences, sites: found }, model);
      const next = depths[stage + 1];
      if (next === undefined) break;
      for (const batch of batches) {
        const before = states.get(batch);
        states.set(batch, stateAt(model, batch, next, partOf(batch, next)!));
        if (before) free(before);
        await this.#pause(batches.length, tokens, depth);
      }
    }
    for (const state of states.values()) free(state);
    return { tokens, sequences, sites: all };
  }
}

/** A forward pass for its observer alone; the head's input is its hidden state, so the head itself is not run. */
export function look(model: Model, batch: Prepared, run: Run & { readonly observer: Observer }): void {
  const head = model.layers.get(model.architecture.head)?.site;
  noGrad(() =>
    scope(() => {
      const x = hidden(model, batch.input(), withMask(batch, run));
      if (head && run.observer.sees!(head)) run.observer.input!(head, x);
    }),
  );
}

/** What sites read in one pass: the rows that count, once for sites with one input. They are the caller's to free. */
export function inputsOf(model: Model, batch: Prepared, sites: readonly Site[]): { readonly rows: Tensor; readonly sites: readonly Site[] }[] {
  const paths = new Set(sites.map(({ path }) => path));
  const seen = new Map<Tensor, { rows: Tensor; sites: Site[] }>();
  const input = (site: Site, x: Tensor): void => {
    const known = seen.get(x);
    if (known) known.sites.push(site);
    else seen.set(x, { rows: keep(copyOf(countedRows(site, x, site.in, batch))), sites: [site] });
  };
  look(model, batch, { observer: { sees: ({ path }) => paths.has(path), input } });
  return [...seen.values()];
}

const withMask = ({ mask }: Prepared, run: Run): Run => (mask ? { ...run, mask } : run);

/** The hidden state that block `depth` gets. */
function stateAt(model: Model, batch: Prepared, depth: number, part: NonNullable<Run["part"]>): Tensor {
  return noGrad(() =>
    scope(() => {
      let state: Tensor | undefined;
      const observer: Observer = { sees: () => false, hidden: (at, x) => void (at === depth && (state = stopGradient(x))) };
      hidden(model, batch.input(), withMask(batch, { part, observer }));
      return keep(state!);
    }),
  );
}

/** Forward and backward of the loss summed over a batch's scored labels. */
function withGradients(model: Model, batch: Prepared, observer: Observer): void {
  scope(() => {
    const loss = batch.of ? batch.of.task.loss(model, batch.of.batch, { observer }) : tokenLoss(model, batch, observer);
    if (loss.node) backward(loss, { seed: full(loss.shape, batch.scored, loss.dtype as "f32") });
  });
}

/** Mean cross-entropy of the next tokens; the logits of a plain head are never held all at once. */
function tokenLoss(model: Model, batch: Prepared, observer: Observer): Tensor {
  const { head } = model.architecture;
  const states = reshape(hidden(model, batch.input(), { observer }), [batch.counts.length, -1]);
  const plain = observer.sees!(model.layers.get(head)!.site!) ? undefined : plainWeight(model, head);
  return plain ? linearCrossEntropy(states, plain, batch.targets!()) : crossEntropy(applyLinear(model, head, states, { observer }), batch.targets!());
}
