import { StrutError } from "../errors.ts";
import type { BatchSource } from "../data/batches.ts";
import { cycled, fingerprint, inputBytes } from "../data/batches.ts";
import type { WriteOptions } from "../formats/files.ts";
import type { Model } from "../models/model.ts";
import type { Awaitable, Batch, ParameterGroup, Regime, Schedule, Task, Transform } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { adamw } from "../optimizers/adamw.ts";
import { linksOf, type Optimizer, type RunStart } from "../optimizers/optimizer.ts";
import type { TrainingEvent } from "./events.ts";
import { languageModelling } from "./loss.ts";
import { scheduleOf, type ScheduleName } from "./schedules.ts";

// oxlint-disable-next-line no-explicit-any -- an optimiser of any options
type AnyOptimizer = Optimizer<any>;

export interface CheckpointOptions extends WriteOptions {
  /** Folder of the run's checkpoints, each a folder of its own in it. */
  dir: string;
  /** Steps between two; defaults to none but those at the end and when stopped. */
  every?: number;
  /** How many of the newest stay, beside the best that was evaluated; defaults to 2. */
  keep?: number;
}

export interface EvaluationOptions {
  every: number;
  /** Token ids of one text, scored as `strut eval` does; or batches. */
  data: readonly Batch[] | ArrayLike<number>;
  /** For token ids; defaults to the model's context. */
  window?: number;
}

/** Whether evaluation data are batches. */
export const areBatches = (data: EvaluationOptions["data"]): data is readonly Batch[] => typeof data[0] === "object";

/** A parameter group by name. */
export interface NamedGroup extends Omit<ParameterGroup, "parameters"> {
  readonly match: string | readonly string[];
}

export interface OptimizerChoice {
  readonly method: AnyOptimizer;
  readonly options?: Readonly<Record<string, unknown>>;
  /** The optimiser inside, where this one wraps another: what moves in a projection, or after a preconditioner. */
  readonly inner?: Omit<OptimizerChoice, "inner">;
}

export interface TrainOptions {
  /** Batches to cycle through, or a function that makes batch k. */
  batches?: readonly Batch[] | ((k: number) => Awaitable<Batch>);
  /** A source of batches, such as `tokenBatches` gives. Either this or `batches`. */
  data?: BatchSource;
  /** What is minimised; defaults to predicting the next token. */
  task?: Task;
  /** Optimiser steps; or say `epochs`. */
  steps?: number;
  epochs?: number;
  /** An optimiser of the catalog, with options if they are not the defaults; or a chain of transforms. Defaults to adamw. */
  optimizer?: AnyOptimizer | OptimizerChoice | Transform;
  /** Defaults to the optimiser's. */
  learningRate?: number;
  /** Defaults to the optimiser's. */
  weightDecay?: number;
  /** Defaults to constant. */
  schedule?: ScheduleName | Schedule;
  /** Options of a schedule that is named, such as { cycles: 4 } for cosine_with_restarts. */
  scheduleOptions?: Readonly<Record<string, unknown>>;
  /** Steps over which the rate rises from 0; below 1 a share of all steps. Defaults to 0. */
  warmup?: number;
  /** Largest 2-norm of all gradients together; defaults to no clipping. */
  clip?: number;
  /** Largest size of a single number of a gradient, before `clip` if both are given; defaults to no limit. */
  clipValue?: number;
  /**
   * Keep trained weights on the grid of bf16: after each step every weight is rounded up or down at random, with chances that
   * make the mean exact, so that steps below the grid's are not lost. Memory stays that of f32. Defaults to false.
   */
  stochasticRounding?: boolean;
  /** Batches per step, whose gradients are averaged; defaults to 1. */
  accumulate?: number;
  /**
   * Parameters with rates, decay, schedule or chain of their own, beside those that regimes ask for; given themselves, or as
   * `match`: parts of their names, or patterns for whole names. A parameter belongs to the first group that matches.
   */
  groups?: readonly (ParameterGroup | NamedGroup)[];
  /** What `weightDecay` pulls on: all parameters, as torch does, or matrices alone, as transformers' Trainer does. Defaults to all. */
  decayOn?: "all" | "matrices";
  /** Averages the weights: average ← decay·average + (1 − decay)·w after every step. Evaluations and the result have the averages. */
  ema?: { decay: number };
  /** Mean loss on other data, every so many steps and at the end. */
  evaluate?: EvaluationOptions;
  /** Stop when `patience` evaluations in a row did not lower the loss by more than `minDelta` (0). */
  earlyStopping?: { patience: number; minDelta?: number };
  checkpoint?: CheckpointOptions;
  /** Go on from the newest checkpoint in `checkpoint.dir` (start anew if there is none), or from the one named. */
  resume?: boolean | string;
  /** Defaults to 0. */
  seed?: number;
  /** Regimes beside those of the model's active adapters; they act on plain weights. */
  regimes?: readonly Regime[];
  /** For regimes that want one. */
  teacher?: Model;
  /** For regimes that want validation batches; defaults to the batches of `evaluate`. */
  validation?: readonly Batch[];
  /** Train the model's own weights instead of copies; the model that was passed is refused from then on. */
  consume?: boolean;
  /** Compute intermediates again in backward: less memory, a third more time. Defaults to false. */
  recompute?: boolean;
  /**
   * Move each weight as soon as backward has its gradient, and free that at once: one layer's gradient is alive at a time.
   * The weights are bit for bit those of the ordinary loop. Not with clip, accumulate, links that see several tensors, or
   * hooks between backward and update. Defaults to false.
   */
  updateInBackward?: boolean;
  onEvent?: (event: TrainingEvent) => void;
  /** Stops after the current step, with a checkpoint. */
  signal?: AbortSignal;
}

