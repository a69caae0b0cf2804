import type { z } from "zod";
import type { ConvGeometry, LinearOperator } from "../operators/index.ts";
import type { Gradients, Parameter, Rng, Tensor } from "../tensor/index.ts";

export type Awaitable<T> = T | Promise<T>;

/** A place in a model where a matrix lives. */
export interface Site {
  /** Hugging Face's module path: `model.layers.0.self_attn.q_proj`. */
  readonly path: string;
  readonly depth: number;
  /** `q_proj`, `c_attn`, `embed_tokens` …: what pools and group graphs key on. */
  readonly role: string;
  readonly kind: "linear" | "conv2d" | "embedding";
  readonly out: number;
  readonly in: number;
  /** Of a conv2d the matrix on unfolded patches, out × (in/groups·kh·kw). */
  readonly weight: LinearOperator;
  readonly bias?: Parameter;
  readonly conv?: ConvGeometry;
}

/** Named tensors of one site; those that are Parameters train. */
export type Params = Readonly<Record<string, Tensor>>;

/** What a method may read while a model runs. `values` are per-step scalars that `beforeForward` wrote. */
export interface Live {
  training: boolean;
  step: number;
  rng: Rng;
  values: Record<string, number>;
}

/** What is measured in forward and backward: by the loop for regimes, by the calibration pass. What it keeps, it copies. */
export interface Observer {
  hidden?(depth: number, x: Tensor): void;
  /** x […, in] as the operator sees it, of a conv2d its unfolded patches; or the ids of an embedding. */
  input?(site: Site, x: Tensor): void;
  outputGradient?(site: Site, gradient: Tensor): void;
  /** The sites that it sees; defaults to all. */
  sees?(site: Site): boolean;
  /** A trainable leaf: gradients flow from every site that is seen, even where nothing trains. */
  readonly leaf?: Parameter;
}

export interface KvCache {
  /** Tokens held. */
  readonly length: number;
  /** Adds keys (before rotation) and values [batch, tokens, heads, dim] and returns all so far, keys rotated. */
  append(k: Tensor, v: Tensor, rotate: (k: Tensor, start: number) => Tensor): { k: Tensor; v: Tensor };
  /** Keeps the given rows of the batch, in that order. */
  reorder(index: readonly number[]): void;
  bytes(): number;
}

/** One pass through a model. */
export interface Run {
  readonly live?: Live;
  readonly observer?: Observer;
  /** One cache a layer; the pass continues behind what they hold. */
  readonly caches?: readonly KvCache[];
  /** Forget the intermediates of each block and compute them again in backward; defaults to false. */
  readonly recompute?: boolean;
  /** Only the blocks from `from` to before `until`; the first of them gets x in place of what came before. */
  readonly part?: { readonly from: number; readonly until: number; readonly x?: Tensor };
  /** The adapter of each row of the batch, null for the base alone; in place of the active ones. Every module's output is that of its rows alone. */
  readonly mix?: readonly (string | null)[];
  /** i32 [batch, tokens]: 1 where there is a token, 0 where there is padding; encoders read it. */
  readonly mask?: Tensor;
}

/** Something of an adapter that acts at one layer while the adapter is active. */
export interface Attachment {
  readonly adapter: string;
  /** The site's whole output; y is the output so far. */
  forward?(x: Tensor, y: Tensor, site: Site, run: Run): Tensor;
  /** Rows of an embedding; y are the rows so far. */
  rows?(ids: Tensor, y: Tensor, site: Site, run: Run): Tensor;
  /** W itself in place of the base's. With several of them active the differences from the base's add up. */
  weightAt?(site: Site): LinearOperator;
  /** ΔW given the site as it is so far; its absence means that the adapter cannot be merged here. */
  update?(site: Site): LinearOperator;
  /** Added to the bias; merging needs a site that has one. */
  biasUpdate?(site: Site): Tensor | undefined;
  /** Stands in for the base's weight (a LinearOperator at sites, a Parameter at norms) or bias. */
  readonly weight?: LinearOperator | Parameter;
  readonly bias?: Parameter;
}

/** The parameters of one adapter at one site, which the loop can resize and mask; optimiser state follows. */
export interface View<P extends Params = Params> {
  readonly site: Site;
  readonly params: P;
  /**
   * New extent along an axis: element i comes from `index[i]`, or is new where that is −1 (then `fill`, default 0).
   * state: keep (shape must not change), gather with the weights, zero, or reset (dropped; starts anew).
   */
  resize(name: string, axis: number, index: Int32Array, state: "keep" | "gather" | "zero" | "reset", fill?: number): void;
  /** Rows of a parameter (axis 0) whose flag is not 0 become 0 and stay so: weights, gradients and moments; null lifts it. */
  mask(name: string, rows: Uint8Array | null): void;
}

