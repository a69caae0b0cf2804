import { StrutError } from "../errors.ts";
import type { Config } from "../formats/huggingface.ts";
import type { AdapterSet, Attachment, Observer, RunnableModel, Run, Site } from "../nn/contracts.ts";
import { convolve, dense, isOperator, lookUp, patchesOf, scaledRows, sumOf, type ConvGeometry, type LinearOperator } from "../operators/index.ts";
import { add, batchNorm, full, noGrad, Parameter, permute, residualLinear, stopGradient, sub, type Real, type Tensor } from "../tensor/index.ts";
import { record } from "../tensor/tape.ts";
import { checkMix, mixed } from "./mix.ts";

/** One module with weights, as the architecture lists it. */
export interface LayerSpec {
  readonly path: string;
  readonly kind: "linear" | "embedding" | "conv2d" | "norm";
  /** out×in for matrices (whatever their layout in the file), [out, in/groups, kh, kw] for filters, [n] for norms */
  readonly shape: readonly number[];
  readonly bias: boolean;
  readonly depth: number;
  /** The file holds in×out (GPT-2's Conv1D). */
  readonly transposed?: boolean;
  /** Shares its weight with the layer at this path. */
  readonly tiedTo?: string;
  /** Of a conv2d. */
  readonly conv?: ConvGeometry;
  /** Statistics of a batch norm, [n] each, by name; a new model starts them at these numbers. */
  readonly buffers?: Readonly<Record<string, number>>;
}

/** Rows or columns of several matrices that mean something only together: a unit, a neuron or a head, has `size` of them in each. */
export interface CoupledGroup {
  readonly kind: "neurons" | "heads";
  readonly depth: number;
  readonly units: number;
  readonly members: readonly {
    readonly path: string;
    /** Rows of out×in, or columns. */
    readonly side: "out" | "in";
    readonly size: number;
    /** What the lines are; a fused matrix has one after the other, each with all units. */
    readonly roles: readonly string[];
  }[];
}

/** A module of a model: its weights, and what adapters attached to it. */
export interface Layer {
  readonly spec: LayerSpec;
  /** As the file has it; of a quantised matrix its codes. */
  readonly weight: Parameter;
  /** How a quantised matrix is kept. */
  readonly quantized?: LinearOperator;
  readonly bias?: Parameter;
  /** What training moves without a gradient, by name. */
  readonly buffers?: Buffers;
  readonly site?: Site;
  readonly attached: readonly Attachment[];
}

export type Buffers = Readonly<Record<string, Parameter>>;

/** What an architecture is: which modules it has, and how its input becomes hidden states. */
export interface Architecture {
  /** `model_type` of config.json. */
  readonly modelType: string;
  /** The module that looks token ids up, where there is one. */
  readonly embedding?: string;
  /** The key of config.json that counts the blocks, where they are alike. */
  readonly depthKey?: string;
  /** The last linear module: `forward` applies it to the hidden states. */
  readonly head: string;
  /** File keys that hold no weights (buffers of older versions). */
  readonly ignored?: RegExp;
  /** Prefix that some files leave out. */
  readonly prefix?: string;
  /** Reads what it needs of config.json; throws a sentence for what it cannot run. */
  parse(config: Config): Dimensions;
  layers(dimensions: Dimensions): LayerSpec[];
  /** What can be cut from every block: its neurons, and its heads (with grouped queries a key/value head and the queries that read it). */
  coupled?(dimensions: Dimensions): CoupledGroup[];
  /** Throws a sentence for an input that does not fit; defaults to asking for i32 ids [batch, tokens] within the context. */
  check?(dimensions: Dimensions, input: Tensor): void;
  /** What the head reads: hidden states after the last norm [batch, tokens, width], or features [batch, width]. */
  forward(model: Model, input: Tensor, run: Run): Tensor;
  /** What follows the head; nothing if absent. */
  output?(y: Tensor): Tensor;
}

export interface Dimensions {
  /** Features that the head reads. */
  readonly width: number;
  readonly depth: number;
  readonly [extra: string]: unknown;
}

export interface LanguageDimensions extends Dimensions {
  readonly vocabularySize: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headSize: number;
  readonly context: number;
  readonly tied: boolean;
}

/** Whether dimensions are those of a model that predicts tokens. */
export const areLanguage = (dimensions: Dimensions): dimensions is LanguageDimensions => typeof dimensions["kvHeads"] === "number";

/** The dimensions of a model that predicts tokens; a sentence for others. */
export function languageDimensions({ architecture, dimensions }: Pick<Model, "architecture" | "dimensions">): LanguageDimensions {
  if (areLanguage(dimensions)) return dimensions;
  throw new StrutError("model", `a ${architecture.modelType} model does not predict tokens`, { hint: "Use a language model here, such as llama or gpt2." });
}