/** Options with every default filled in. */
export interface Settings {
  readonly task: Task;
  readonly source: BatchSource;
  readonly steps: number;
  readonly accumulate: number;
  readonly seed: number;
  readonly optimizer: Transform;
  /** Of the optimiser. */
  readonly regime?: Regime;
  readonly learningRate: number;
  readonly weightDecay: number;
  readonly schedule: Schedule;
  readonly updateInBackward: boolean;
  /** All that decides the course of the run, for comparison when it is resumed. */
  readonly recipe: Readonly<Record<string, unknown>>;
}

function whole(value: number | undefined, name: string, least: number): number | undefined {
  if (value === undefined || (Number.isInteger(value) && value >= least)) return value;
  throw new StrutError("option", `${name} is ${value}; it must be a whole number of at least ${least}`, { path: name });
}

function atLeastZero(value: number | undefined, name: string): void {
  if (value !== undefined && !(value >= 0 && Number.isFinite(value)))
    throw new StrutError("option", `${name} is ${value}; it must be a number of at least 0`, { path: name });
}

async function sourceOf({ batches, data }: TrainOptions): Promise<BatchSource> {
  if (batches && data) throw new StrutError("option", "train() was given both batches and data", { path: "data", hint: "Keep one of them." });
  if (data) return data;
  if (!batches) throw new StrutError("option", "train() was given nothing to train on", { path: "data", hint: "Give `data` (see tokenBatches) or `batches`." });
  if (typeof batches !== "function") return cycled(batches);
  const first = await batches(0);
  return { batch: batches, fingerprint: `function ${fingerprint(...first.ids, ...inputBytes(first))}` };
}

function stepsOf({ steps, epochs }: TrainOptions, source: BatchSource, accumulate: number, phased: number): number {
  const given = whole(steps, "steps", 0);
  if (given !== undefined) return given;
  if (epochs === undefined) {
    if (phased > 0) return phased;
    throw new StrutError("option", "train() was told neither steps nor epochs", { path: "steps", hint: "For example steps: 200." });
  }
  if (source.epochLength === undefined)
    throw new StrutError("option", "epochs were asked for, but the data has no end", { path: "epochs", hint: "Say `steps` instead." });
  if (!(epochs > 0)) throw new StrutError("option", `epochs is ${epochs}; it must be above 0`, { path: "epochs" });
  return Math.ceil((epochs * source.epochLength) / accumulate);
}

function transformOf(given: NonNullable<TrainOptions["optimizer"]>): Chosen {
  if ("scope" in given) return { transform: given, rates: {}, described: linksOf(given).map(({ fused, scope }) => fused ?? scope) };
  const { method, options = {}, inner: within }: OptimizerChoice = "method" in given ? given : { method: given };
  const inner = within && (method.takes === "whole" ? chosen(within) : innerOf(method, within));
  return chosen({ method, options }, inner);
}

interface Chosen {
  transform: Transform;
  rates: { learningRate?: number; weightDecay?: number };
  regime?: (run: RunStart) => Awaitable<Regime>;
  described: unknown;
}

/** An optimiser of the catalog with its options, and what it has inside. */
function chosen({ method, options = {} }: OptimizerChoice, inner?: Chosen): Chosen {
  const parsed = parseOptions(method, options);
  const regime = method.regime ? (run: RunStart) => method.regime!(parsed, run) : inner?.regime;
  return {
    transform: method.build(parsed, inner?.transform),
    rates: { ...method.rates?.(parsed), ...inner?.rates },
    ...(regime ? { regime } : {}),
    described: { id: method.id, ...parsed, ...(inner ? { inner: inner.described } : {}) },
  };
}

