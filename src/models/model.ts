import { StrutError } from "../errors.ts";
import type { Config } from "../formats/huggingface.ts";
import type { AdapterSet, Attachment, Observer, RunnableModel, Run, Site } from "../nn/contracts.ts";
import { dense, isOperator, type LinearOperator } from "../operators/index.ts";
import { add, Parameter, stopGradient, sub, type Tensor } from "../tensor/index.ts";
import { record } from "../tensor/tape.ts";

/** One module with weights, as the architecture lists it. */
export interface LayerSpec {
  readonly path: string;
  readonly kind: "linear" | "embedding" | "norm";
  /** out×in for matrices (whatever their layout in the file), [n] for norms */
  readonly shape: readonly number[];
  readonly bias: boolean;
  readonly depth: number;
  /** The file holds in×out (GPT-2's Conv1D). */
  readonly transposed?: boolean;
  /** Shares its weight with the layer at this path. */
  readonly tiedTo?: string;
}

/** A module of a model: its weights, and what adapters attached to it. */
export interface Layer {
  readonly spec: LayerSpec;
  readonly weight: Parameter;
  readonly bias?: Parameter;
  readonly site?: Site;
  readonly attached: readonly Attachment[];
}

/** What an architecture is: which modules it has, and how ids become hidden states. */
export interface Architecture {
  /** `model_type` of config.json. */
  readonly modelType: string;
  readonly embedding: string;
  /** The key of config.json that counts the blocks. */
  readonly depthKey: string;
  readonly head: string;
  /** File keys that hold no weights (buffers of older versions). */
  readonly ignored?: RegExp;
  /** Prefix that some files leave out. */
  readonly prefix?: string;
  /** Reads what it needs of config.json; throws a sentence for what it cannot run. */
  parse(config: Config): Dimensions;
  layers(dimensions: Dimensions): LayerSpec[];
  /** Hidden states after the last norm, [batch, tokens, width]. */
  forward(model: Model, ids: Tensor, run: Run): Tensor;
}

export interface Dimensions {
  readonly vocabularySize: number;
  readonly width: number;
  readonly depth: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headSize: number;
  readonly context: number;
  readonly tied: boolean;
  readonly [extra: string]: unknown;
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
export function makeLayer(spec: LayerSpec, weight: Parameter, bias?: Parameter): Layer {
  const base = { spec, weight, ...(bias ? { bias } : {}), attached: [] };
  if (spec.kind === "norm") return base;
  const operator = dense(weight, spec.transposed ?? false);
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
  };
  return { ...base, site };
}

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

/** A layer's site as it is now: the base's, unless an active adapter brings a weight or bias of its own. */
export function currentSite({ site, bias: base }: Layer, active: readonly Attachment[]): Site {
  if (active.length === 0) return site!;
  const weight = (active.findLast((attachment) => isOperator(attachment.weight))?.weight as LinearOperator | undefined) ?? site!.weight;
  const bias = active.findLast((attachment) => attachment.bias)?.bias ?? base;
  return weight === site!.weight && bias === base ? site! : { ...site!, weight, ...(bias ? { bias } : {}) };
}

/** One linear layer with its active adapters, and the observer's taps. */
export function applyLinear(model: Model, path: string, x: Tensor, run: Run): Tensor {
  const layer = layerAt(model, path);
  const active = acting(model, layer);
  const site = currentSite(layer, active);
  const { weight, bias } = site;
  const observer = run.observer && (run.observer.sees?.(layer.site!) ?? true) ? run.observer : undefined;
  observer?.input?.(layer.site!, x);
  let y = bias ? (weight.withBias?.(x, bias) ?? add(weight.apply(x), bias)) : weight.apply(x);
  // every adapter sees the base's output, so that what they add does not depend on their order
  const base = y;
  for (const { forward } of active) if (forward) y = y === base ? forward(x, base, site, run) : add(y, sub(forward(x, base, site, run), base));
  return observer?.outputGradient ? observed(y, layer.site!, observer) : y;
}

/** Passes y on and shows its gradient to the observer. */
function observed(y: Tensor, site: Site, observer: Observer): Tensor {
  const inputs = observer.leaf ? [y, observer.leaf] : [y];
  return record(stopGradient(y), inputs, (g) => {
    observer.outputGradient!(site, g);
    return observer.leaf ? [g, null] : [g];
  });
}

/** Rows of an embedding with its active adapters. */
export function applyEmbedding(model: Model, path: string, ids: Tensor, run: Run): Tensor {
  const layer = layerAt(model, path);
  const active = acting(model, layer);
  const site = currentSite(layer, active);
  let y = site.weight.rows!(ids);
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

/** Whether a layer is nothing but its matrix now, so that fused forms may read the weight. */
export const plainWeight = (model: Model, path: string): Tensor | undefined => {
  const layer = layerAt(model, path);
  return acting(model, layer).length === 0 && !layer.bias && layer.site!.weight.kind === "dense" ? layer.site!.weight.toDense() : undefined;
};

/**
 * Logits [batch, tokens, vocabulary] of token ids [batch, tokens].
 *
 * @example
 * const logits = forward(model, tensor([1, 5, 9], [1, 3], "i32"));
 */
export function forward(model: Model, ids: Tensor, run: Run = {}): Tensor {
  return applyLinear(model, model.architecture.head, hidden(model, ids, run), run);
}

/** Hidden states after the last norm. */
export function hidden(model: Model, ids: Tensor, run: Run = {}): Tensor {
  const past = run.caches?.[0]?.length ?? 0;
  if (ids.shape.length !== 2 || ids.dtype !== "i32") throw new StrutError("shape", `ids must be i32 [batch, tokens], got ${ids.dtype}[${ids.shape}]`);
  if (past + ids.shape[1]! > model.dimensions.context)
    throw new StrutError("context", `${past + ids.shape[1]!} tokens do not fit into the model's context of ${model.dimensions.context}`, {
      hint: "Use shorter windows or prompts.",
    });
  return model.architecture.forward(model, ids, run);
}

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