/** Factor of the learning rate at a step (from 0) of a run of so many steps. */
export type Schedule = (step: number, steps: number) => number;

export interface ParameterGroup {
  readonly parameters: readonly Parameter[];
  /** Factor on the run's learning rate, or the rate itself. */
  readonly learningRateFactor?: number;
  readonly learningRate?: number;
  readonly weightDecay?: number;
  /** Factor of the learning rate at a step, in place of the run's schedule. */
  readonly schedule?: Schedule;
  /** A chain of its own for these parameters. */
  readonly optimizer?: Transform;
}

/** Tensors and scalars, nested by name: all that a checkpoint holds of anything that trains. */
export interface State {
  [name: string]: Tensor | number | State;
}

/**
 * What the loop measured at a site in this step: x averaged over rows [in], of a convolution over its patches, and ∂loss/∂y summed
 * over rows [out], as a bias would get it; both over all batches of the step, and cut as its readers ask.
 */
export interface Taps {
  readonly input?: Tensor;
  readonly outputGradient?: Tensor;
}

export interface TransformContext {
  /** From 0. */
  readonly step: number;
  readonly steps: number;
  readonly rng: Rng;
  /** Of the group the parameter belongs to, schedule applied. */
  readonly learningRate: (w: Parameter) => number;
  readonly weightDecay: (w: Parameter) => number;
  readonly sites: readonly Site[];
  /** Tells the user of something the run goes on in spite of. */
  warn(message: string): void;
  /** By site path; empty unless a link of the chain reads them at this step. */
  readonly taps: ReadonlyMap<string, Taps>;
  /** The task's, the mean over the step's batches. */
  readonly loss: number;
}

/** Which taps a link reads. */
export interface TapRequest {
  /** Whether it reads those of a step; `s` is the link's state, if there is any yet. Defaults to every step. */
  at?(step: number, s: State | undefined): boolean;
  /** The sites it reads; defaults to all. */
  sees?(site: Site): boolean;
  /** Inputs, and output gradients times the rows of their batch, are cut to ±bound before they are averaged, for all readers. */
  readonly bound?: number;
}

interface LinkTraits {
  readonly fused?: FusedLink;
  readonly taps?: TapRequest;
  /** The run's `clip` comes after this link, since it changes what a gradient's norm means. */
  readonly clipAfter?: true;
}

/** Sees one tensor at a time. Its state is made at a parameter's first update. */
export interface ParameterLink extends LinkTraits {
  readonly scope: "parameter";
  init(w: Parameter, t: TransformContext): State;
  update(u: Tensor, s: State, w: Parameter, t: TransformContext): Awaitable<Tensor>;
}

/** Sees all tensors of a group, or of the model, that have a gradient in this step. */
export interface ListLink extends LinkTraits {
  readonly scope: "group" | "model";
  init(w: readonly Parameter[], t: TransformContext): State;
  update(u: readonly Tensor[], s: State, w: readonly Parameter[], t: TransformContext): Awaitable<readonly Tensor[]>;
}

/**
 * An optimiser is a chain of these. `update` owns u and s and may write both in place; it runs without recording, and the
 * last link's output is subtracted from the weights.
 */
export type Transform = ParameterLink | ListLink | { readonly scope: "chain"; readonly links: readonly Transform[] };

/** Declares that a link is part of the everyday chain clip · adam · decay · learning rate, which has one fused kernel. */
export type FusedLink =
  | { kind: "clip"; maxNorm: number }
  | { kind: "adam"; beta1: number; beta2: number; eps: number }
  | { kind: "decay" }
  | { kind: "decayAfter" }
  | { kind: "learningRate" };

/** A stretch of training with its own trainable set. */
export interface Phase<P extends Params = Params> {
  readonly steps: number;
  /** Which parameters train in it; defaults to those that did before. */
  readonly trainable?: (w: Parameter) => boolean;
  /** At the start of its first step, after `trainable`. */
  onEnter?(t: Training<P>): Awaitable<void>;
}