function innerOf(outer: AnyOptimizer, { method, options = {} }: Omit<OptimizerChoice, "inner">): Chosen {
  if (!method.core)
    throw new StrutError("option", `${method.id} cannot work inside ${outer.id}: it is no rule for one direction`, {
      path: "inner",
      hint: "Choose an inner optimiser such as adamw, adafactor, lion or sgd.",
    });
  const parsed = parseOptions(method, options);
  return { transform: method.core(parsed), rates: {}, described: { id: method.id, ...parsed } };
}

/** Checks the options of a run and fills in the defaults; each mistake ends in a sentence. */
export async function settle(options: TrainOptions, regimes: readonly Regime[], model: Model): Promise<Settings> {
  const source = await sourceOf(options);
  const task = options.task ?? languageModelling;
  const accumulate = whole(options.accumulate, "accumulate", 1) ?? 1;
  const phased = Math.max(0, ...regimes.map(({ phases = [] }) => phases.reduce((sum, phase) => sum + phase.steps, 0)));
  const steps = stepsOf(options, source, accumulate, phased);
  const seed = whole(options.seed, "seed", 0) ?? 0;
  for (const name of ["learningRate", "weightDecay", "warmup"] as const) atLeastZero(options[name], name);
  if (options.clip !== undefined && !(options.clip > 0))
    throw new StrutError("option", `clip is ${options.clip}; it must be a norm above 0`, { path: "clip", hint: "Leave it out to train without clipping." });
  if (options.ema && !(options.ema.decay >= 0 && options.ema.decay < 1))
    throw new StrutError("option", `ema.decay is ${options.ema.decay}; it must be at least 0 and below 1`, { path: "ema.decay", hint: "0.999 is common." });
  if (options.clipValue !== undefined && !(options.clipValue > 0))
    throw new StrutError("option", `clipValue is ${options.clipValue}; it must be above 0`, {
      path: "clipValue",
      hint: "Leave it out to train without limit.",
    });
  whole(options.evaluate?.every, "evaluate.every", 1);
  whole(options.checkpoint?.every, "checkpoint.every", 1);
  whole(options.checkpoint?.keep, "checkpoint.keep", 1);
  whole(options.earlyStopping?.patience, "earlyStopping.patience", 1);
  if (options.earlyStopping && !options.evaluate)
    throw new StrutError("option", "early stopping needs evaluations", { path: "earlyStopping", hint: "Give `evaluate: { every, data }` too." });
  if (options.resume === true && !options.checkpoint)
    throw new StrutError("option", "resume needs the folder of the checkpoints", { path: "resume", hint: "Give `checkpoint: { dir }` too." });
  const { transform, rates, described, regime } = transformOf(options.optimizer ?? adamw);
  const warmup = options.warmup === undefined || options.warmup >= 1 ? (options.warmup ?? 0) : Math.round(options.warmup * steps);
  const schedule = scheduleOf(options.schedule ?? "constant", warmup, options.scheduleOptions);
  const [learningRate, weightDecay] = [options.learningRate ?? rates.learningRate ?? 1e-3, options.weightDecay ?? rates.weightDecay ?? 0];
  const sampled = (of: Schedule): number[] => Array.from({ length: 9 }, (_, i) => of(Math.floor((i * Math.max(0, steps - 1)) / 8), steps));
  const recipe = {
    steps,
    accumulate,
    seed,
    optimizer: described,
    learningRate,
    weightDecay,
    schedule: sampled(schedule),
    clip: options.clip ?? null,
    ...(options.clipValue === undefined ? {} : { clipValue: options.clipValue }),
    ...(options.stochasticRounding ? { stochasticRounding: true } : {}),
    data: source.fingerprint,
    groups: (options.groups ?? []).map(({ optimizer: own, schedule: factor, ...group }) => ({
      ...group,
      ...("parameters" in group ? { parameters: group.parameters.map(({ name }) => name) } : {}),
      ...(own ? { optimizer: transformOf(own).described } : {}),
      ...(factor ? { schedule: sampled(factor) } : {}),
    })),
    evaluate: options.evaluate?.every ?? null,
    earlyStopping: options.earlyStopping ?? null,
    recompute: options.recompute ?? false,
    ...(options.decayOn === "matrices" ? { decayOn: options.decayOn } : {}),
    ...(options.ema ? { ema: options.ema } : {}),
    ...(task === languageModelling ? {} : { task: task.name }),
  };
  // not part of the recipe: a run may be resumed either way, bit for bit
  const updateInBackward = options.updateInBackward ?? false;
  const own = await regime?.({ model, batch: (k) => source.batch(k), warn: (message) => options.onEvent?.({ event: "warning", message }) });
  return {
    ...{ task, source, steps, accumulate, seed, optimizer: transform, learningRate, weightDecay, schedule, updateInBackward, recipe },
    ...(own ? { regime: own } : {}),
  };
}
