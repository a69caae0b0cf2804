import { adapterParameters } from "../adapters/attach.ts";
import type { BatchSource } from "../data/batches.ts";
import { StrutError } from "../errors.ts";
import { parameters as baseParameters, type Model } from "../models/model.ts";
import type { AdapterSet, Batch, Live, Observer, Params, Regime, Run, Taps, Training, View } from "../nn/contracts.ts";
import { keepState, Optimization } from "../optimizers/optimization.ts";
import { backward, isReal, noGrad, Rng, scope, type Gradients, type Parameter, type Tensor } from "../tensor/index.ts";
import { Averages } from "./averages.ts";
import { groupsOf } from "./groups.ts";
import { checkUpdateInBackward, gradientIsGone } from "./in-backward.ts";
import { areBatches, type Settings, type TrainOptions } from "./options.ts";
import { Structure } from "./structure.ts";
import { TapRecorder } from "./taps.ts";

/** A regime in a run, with what it sees. */
export interface BoundRegime {
  readonly name: string;
  readonly regime: Regime;
  readonly training: Training;
}

type Hook = "beforeForward" | "afterBackward" | "beforeStep" | "afterStep" | "afterEpoch";

/** What the optimiser does to gradients before, and to weights after its chains. */
const limits = ({ clip, clipValue, stochasticRounding = false }: TrainOptions) => ({
  ...(clip === undefined ? {} : { clip }),
  ...(clipValue === undefined ? {} : { clipValue }),
  stochasticRounding,
});

/** All of a run that lives longer than a step: what hooks see, what checkpoints hold. */
export class Session {
  step = 0;
  batch: Batch = { ids: [] };
  gradients = new Map<Parameter, Tensor>();
  /** Σ g² of the gradients that were used in backward. */
  usedSquares = 0;
  /** The task's, of this step's batches. */
  loss = NaN;
  hidden: Tensor[] = [];
  validation: Batch | undefined;
  /** Most bytes in use after a forward pass of this step, and of gradients alive together. */
  readonly used = { forward: 0, gradients: 0 };
  readonly live: Live;
  readonly model: Model;
  readonly settings: Settings;
  /** Every parameter by name, and those that may train. */
  readonly parameters = new Map<string, Parameter>();
  readonly trained = new Map<string, Parameter>();
  readonly regimes: readonly BoundRegime[];
  readonly optimization: Optimization;
  readonly structure: Structure;
  readonly taps: TapRecorder | undefined;
  readonly averages: Averages | undefined;
  readonly #options: TrainOptions;
  readonly #root: Rng;
  readonly #lives: Live[];
  readonly #names = new Map<Parameter, string>();
  #pending: (() => void)[] = [];
  #passes = 0;