/** A model is a value: adapting or merging makes another one that shares every untouched leaf. */
export interface Model extends RunnableModel {
  readonly architecture: Architecture;
  /** config.json as read, unknown keys included. */
  readonly config: Config;
  readonly dimensions: Dimensions;
  readonly layers: ReadonlyMap<string, Layer>;
  /** Folder it was loaded from, for tokenizer and companion files. */
  readonly folder?: string;
}

/** A layer around its weights; matrices get their site. */
export function makeLayer(spec: LayerSpec, weight: Parameter, bias?: Parameter, buffers?: Buffers, quantized?: LinearOperator): Layer {
  const base = { spec, weight, ...(bias ? { bias } : {}), ...(buffers ? { buffers } : {}), ...(quantized ? { quantized } : {}), attached: [] };
  if (spec.kind === "norm") return base;
  const operator = quantized ?? dense(weight, spec.transposed ?? false);
  const [out, inner] = [operator.out, operator.in];
  const site: Site = {
    path: spec.path,
    depth: spec.depth,
    role: spec.path.split(".").at(-1)!,
    kind: spec.kind,
    out,
    in: inner,
    weight: operator,
    ...(bias ? { bias } : {}),
    ...(spec.conv ? { conv: spec.conv } : {}),
  };
  return { ...base, site };
}

/** The type that a layer computes in. */
export const realOf = ({ weight, quantized }: Pick<Layer, "weight" | "quantized">): Real => (quantized ? "f32" : (weight.dtype as Real));

/** A model from its layers; sites follow the order of the architecture. */
export function makeModel(parts: Omit<Model, "sites" | "adapters" | "active"> & Partial<Pick<Model, "adapters" | "active">>): Model {
  const sites = [...parts.layers.values()].flatMap(({ site }) => (site ? [site] : []));
  return { adapters: new Map<string, AdapterSet>(), active: [], ...parts, sites };
}

/** The layer at a path. */
export function layerAt(model: Model, path: string): Layer {
  const layer = model.layers.get(path);
  if (!layer) throw new StrutError("model", `the model has no module ${path}`);
  return layer;
}

/** What the active adapters do at a layer. */
export const acting = (model: Model, layer: Layer): readonly Attachment[] =>
  layer.attached.length === 0 ? layer.attached : layer.attached.filter(({ adapter }) => model.active.includes(adapter));

/** A layer's site as it is now: the base's, unless active adapters bring a weight or bias of their own. */
export function currentSite(layer: Layer, active: readonly Attachment[]): Site {
  const { site, bias: base } = layer;
  if (active.length === 0) return site!;
  const replaced = (active.findLast((attachment) => isOperator(attachment.weight))?.weight as LinearOperator | undefined) ?? site!.weight;
  const bias = active.findLast((attachment) => attachment.bias)?.bias ?? base;
  const start = replaced === site!.weight && bias === base ? site! : { ...site!, weight: replaced, ...(bias ? { bias } : {}) };
  const [first, ...others] = active.flatMap(({ weightAt }) => (weightAt ? [weightAt(start)] : []));
  if (!first) return start;
  const minusBase = (): LinearOperator => scaledRows(full([start.out], -1, realOf(layer)), start.weight);
  return { ...start, weight: others.reduce((sum, other) => sumOf(sumOf(sum, other), minusBase()), first) };
}

/** One linear or conv2d layer with its active adapters, and the observer's taps. */
export function applyLinear(model: Model, path: string, x: Tensor, run: Run): Tensor {
  const layer = layerAt(model, path);
  if (run.mix && layer.attached.length > 0) {
    const { mix, ...plain } = run;
    return mixed(model, mix, x, (own, part) => applyLinear(own, path, part, plain));
  }
  const active = acting(model, layer);
  const site = currentSite(layer, active);
  const { weight, bias } = site;
  const observer = run.observer && (run.observer.sees?.(layer.site!) ?? true) ? run.observer : undefined;
  if (observer?.input) observer.input(layer.site!, site.conv ? noGrad(() => patchesOf(x, site.conv!)) : x);
  let y = site.conv ? convolve(weight, x, site.conv, bias ?? null) : bias ? (weight.withBias?.(x, bias) ?? add(weight.apply(x), bias)) : weight.apply(x);
  // every adapter sees the base's output, so that what they add does not depend on their order
  const base = y;
  for (const { forward } of active) if (forward) y = y === base ? forward(x, base, site, run) : add(y, sub(forward(x, base, site, run), base));
  return observer?.outputGradient ? observed(y, layer.site!, observer) : y;
}

/**
 * y + a linear layer's output: in one product, which keeps nothing but the sum, where nothing sits on the layer or looks at it. There
 * `again` stands in for an x that nothing else needs: it is computed once more in backward instead of being kept.
 */
export function addApplied(model: Model, path: string, y: Tensor, x: Tensor, run: Run, again?: () => Tensor): Tensor {
  const layer = layerAt(model, path);
  const { weight, bias } = layer.site!;
  if (weight.kind !== "dense" || run.mix || run.observer || acting(model, layer).length > 0) return add(y, applyLinear(model, path, x, run));
  return residualLinear(y, x, weight.toDense(), bias ?? null, again);
}

