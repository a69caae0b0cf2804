import { closeSync, mkdirSync, openSync, readFileSync, truncateSync, writeSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { merge, saveAdapter, saveKept } from "../adapters/index.ts";
import { fileError } from "../formats/files.ts";
import { evaluate, saveModel } from "../models/index.ts";
import {
  train,
  trainSmall,
  trainWithFewerHeads,
  type CheckpointOptions,
  type NamedGroup,
  type SmallResult,
  type TrainingEvent,
  type TrainOptions,
  type TrainResult,
} from "../training/index.ts";
import { optimizerById } from "../catalog.ts";
import { textBatches, withTrainable, type Prepared } from "./prepare.ts";

export interface RunOptions {
  /** Folder for checkpoints, events and results. */
  out: string;
  /** Go on from the newest checkpoint in `out`. */
  resume?: boolean;
  onEvent?: (event: TrainingEvent) => void;
  signal?: AbortSignal;
}

export interface RunResult extends TrainResult {
  /** PEFT directory, where an adapter was trained to its end. */
  readonly adapter?: string;
  /** Hugging Face folder of the merged model, or of the one that was trained whole. */
  readonly folder?: string;
  /** Folder of the base that was trained on, if it is a smaller one than the recipe's. */
  readonly pruned?: string;
  /** Of the last evaluation on the held-out text; of a recipe that prunes, of the full base with the adapter. */
  readonly heldOut?: { readonly step: number; readonly loss: number; readonly perplexity?: number };
}

/** What a run writes into its folder; --overwrite removes these and nothing else. */
export const outputs = {
  events: "events.jsonl",
  checkpoints: "checkpoints",
  before: "before",
  pruned: "pruned",
  adapter: "adapter",
  merged: "merged",
  model: "model",
} as const;

/** Removes what an earlier run wrote into a folder. */
export async function clearRun(out: string): Promise<void> {
  for (const name of Object.values(outputs)) await rm(join(out, name), { recursive: true, force: true });
}

/**
 * A file that events are added to, one JSON line each. It is made by the first of them, so a run that cannot start leaves
 * nothing; a line that a killed run left unfinished is cut off.
 */
class EventFile {
  readonly #folder: string;
  #handle: number | undefined;

  constructor(folder: string) {
    this.#folder = folder;
  }

  readonly add = (event: TrainingEvent): void => {
    const path = join(this.#folder, outputs.events);
    try {
      this.#handle ??= this.#open(path);
      writeSync(this.#handle, `${JSON.stringify(event)}\n`);
    } catch (cause) {
      throw fileError(cause, path, "write");
    }
  };

  #open(path: string): number {
    mkdirSync(this.#folder, { recursive: true });
    const handle = openSync(path, "a+");
    const content = readFileSync(path);
    const end = content.lastIndexOf(10) + 1;
    if (end < content.length) truncateSync(path, end);
    return handle;
  }

  close(): void {
    if (this.#handle !== undefined) closeSync(this.#handle);
  }
}

/** The options of the loop that a recipe asks for, but for its checkpoints. */
export async function trainOptions({
  recipe: { training: t },
  batches,
  heldOut,
  window,
}: Pick<Prepared, "recipe" | "batches" | "heldOut" | "window">): Promise<TrainOptions> {
  const optional = {
    steps: t.steps,
    epochs: t.steps === undefined ? (t.epochs ?? 1) : t.epochs,
    learningRate: t.learningRate,
    weightDecay: t.weightDecay,
    clip: t.clip,
    clipValue: t.clipValue,
    earlyStopping: t.earlyStopping,
  };
  return {
    data: batches,
    ...Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== undefined)),
    optimizer: {
      method: await optimizerById(t.optimizer),
      options: t.optimizerOptions,
      ...(t.innerOptimizer === undefined ? {} : { inner: { method: await optimizerById(t.innerOptimizer), options: t.innerOptions } }),
    },
    schedule: t.schedule,
    scheduleOptions: t.scheduleOptions,
    groups: t.groups.map((group) => Object.fromEntries(Object.entries(group).filter(([, value]) => value !== undefined)) as unknown as NamedGroup),
    decayOn: t.decayOn,
    ...(t.ema ? { ema: t.ema } : {}),
    warmup: t.warmup,
    accumulate: t.accumulate,
    recompute: t.recompute,
    stochasticRounding: t.stochasticRounding,
    updateInBackward: t.updateInBackward,
    seed: t.seed,
    ...(heldOut ? { evaluate: { every: t.evaluateEvery ?? Number.MAX_SAFE_INTEGER, data: heldOut, window } } : {}),
  };
}

const checkpointOptions = ({ recipe: { training: t } }: Prepared, out: string): CheckpointOptions => ({
  dir: join(out, outputs.checkpoints),
  keep: t.keepCheckpoints,
  ...(t.checkpointEvery === undefined ? {} : { every: t.checkpointEvery }),
});

type Trained = TrainResult & Partial<Pick<SmallResult, "recovered" | "small" | "kept">>;

async function alignment(
  prepared: Prepared,
  { text, ...course }: NonNullable<NonNullable<Prepared["recipe"]["prune"]>["align"]>,
  options: TrainOptions,
): Promise<TrainOptions> {
  // groups and the schedule's options are the adapter's
  return { ...options, groups: [], scheduleOptions: {}, ...course, data: await textBatches(prepared, text) };
}

/** One training; or that of a small base, aligned before; or two with fewer heads in the second. `small` is a base that differs from the recipe's. */
async function trainStages(prepared: Prepared, options: TrainOptions, out: string): Promise<Trained> {
  const { recipe, base, pruned, model } = prepared;
  const { evaluate: _, earlyStopping: __, epochs: ___, ema: ____, ...plain } = options;
  const before = { ...plain, checkpoint: { ...options.checkpoint, dir: join(out, outputs.before) } };
  if (pruned) {
    const { align, quantize, fill } = recipe.prune!;
    return trainSmall(base, {
      prune: pruned,
      ...(align ? { align: await alignment(prepared, align, before) } : {}),
      quantize: quantize !== undefined,
      adapter: (small) => withTrainable(small, recipe, prepared.batches),
      train: options,
      recover: { fill, seed: recipe.training.seed },
    });
  }
  if (!recipe.removeHeads) return train(model, options);
  const { count, score, at } = recipe.removeHeads;
  const steps = recipe.training.steps!;
  const first = Math.min(steps - 1, Math.max(1, Math.round(at * steps)));
  const result = await trainWithFewerHeads(model, { count, score, before: { ...before, steps: first }, after: { ...options, steps: steps - first } });
  return { ...result, small: result.model };
}

/**
 * Trains what `prepare` made ready, and writes it: events.jsonl and checkpoints on the way, at the end the adapter as a PEFT
 * directory, and the merged or fully trained model. Stopped by the signal, it leaves a checkpoint to resume from.
 */
export async function runRecipe(prepared: Prepared, { out, resume = false, onEvent, signal }: RunOptions): Promise<RunResult> {
  const options = { ...(await trainOptions(prepared)), checkpoint: checkpointOptions(prepared, out) };
  const { recipe } = prepared;
  const events = new EventFile(out);
  try {
    let evaluated: RunResult["heldOut"];
    const onBoth = (event: TrainingEvent): void => {
      events.add(event);
      if (event.event === "evaluation") {
        const { step, loss, perplexity } = event;
        evaluated = { step, loss, ...(perplexity === undefined ? {} : { perplexity }) };
      }
      onEvent?.(event);
    };
    const trained = await trainStages(prepared, { ...options, resume, onEvent: onBoth, ...(signal ? { signal } : {}) }, out);
    if (trained.recovered && prepared.heldOut) {
      const { loss, perplexity } = await evaluate(trained.recovered, prepared.heldOut, { window: prepared.window });
      evaluated = { step: trained.step, loss, perplexity };
    }
    const { kept, small, recovered, ...rest } = trained;
    const pruned = small && join(out, outputs.pruned);
    const result: RunResult = { ...rest, model: recovered ?? rest.model, ...(evaluated ? { heldOut: evaluated } : {}), ...(pruned ? { pruned } : {}) };
    if (result.stopped) return result;
    if (pruned) await saveModel(small, pruned, { overwrite: true });
    if (!prepared.coverage) {
      const folder = join(out, outputs.model);
      await saveModel(result.model, folder, { overwrite: true });
      return { ...result, folder };
    }
    const [adapter, folder] = [join(out, outputs.adapter), join(out, outputs.merged)];
    await saveAdapter(result.model, adapter, { overwrite: true });
    if (kept) for (const place of [adapter, pruned!]) await saveKept(kept, prepared.base, place);
    // an adapter on random weights is of no use without them
    if (!recipe.merge && !recipe.fromScratch) return { ...result, adapter };
    await saveModel(merge(result.model), folder, { overwrite: true });
    return { ...result, adapter, folder };
  } finally {
    events.close();
  }
}