/** What the loop shows to regimes. */
export interface Training<P extends Params = Params> {
  readonly step: number;
  readonly steps: number;
  readonly epoch: number;
  readonly batch: Batch;
  readonly model: RunnableModel;
  readonly sites: readonly Site[];
  readonly views: readonly View<P>[];
  /** The run's at this step, schedule applied. */
  readonly learningRate: number;
  /** The run's, without its schedule. */
  readonly peakLearningRate: number;
  readonly parameters: ReadonlyMap<string, Parameter>;
  readonly live: Live;
  readonly rng: Rng;
  /** This step's gradient, alive until the end of the step. */
  gradient(w: Parameter): Tensor | undefined;
  /** By site path, complete after backward; empty unless a regime wants them. */
  readonly taps: ReadonlyMap<string, Taps>;
  /** Input of each block and of the last norm, on the tape: for `loss`. Empty unless a regime wants them. */
  readonly hidden: readonly Tensor[];
  /** Whether a parameter trains from the next forward pass on; its optimiser state is kept or dropped. */
  trainable(w: Parameter, on: boolean, state?: "keep" | "drop"): void;
  /** The optimiser state of a parameter, by link: to read, mask or reset in place. */
  moments(w: Parameter): readonly State[];
  /** A further pass without an update: its loss, and its gradients if asked for. */
  pass(batch: Batch, options?: { backward?: boolean }): Awaitable<{ loss: number; gradients?: Gradients }>;
  validationBatch(): Batch | undefined;
  readonly teacher?: RunnableModel;
}

/** What a method does during training; all parts are optional. It also stands alone on plain weights. */
export interface Regime<P extends Params = Params> {
  /** Asked once, when the run starts. */
  groups?(t: Training<P>): readonly ParameterGroup[];
  /** Once a step, before its first forward pass. */
  beforeForward?(t: Training<P>): Awaitable<void>;
  /** Added to the task's loss; sees every site at once. */
  loss?(t: Training<P>): Tensor;
  /** A finished gradient, before clipping; what it returns takes its place. */
  onGradient?(t: Training<P>, w: Parameter, g: Tensor): Awaitable<Tensor | void>;
  afterBackward?(t: Training<P>): Awaitable<void>;
  /** After clipping, before the weights move. */
  beforeStep?(t: Training<P>): Awaitable<void>;
  /** After the weights moved; this step's gradients are still readable. */
  afterStep?(t: Training<P>): Awaitable<void>;
  afterEpoch?(t: Training<P>): Awaitable<void>;
  afterEvaluation?(t: Training<P>, loss: number): Awaitable<void>;
  /** Whether an evaluation after so many steps may be the best, and counts for early stopping; defaults to yes. */
  mayBeBest?(t: Training<P>): boolean;
  readonly phases?: readonly Phase<P>[];
  /** Tensors and scalars that a checkpoint keeps; restored in place. */
  readonly state?: State;
  readonly wants?: readonly ("hidden" | "teacher" | "validation" | "taps")[];
}

export interface Batch {
  /** Token ids [rows][tokens]; the loss predicts each from those before it. −100 in labels is not scored. */
  readonly ids: readonly ArrayLike<number>[];
  readonly labels?: readonly ArrayLike<number>[];
  /** What a task other than language modelling reads, where `ids` is empty: x, and labels or y. */
  readonly inputs?: Readonly<Record<string, Tensor>>;
}

/** What a run minimises: the loss of a batch. */
export interface Task {
  readonly name: string;
  /** Mean over the batch's targets. */
  loss(model: RunnableModel, batch: Batch, run?: Run): Tensor;
  /** How many targets the mean is over: the batch's weight in an evaluation. */
  scored(batch: Batch): number;
}

/** One adapter on a model. */
export interface AdapterSet {
  readonly name: string;
  readonly method: string;
  readonly options: Readonly<Record<string, unknown>>;
  /** Per site, the method's parameters; shared ones stand in `shared` once. */
  readonly entries: ReadonlyMap<string, Params>;
  readonly shared: Params;
  /** Copies of base leaves that train with the adapter (biases, modules_to_save, token rows), under their leaf names. */
  readonly copies: ReadonlyMap<string, Parameter>;
  readonly live: Live;
  readonly regime?: Regime;
}

/** A model as the loop sees it; `Model` in models/ is the full one. */
export interface RunnableModel {
  readonly sites: readonly Site[];
  readonly adapters: ReadonlyMap<string, AdapterSet>;
  readonly active: readonly string[];
}

/** A law a method breaks by its nature, with the line of its sheet that forces it. */
export interface Waiver {
  readonly law: string;
  readonly because: string;
}

export type Statistic =
  | "inputGram"
  | "inputMean"
  | "inputAbsMean"
  | "inputNorm"
  | "inputs"
  | "idCounts"
  | "outputGradientGram"
  | "outputGradientMean"
  | "outputGradientNorm"
  | "weightGradient"
  | "weightTimesGradient";

/** What every system in the catalog says about itself. Options are a zod schema whose descriptions are the help. */
export interface Method<O extends z.ZodObject = z.ZodObject> {
  readonly id: string;
  readonly family: string;
  readonly title: string;
  readonly paper: string;
  readonly options: O;
  readonly needs?: readonly Statistic[];
  readonly waives?: readonly Waiver[];
}
