import { mkdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { StrutError } from "../errors.ts";
import { fingerprint } from "../data/batches.ts";
import { parameters } from "../models/index.ts";
import { openText } from "../recipe/open.ts";
import { prepare } from "../recipe/prepare.ts";
import type { Recipe } from "../recipe/schema.ts";
import { engine, start } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { baseRecipe, type Done, type Job, type Measured } from "./job.ts";
import type { Choice } from "./methods.ts";
import { planMethod, weightBytes, type Plan, type Refused } from "./plan.ts";
import { runInProcess, slots, type JobProgress, type Workers } from "./processes.ts";
import { bestRate, rowOf, type Row } from "./rows.ts";
import { holdsSetup, writeSetup, type Budget, type Setup } from "./setup.ts";

export interface CompareOptions extends Workers {
  readonly version: string;
  /** Model, text, targets and training: what every run shares. */
  readonly recipe: Recipe;
  readonly choices: readonly Choice[];
  /** Defaults to a twentieth of the model's parameters. */
  readonly budget?: Budget;
  /** How many seeds, counted from 0; the first also tries the rates. */
  readonly seeds: number;
  readonly rates: readonly number[];
  /** Processes at once. */
  readonly jobs: number;
  readonly onEvent?: (event: CompareEvent) => void;
}

export type CompareEvent =
  | { readonly event: "planned"; readonly plan: Plan | Refused }
  /** `total` counts the runs of the whole comparison, `done` those that earlier runs of it left too. */
  | { readonly event: "progress"; readonly job: Job; readonly progress: JobProgress; readonly done: number; readonly total: number }
  | { readonly event: "done"; readonly done: Done; readonly kept: boolean; readonly count: number; readonly total: number };

export interface Comparison {
  readonly setup: Setup;
  readonly seeds: number;
  readonly rates: readonly number[];
  readonly base: Measured;
  /** Best first. */
  readonly rows: readonly Row[];
}

/** Where a job's result stands. Labels may hold any character. */
const fileOf = (label: string, rate: number, seed: number): string => join("jobs", encodeURIComponent(label), `rate-${rate}-seed-${seed}.json`);

/** The result of a job that an earlier run left; undefined if there is none, if it failed, or if it is of another job. */
async function leftBehind(folder: string, job: Job): Promise<Done | undefined> {
  const text = await readFile(join(folder, job.file), "utf8").catch(() => undefined);
  if (text === undefined) return undefined;
  const done = JSON.parse(text) as Done;
  return "measured" in done && JSON.stringify(done.job) === JSON.stringify(job) ? done : undefined;
}

/**
 * Trains every method under one budget with the same text, steps, seeds and search over learning rates. Each run is a process of
 * one thread that leaves one file, so a comparison that was interrupted goes on where it was.
 */
export async function compare(options: CompareOptions): Promise<Comparison> {
  const { folder, recipe, choices, rates, seeds, signal, onEvent } = options;
  await start({ threads: 1 });
  const { base: model } = await prepare(baseRecipe(recipe));
  const text = await openText(recipe.data.text);
  const weights = [...parameters(model).values()];
  const total = weights.reduce((sum, { size }) => sum + size, 0);
  const budget = options.budget ?? { of: "parameters", limit: Math.floor(total / 20) };
  const { name, variant } = engine().backend;
  const setup: Setup = {
    version: options.version,
    backend: `${name} (${variant})`,
    recipe,
    fingerprint: fingerprint(new TextEncoder().encode(text), ...weights.map((w) => hostView(w) as ArrayLike<number>)),
    budget,
  };
  const goesOn = await holdsSetup(folder, setup);
  const plans: (Plan | Refused)[] = [];
  for (const choice of choices) {
    signal.throwIfAborted();
    plans.push(await planMethod(model, choice, recipe, budget));
  }
  const possible = plans.flatMap((plan) => ("refused" in plan ? [] : [plan]));
  if (possible.length === 0) throw nothingFits(plans as Refused[]);
  for (const plan of plans) onEvent?.({ event: "planned", plan });
  await mkdir(folder, { recursive: true });
  if (!goesOn) await writeSetup(folder, setup);
  const failing = new AbortController();
  const grid = new Grid({ ...options, budget, signal: AbortSignal.any([signal, failing.signal]) }, plans, 1 + possible.length * (rates.length + seeds - 1));
  // where one process cannot even be started, the others end too
  const { base, rows } = await grid.run().finally(() => failing.abort());
  return { setup, seeds, rates, base: { ...base, parameters: total, bytes: await weightBytes(recipe.model) }, rows: rows.toSorted(byLoss) };
}

const byLoss = (a: Row, b: Row): number => (a.loss?.mean ?? Infinity) - (b.loss?.mean ?? Infinity) || 0;

const nothingFits = (plans: readonly Refused[]): StrutError =>
  new StrutError("option", `no method can take part: ${plans.map(({ label, refused }) => `${label}: ${refused}`).join("; ")}`, {
    path: "budget",
    hint: "Give a larger budget, other methods or other targets.",
  });

/** The runs of a comparison. */
class Grid {
  readonly #options: CompareOptions & { readonly budget: Budget };
  readonly #plans: readonly (Plan | Refused)[];
  readonly #total: number;
  readonly #slot: ReturnType<typeof slots>;
  #count = 0;

  constructor(options: CompareOptions & { readonly budget: Budget }, plans: readonly (Plan | Refused)[], total: number) {
    this.#options = options;
    this.#plans = plans;
    this.#total = total;
    this.#slot = slots(options.jobs);
  }

  async run(): Promise<{ base: Measured; rows: Row[] }> {
    const [base, ...rows] = await Promise.all([this.#do(-1, { file: "base.json", seed: 0 }), ...this.#plans.map((plan, rank) => this.#method(plan, rank))]);
    if ("failed" in base) throw new StrutError("model", `the base model could not be measured: ${base.failed}`);
    return { base: base.measured, rows };
  }

  /** Runs of methods that stand first come first, so that an interrupted comparison has whole rows. */
  async #method(plan: Plan | Refused, rank: number): Promise<Row> {
    const { rates, seeds, budget } = this.#options;
    if ("refused" in plan) return rowOf(plan, budget);
    const run = (rate: number, seed: number): Promise<Done> =>
      this.#do(rank, { file: fileOf(plan.label, rate, seed), method: { id: plan.id, options: plan.options, rate }, seed });
    const search = await Promise.all(rates.map((rate) => run(rate, 0)));
    const rate = bestRate(search);
    if (rate === undefined) this.#count += seeds - 1;
    const rest = rate === undefined ? [] : await Promise.all(Array.from({ length: seeds - 1 }, (_, i) => run(rate, i + 1)));
    return rowOf(plan, budget, search, rest);
  }

  async #do(rank: number, job: Job): Promise<Done> {
    const { folder, onEvent } = this.#options;
    const kept = await leftBehind(folder, job);
    const onProgress = (progress: JobProgress): void => onEvent?.({ event: "progress", job, progress, done: this.#count, total: this.#total });
    const done =
      kept ??
      (await this.#slot(rank, async () => {
        await mkdir(dirname(join(folder, job.file)), { recursive: true });
        return runInProcess(job, this.#options, onProgress);
      }));
    onEvent?.({ event: "done", done, kept: kept !== undefined, count: ++this.#count, total: this.#total });
    return done;
  }
}