  constructor(model: Model, options: TrainOptions, settings: Settings) {
    this.model = model;
    this.settings = settings;
    this.#options = options;
    this.#root = new Rng(settings.seed).fork("train");
    this.live = { training: true, step: 0, rng: this.#root, values: {} };
    const sets = model.active.map((name) => model.adapters.get(name)!);
    this.#lives = [this.live, ...sets.map(({ live }) => live)];
    this.#collect(sets);
    this.structure = new Structure({ statesOf: (w) => this.optimization.statesOf(w), drop: (w) => this.optimization.drop(w) }, () => this.gradients);
    this.regimes = [
      ...sets.flatMap((set) => (set.regime ? [this.#bind(`adapter/${set.name}`, set.regime, set.live, this.#views(set))] : [])),
      ...(settings.regime ? [this.#bind("optimizer", settings.regime, this.live, [])] : []),
      ...(options.regimes ?? []).map((regime, i) => this.#bind(`regime/${i}`, regime, this.live, [])),
    ];
    const own = this.regimes.flatMap(({ regime, training }) => regime.groups?.(training) ?? []);
    const groups = [...groupsOf(options, this.trained, own), ...own];
    for (const { parameters } of groups) for (const w of parameters) this.nameOf(w);
    this.optimization = new Optimization(groups, this.trained.values(), { ...settings, ...limits(options) });
    if (settings.updateInBackward) checkUpdateInBackward(settings, options, this.regimes, this.optimization);
    const wants = (what: string): boolean => this.regimes.some(({ regime }) => regime.wants?.includes(what as never));
    this.#wantsTaps = wants("taps");
    this.taps = this.#wantsTaps || this.optimization.wantsTaps ? new TapRecorder() : undefined;
    this.averages = options.ema && new Averages(this.trained, options.ema.decay);
    if (wants("teacher") && !options.teacher)
      throw new StrutError("option", "a regime of this run needs a teacher", {
        path: "teacher",
        hint: "Give train() the model it shall learn from as `teacher`.",
      });
    if (wants("validation") && !this.#validationData)
      throw new StrutError("option", "a regime of this run needs validation batches", { path: "validation", hint: "Give train() `validation`." });
    this.#wantsHidden = wants("hidden");
    this.#wantsValidation = wants("validation");
  }

  readonly #wantsTaps: boolean;
  readonly #wantsHidden: boolean;
  readonly #wantsValidation: boolean;

  get #validationData(): readonly Batch[] | undefined {
    const { validation, evaluate } = this.#options;
    return validation ?? (evaluate && areBatches(evaluate.data) ? evaluate.data : undefined);
  }

  #collect(sets: readonly AdapterSet[]): void {
    for (const [name, w] of baseParameters(this.model)) {
      this.parameters.set(name, w);
      if (w.trainable) this.trained.set(name, w);
    }
    for (const set of sets)
      for (const [name, w] of adapterParameters(set)) {
        this.parameters.set(name, w);
        this.trained.set(name, w);
      }
    if (this.trained.size === 0)
      throw new StrutError("model", "the model has nothing to train: all of its parameters are frozen", {
        hint: "Adapt it (adapt), unfreeze leaves (unfreeze), or give `consume: true` to train its own weights.",
      });
    for (const [name, w] of this.trained) {
      this.#names.set(w, name);
      if (w.trainable && !isReal(w.dtype))
        throw new StrutError("dtype", `${name} is ${w.dtype}; only f32 and f64 parameters train`, { path: name, hint: "Load the model as f32." });
    }
  }

  /** The name of a parameter that may train; an error for others, since the base is shared and never written. */
  readonly nameOf = (w: Parameter): string => {
    const name = this.#names.get(w);
    if (name !== undefined) return name;
    throw new StrutError("parameter", `${w.name || "a parameter"} does not belong to what trains here: the base model is shared and never written`, {
      hint: "Make it trainable first: unfreeze(model, …), or `consume: true`.",
    });
  };

  #views(set: AdapterSet): View[] {
    const seen = new Set<Params>();
    return [...set.entries].flatMap(([path, params]) => {
      const site = this.model.layers.get(path)?.site;
      if (!site || seen.has(params)) return [];
      seen.add(params);
      return [this.structure.view(site, params)];
    });
  }

  get epoch(): number {
    const { source, accumulate } = this.settings;
    return source.epochLength === undefined ? 0 : Math.floor((this.step * accumulate) / source.epochLength);
  }

  get source(): BatchSource {
    return this.settings.source;
  }

  #bind(name: string, regime: Regime, live: Live, views: readonly View[]): BoundRegime {
    // oxlint-disable-next-line no-this-alias -- the getters below have a `this` of their own
    const session = this;
    const training: Training = {
      get step() {
        return session.step;
      },
      steps: session.settings.steps,
      get epoch() {
        return session.epoch;
      },
      get batch() {
        return session.batch;
      },
      model: session.model,
      sites: session.model.sites,
      views,
      get learningRate() {
        return session.settings.learningRate * session.settings.schedule(session.step, session.settings.steps);
      },
      peakLearningRate: session.settings.learningRate,
      parameters: session.parameters,
      live,
      get rng() {
        return session.#root.fork(`${name}/${session.step}`);
      },
      gradient(w) {
        if (session.settings.updateInBackward && session.gradients.size === 0) throw gradientIsGone(name);
        return session.gradients.get(w);
      },
      get taps() {
        return session.taps?.taps ?? none;
      },
      get hidden() {
        return session.hidden;
      },
      trainable: (w, on, state = "keep") => session.#choose(w, on, state),
      moments: (w) => session.optimization.moments(w, session.context()),
      pass: (batch, options) => session.#pass(batch, options?.backward ?? false),
      validationBatch: () => session.validation,
      ...(session.#options.teacher ? { teacher: session.#options.teacher } : {}),
    };
    return { name, regime, training };
  }

  context = () =>
    this.optimization.context(
      this.step,
      this.settings.steps,
      this.#root.fork(`optimizer/${this.step}`),
      this.model.sites,
      this.taps?.taps ?? none,
      (message) => this.#options.onEvent?.({ event: "warning", message }),
      this.loss,
    );

  #choose(w: Parameter, on: boolean, state: "keep" | "drop"): void {
    this.nameOf(w);
    this.#pending.push(() => {
      w.trainable = on;
      if (state === "drop") this.optimization.drop(w);
    });
  }

  /** Puts into effect what hooks chose with `trainable`. */
  applyChoices(): void {
    for (const apply of this.#pending) apply();
    this.#pending = [];
  }

  async #pass(batch: Batch, wanted: boolean): Promise<{ loss: number; gradients?: Gradients }> {
    const before = this.live.rng;
    this.setLive(`step/${this.step}/pass/${this.#passes++}`);
    try {
      if (!wanted) return { loss: await noGrad(() => scope(() => this.settings.task.loss(this.model, batch, { live: this.live }))).item() };
      return await scope(async () => {
        const loss = this.settings.task.loss(this.model, batch, { live: this.live });
        const value = await loss.item();
        return { loss: value, gradients: backward(loss) };
      });
    } finally {
      for (const live of this.#lives) live.rng = before;
    }
  }

  /** Tells every adapter where the run is and which random numbers are its. */
  setLive(stream: string, training = true): void {
    const rng = this.#root.fork(stream);
    for (const live of this.#lives) Object.assign(live, { training, step: this.step, rng });
  }

  /** How the model is to be run for a batch of this step. */
  get run(): Run {
    const requests = [...this.optimization.tapRequests(this.step), ...(this.#wantsTaps ? [{}] : [])];
    const observer: Observer = {
      ...(requests.length > 0 ? this.taps?.observer(requests) : {}),
      ...(this.#wantsHidden ? { hidden: (_depth: number, x: Tensor) => void this.hidden.push(x) } : {}),
    };
    const observing = Object.keys(observer).length > 0;
    return { live: this.live, ...(observing ? { observer } : {}), ...(this.#options.recompute ? { recompute: true } : {}) };
  }

  async beginStep(): Promise<void> {
    this.gradients = new Map();
    this.usedSquares = 0;
    this.hidden = [];
    Object.assign(this.used, { forward: 0, gradients: 0 });
    this.#passes = 0;
    this.taps?.clear();
    const data = this.#wantsValidation ? this.#validationData! : [];
    this.validation = data[this.step % Math.max(1, data.length)];
  }

  /** Runs one hook of every regime; tensors it put into its state outlive the step. */
  async hook(name: Hook): Promise<void> {
    for (const bound of this.regimes) {
      await bound.regime[name]?.(bound.training);
      this.settleState(bound.regime);
    }
  }

  settleState({ state }: Regime): void {
    if (state) keepState(state);
  }
}

const none: ReadonlyMap<string, Taps> = new Map();