/** Passes y on and shows its gradient to the observer. */
function observed(y: Tensor, site: Site, observer: Observer): Tensor {
  const inputs = observer.leaf ? [y, observer.leaf] : [y];
  return record(stopGradient(y), inputs, (g) => {
    observer.outputGradient!(site, site.conv ? permute(g, [0, 2, 3, 1]) : g);
    return observer.leaf ? [g, null] : [g];
  });
}

/** Rows of an embedding with its active adapters. */
export function applyEmbedding(model: Model, path: string, ids: Tensor, run: Run): Tensor {
  const layer = layerAt(model, path);
  if (run.mix && layer.attached.length > 0) {
    const { mix, ...plain } = run;
    return mixed(model, mix, ids, (own, part) => applyEmbedding(own, path, part, plain));
  }
  const active = acting(model, layer);
  const site = currentSite(layer, active);
  let y = lookUp(site.weight, ids);
  if (run.observer?.sees?.(layer.site!) ?? true) run.observer?.input?.(layer.site!, ids);
  for (const { rows } of active) if (rows) y = rows(ids, y, site, run);
  return y;
}

/** Weight and bias of a norm, with what active adapters bring of their own. */
export function currentNorm(layer: Layer, active: readonly Attachment[]): { weight: Parameter; bias: Parameter | null } {
  const own = active.findLast(({ weight }) => weight instanceof Parameter)?.weight as Parameter | undefined;
  return { weight: own ?? layer.weight, bias: active.findLast(({ bias }) => bias)?.bias ?? layer.bias ?? null };
}

export const normOf = (model: Model, path: string): ReturnType<typeof currentNorm> => {
  const layer = layerAt(model, path);
  return currentNorm(layer, acting(model, layer));
};

/** A batch norm layer: running statistics in evaluation; those of the batch, which move the running ones, in training. */
export function applyBatchNorm(model: Model, path: string, x: Tensor, run: Run, eps: number): Tensor {
  const { weight, bias } = normOf(model, path);
  const { running_mean: mean, running_var: variance } = layerAt(model, path).buffers!;
  return batchNorm(x, { mean: mean!, variance: variance! }, weight, bias, { training: run.live?.training ?? false, eps });
}

/** Whether a layer is nothing but its matrix now, so that fused forms may read the weight. */
export const plainWeight = (model: Model, path: string): Tensor | undefined => {
  const layer = layerAt(model, path);
  return acting(model, layer).length === 0 && !layer.bias && layer.site!.weight.kind === "dense" ? layer.site!.weight.toDense() : undefined;
};

/**
 * The output of a model: logits [batch, tokens, vocabulary] of token ids [batch, tokens] where it is a language model.
 *
 * @example
 * const logits = forward(model, tensor([1, 5, 9], [1, 3], "i32"));
 */
export function forward(model: Model, input: Tensor, run: Run = {}): Tensor {
  const { head, output } = model.architecture;
  const y = applyLinear(model, head, hidden(model, input, run), run);
  return output ? output(y) : y;
}

/** What the head of a model reads: hidden states after the last norm, or features. */
export function hidden(model: Model, input: Tensor, run: Run = {}): Tensor {
  if (model.architecture.check) model.architecture.check(model.dimensions, input);
  else checkIds(input, run.caches?.[0]?.length ?? 0, languageDimensions(model).context);
  if (run.mix) checkMix(model, run.mix, input.shape[0]!);
  return model.architecture.forward(run.mix ? { ...model, active: [] } : model, input, run);
}

/** Throws unless the input is token ids that fit into the context behind `past` others. */
export function checkIds(ids: Tensor, past: number, context: number): void {
  if (ids.shape.length !== 2 || ids.dtype !== "i32") throw new StrutError("shape", `ids must be i32 [batch, tokens], got ${ids.dtype}[${ids.shape}]`);
  if (past + ids.shape[1]! > context)
    throw new StrutError("context", `${past + ids.shape[1]!} tokens do not fit into the model's context of ${context}`, {
      hint: "Use shorter windows or prompts.",
    });
}

/** What training moves without a gradient, such as running statistics, under Hugging Face's names. */
export const buffers = (model: Model): Map<string, Parameter> =>
  new Map([...model.layers].flatMap(([path, layer]) => Object.entries(layer.buffers ?? {}).map(([name, buffer]) => [`${path}.${name}`, buffer])));

/** Every base parameter once, under Hugging Face's names. */
export function parameters(model: Model): Map<string, Parameter> {
  const named = new Map<string, Parameter>();
  const seen = new Set<Parameter>();
  const put = (name: string, parameter: Parameter | undefined): void => {
    if (!parameter || seen.has(parameter)) return;
    seen.add(parameter);
    named.set(name, parameter);
  };
  for (const [path, layer] of model.layers) {
    put(`${path}.weight`, layer.weight);
    put(`${path}.bias`, layer.bias);
  }
  return named;
}
