import { StrutError } from "../errors.ts";
import { parameters, type Model } from "../models/model.ts";
import { engine, isReal, scope, start, sumSquares, type Parameter } from "../tensor/index.ts";
import { measure } from "./evaluation.ts";
import type { EndReason, TrainingEvent } from "./events.ts";
import { diverged, stepGradients } from "./gradients.ts";
import { languageModelling } from "./loss.ts";
import { settle, type TrainOptions } from "./options.ts";
import { PhaseKeeper } from "./phases.ts";
import { Pulse } from "./pulse.ts";
import type { CheckpointFolder } from "./checkpoint.ts";
import { Session } from "./session.ts";
import { bytesOfState, bytesTogether } from "./state-tree.ts";

export interface TrainResult {
  /** The model with its trained parameters: the one that was passed, unless it was consumed. */
  readonly model: Model;
  /** Steps done, those before a resume included. */
  readonly step: number;
  /** Whether the signal stopped it before its end. */
  readonly stopped: boolean;
  readonly reason: EndReason;
  /** Of the last step. */
  readonly loss: number;
  readonly best?: { readonly step: number; readonly loss: number };
  /** What the optimiser kept of the parameters. */
  readonly optimizerBytes: number;
  /** Where the last checkpoint stands. */
  readonly checkpoint?: string;
}

/** Counters of a run that a checkpoint keeps beside weights and states. */
export interface Progress {
  loss: number;
  best: { step: number; loss: number } | undefined;
  /** Evaluations since the best. */
  waited: number;
  /** Last step that was evaluated. */
  evaluated: number;
}

/**
 * Trains the trainable parameters of a model: those of its active adapters, and leaves that `unfreeze` made. Everything
 * else stays as it is. A step is: forward, backward, clip, update; regimes take part at the moments they name.
 *
 * @example
 * const tuned = await adapt(model, lora, { r: 8 });
 * const batches = [{ ids: [[1, 403, 407, 261, 378, 432]] }];
 * await train(tuned, { batches, steps: 2, learningRate: 2e-3, clip: 1 });
 */
export async function train(given: Model, options: TrainOptions): Promise<TrainResult> {
  await start();
  const model = options.consume ? consumed(given) : given;
  const regimes = [...model.active.flatMap((name) => model.adapters.get(name)!.regime ?? []), ...(options.regimes ?? [])];
  const run = new Training(new Session(model, options, await settle(options, regimes, model)), options);
  return run.finish();
}

/** The model under new ownership, its leaves trainable; the old object is refused from now on. */
function consumed(model: Model): Model {
  const own = { ...model };
  for (const w of parameters(model).values()) w.trainable = true;
  for (const key of Object.keys(model))
    Object.defineProperty(model, key, {
      get() {
        throw new StrutError("consumed", "this model was given to train() with `consume: true`, which trained its own weights", {
          hint: "Use the model that train() returned.",
        });
      },
    });
  return own;
}

class Training {
  readonly #session: Session;
  readonly #options: TrainOptions;
  readonly #pulse = new Pulse();
  readonly #phases: PhaseKeeper;
  readonly #progress: Progress = { loss: NaN, best: undefined, waited: 0, evaluated: 0 };
  #folder: CheckpointFolder | undefined;
  #saved: { step: number; path: string } | undefined;
  #tokens = 0;
  #seconds = 0;
  #done = 0;

  constructor(session: Session, options: TrainOptions) {
    this.#session = session;
    this.#options = options;
    this.#phases = new PhaseKeeper(session);
  }

  #tell(event: TrainingEvent): void {
    this.#options.onEvent?.(event);
  }

  async finish(): Promise<TrainResult> {
    const began = performance.now();
    const flags = new Map([...this.#session.trained.values()].map((w): [Parameter, boolean] => [w, w.trainable]));
    try {
      await this.#begin();
      const reason = await this.#steps();
      if (this.#folder && this.#saved?.step !== this.#session.step) await this.#save();
      if (reason !== "stopped") this.#session.averages?.swap();
      const { step, model, optimization } = this.#session;
      const { loss, best } = this.#progress;
      const optimizerBytes = bytesOfState(optimization.state(this.#session.nameOf));
      this.#tell({ event: "end", step, reason, loss, seconds: (performance.now() - began) / 1000, tokens: this.#tokens });
      const stopped = reason === "stopped";
      return { model, step, stopped, reason, loss, optimizerBytes, ...(best ? { best } : {}), ...(this.#saved ? { checkpoint: this.#saved.path } : {}) };
    } finally {
      this.#session.setLive("end", false);
      this.#session.taps?.clear();
      for (const [w, trainable] of flags) w.trainable = trainable;
    }
  }

  async #begin(): Promise<void> {
    const { checkpoint, resume } = this.#options;
    let resumed: string | undefined;
    if (checkpoint || resume) {
      const { CheckpointFolder } = await import("./checkpoint.ts");
      const { folder, found } = await CheckpointFolder.open(this.#session, checkpoint, resume ?? false, (message) => this.#tell({ event: "warning", message }));
      this.#folder = folder;
      if (found) {
        this.#session.step = found.step;
        Object.assign(this.#progress, found.progress);
        if (checkpoint && found.own) this.#saved = { step: found.step, path: found.path };
        resumed = found.path;
      }
    }
    const s = this.#session;
    const { name: backend, variant: cpu } = engine().backend;
    const trained = [...s.trained.values()].filter(({ trainable }) => trainable);
    this.#tell({
      event: "start",
      steps: s.settings.steps,
      step: s.step,
      parameters: trained.reduce((sum, w) => sum + w.size, 0),
      tensors: trained.length,
      backend,
      cpu,
      seed: s.settings.seed,
      ...(resumed ? { resumed } : {}),
    });
  }

  async #steps(): Promise<EndReason> {
    const { signal, checkpoint } = this.#options;
    const { steps } = this.#session.settings;
    for (;;) {
      // a run that was stopped or killed before its evaluation catches up here
      const { step } = this.#session;
      const verdict = step > 0 ? await this.#evaluateIfDue(signal) : undefined;
      if (verdict) return verdict;
      if (step > 0 && checkpoint?.every && step % checkpoint.every === 0 && this.#saved?.step !== step) await this.#save();
      if (step >= steps) return "finished";
      if (signal?.aborted) return "stopped";
      await this.#step();
      await this.#pulse.beat();
    }
  }

  async #step(): Promise<void> {
    const session = this.#session;
    const began = performance.now();
    const { settings, optimization, structure } = session;
    const rate = settings.learningRate * settings.schedule(session.step, settings.steps);
    const { pool } = engine();
    const [before, peak] = [pool.usedBytes, pool.peakBytes];
    pool.peakBytes = before;
    const measured = await scope(
      async () => {
        await session.beginStep();
        session.setLive(`step/${session.step}`);
        if (session.step === 0) session.averages?.follow();
        session.batch = await session.source.batch(session.step * settings.accumulate);
        await this.#phases.enter();
        await session.hook("beforeForward");
        session.applyChoices();
        const { loss, extra } = await stepGradients(session, this.#pulse, rate);
        await session.hook("afterBackward");
        const gradNorm = settings.updateInBackward ? Math.sqrt(session.usedSquares) : optimization.clip(session.gradients, session.regimes.length > 0);
        if (!Number.isFinite(gradNorm)) throw diverged("the gradient's norm", gradNorm, session.step, rate);
        await session.hook("beforeStep");
        await optimization.update(session.gradients, session.context(), this.#pulse.beat);
        for (const w of structure.masks.keys()) structure.hold(w);
        session.averages?.follow();
        await session.hook("afterStep");
        if (this.#endsEpoch()) await session.hook("afterEpoch");
        session.applyChoices();
        session.gradients = new Map();
        const [row] = session.batch.ids;
        this.#tokens += settings.accumulate * (row ? session.batch.ids.length * row.length : settings.task.scored(session.batch));
        return { loss, extra, gradNorm };
      },
      { exclusive: true },
    );
    if (this.#done === 0) this.#tellMemory(before);
    pool.peakBytes = Math.max(peak, pool.peakBytes);
    this.#report(measured, rate, (performance.now() - began) / 1000);
  }

  #tellMemory(before: number): void {
    const { parameters: all, optimization, used, nameOf } = this.#session;
    this.#tell({
      event: "memory",
      weights: bytesTogether(new Set(all.values())),
      gradients: used.gradients,
      states: bytesOfState(optimization.state(nameOf)),
      activations: used.forward - before,
      peak: engine().pool.peakBytes,
    });
  }

  #endsEpoch(): boolean {
    const { source, settings, step } = this.#session;
    if (source.epochLength === undefined) return false;
    return Math.floor(((step + 1) * settings.accumulate) / source.epochLength) > this.#session.epoch;
  }

  #report({ loss, extra, gradNorm }: { loss: number; extra: number | undefined; gradNorm: number }, learningRate: number, seconds: number): void {
    const { settings, epoch } = this.#session;
    const step = ++this.#session.step;
    this.#progress.loss = loss;
    this.#done++;
    this.#seconds += seconds;
    this.#tell({
      event: "step",
      step,
      steps: settings.steps,
      epoch,
      loss,
      ...(extra === undefined ? {} : { extraLoss: extra }),
      gradNorm,
      learningRate,
      tokens: this.#tokens,
      tokensPerSecond: this.#tokens / this.#seconds,
      timeLeft: ((settings.steps - step) * this.#seconds) / this.#done,
    });
  }

  /** Evaluates after every so many steps and after the last; tells whether the run ends here, by that or by the signal. */
  async #evaluateIfDue(signal: AbortSignal | undefined): Promise<"early-stopping" | "stopped" | undefined> {
    const { evaluate, earlyStopping } = this.#options;
    const session = this.#session;
    const progress = this.#progress;
    const { step } = session;
    const enough = () => (earlyStopping && progress.waited >= earlyStopping.patience ? "early-stopping" : undefined);
    if (!evaluate || progress.evaluated === step || !(step % evaluate.every === 0 || step === session.settings.steps)) return enough();
    session.setLive("evaluation", false);
    session.averages?.swap();
    const measured = await measure(session.model, session.settings.task, evaluate, signal).finally(() => session.averages?.swap());
    if (!measured) return "stopped";
    const { loss, tokens } = measured;
    if (!Number.isFinite(loss)) throw diverged("the evaluation loss", loss, step - 1, session.settings.learningRate);
    const counts = session.regimes.every(({ regime, training }) => regime.mayBeBest?.(training) ?? true);
    const best = counts && !(loss >= (progress.best?.loss ?? Infinity) - (earlyStopping?.minDelta ?? 0));
    progress.waited = best || !counts ? 0 : progress.waited + 1;
    if (best) progress.best = { step, loss };
    progress.evaluated = step;
    const perplexity = session.settings.task === languageModelling ? { perplexity: Math.exp(loss) } : {};
    this.#tell({ event: "evaluation", step, loss, ...perplexity, tokens, best });
    await scope(async () => {
      for (const { regime, training } of session.regimes) {
        await regime.afterEvaluation?.(training, loss);
        session.settleState(regime);
      }
      session.applyChoices();
    });
    return enough();
  }

  async #save(): Promise<void> {
    const session = this.#session;
    const total = scope(() => sumSquares([...session.trained.values()].filter(({ dtype }) => isReal(dtype))));
    if (!Number.isFinite(total)) throw diverged("a weight", total, session.step - 1, session.settings.learningRate);
    const path = await this.#folder!.save(session, this.#progress);
    this.#saved = { step: session.step, path };
    this.#tell({ event: "checkpoint", step: session.step, path });
  }
}
