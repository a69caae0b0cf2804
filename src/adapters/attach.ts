import type { AdapterSet, Attachment, Live, Params, Site } from "../nn/contracts.ts";
import { dense, lookUp, replacedRows, type LinearOperator } from "../operators/index.ts";
import { makeModel, type Layer, type Model } from "../models/model.ts";
import { add, Parameter, Rng, type Tensor } from "../tensor/index.ts";
import type { Adapter } from "./adapter.ts";

/** Where an adapter goes and what trains with it; names are PEFT's in camelCase, and their rules are PEFT's. */
export interface Targeting {
  /** Module endings, a Python pattern, or "all-linear"; defaults to PEFT's for the model type. */
  targets?: string | readonly string[];
  excludeModules?: string | readonly string[];
  layersToTransform?: number | readonly number[];
  layersPattern?: string | readonly string[];
  /** Rank or alpha by pattern; the first key that matches wins. */
  rankPattern?: Readonly<Record<string, number>>;
  alphaPattern?: Readonly<Record<string, number>>;
  /** Which base biases train: none, all, or lora_only (those of adapted layers). Defaults to none. */
  bias?: "none" | "all" | "lora_only";
  /** Modules that train whole, beside the adapter. */
  modulesToSave?: readonly string[];
  /** Token ids whose embedding rows train; for the input embedding, or by module. */
  trainableTokenIndices?: readonly number[] | Readonly<Record<string, readonly number[]>>;
  /** Adapt or train tied embedding and head together; defaults to false. */
  ensureWeightTying?: boolean;
  /** [start, end) ranges of base layers that make up a deeper model. */
  layerReplication?: readonly (readonly [number, number])[];
}

/** An adapter with all that shared code needs to save, merge and describe it. */
export interface AttachedAdapter extends AdapterSet {
  readonly definition: Adapter;
  /** Options by site where patterns differ from the rest. */
  readonly siteOptions: ReadonlyMap<string, Record<string, unknown>>;
  readonly targeting: Targeting;
  /** Token rows that train: module path → ids; the rows are in `copies` under `path.token_rows`. */
  readonly tokens: ReadonlyMap<string, readonly number[]>;
  /** adapter_config.json it was read from, unknown keys included. */
  readonly raw?: Readonly<Record<string, unknown>>;
  readonly warnings: readonly string[];
  /** Targets that matched nothing, and modules that were left alone. */
  readonly coverage: Coverage;
}

export interface Coverage {
  readonly matched: readonly string[];
  readonly unmatched: readonly string[];
  readonly saved: readonly string[];
}

export const newLive = (): Live => ({ training: false, step: 0, rng: new Rng(0), values: {} });

/** The adapter of a model by name. */
export const attachedTo = (model: Model, name: string): AttachedAdapter | undefined => model.adapters.get(name) as AttachedAdapter | undefined;

/** What an adapter does at one layer. */
function attachments(set: AttachedAdapter, layer: Layer): Attachment[] {
  const { path } = layer.spec;
  const found: Attachment[] = [];
  const [weight, bias, rows] = [`${path}.weight`, `${path}.bias`, `${path}.token_rows`].map((name) => set.copies.get(name));
  if (weight || bias)
    found.push({
      adapter: set.name,
      ...(weight ? { weight: layer.site ? dense(weight, layer.spec.transposed ?? false) : weight } : {}),
      ...(bias ? { bias } : {}),
    });
  if (rows) found.push({ adapter: set.name, weight: replacedRows(layer.site!.weight, set.tokens.get(path)!, rows) });
  const p = set.entries.get(path);
  if (p && layer.site) found.push(siteAttachment(set, p, path));
  return found;
}

function siteAttachment(set: AttachedAdapter, p: Params, path: string): Attachment {
  const { definition: method, live, shared } = set;
  const o = (set.siteOptions.get(path) ?? set.options) as never;
  const update = method.update && ((site: Site) => method.update!(p, site, o, live, shared));
  const withBias = (y: Tensor, site: Site): Tensor => {
    const extra = method.bias?.(p, site, o);
    return extra ? add(y, extra) : y;
  };
  return {
    adapter: set.name,
    forward: (x, y, site) => withBias(method.forward ? method.forward(x, y, p, site, o, live, shared) : addUpdate(update!(site), y, x), site),
    ...(update ? { update, rows: (ids: Tensor, y: Tensor, site: Site) => add(y, lookUp(update(site), ids)) } : {}),
    ...(method.bias ? { biasUpdate: (site: Site) => method.bias!(p, site, o) } : {}),
  };
}

const addUpdate = (update: LinearOperator, y: Tensor, x: Tensor): Tensor => update.addTo?.(y, x) ?? add(y, update.apply(x));

/** The model with its attachments made anew from a list of adapters. */
export function withAdapters(model: Model, adapters: ReadonlyMap<string, AdapterSet>, active: readonly string[]): Model {
  const sets = [...adapters.values()] as AttachedAdapter[];
  const layers = new Map([...model.layers].map(([path, layer]) => [path, { ...layer, attached: sets.flatMap((set) => attachments(set, layer)) }]));
  return makeModel({ ...model, layers, adapters, active });
}

/** Every parameter of an adapter once, under the names that checkpoints use. */
export function adapterParameters(set: AdapterSet): Map<string, Parameter> {
  const named = new Map<string, Parameter>();
  const seen = new Set<Parameter>();
  const put = (name: string, value: Tensor): void => {
    if (!(value instanceof Parameter) || seen.has(value)) return;
    seen.add(value);
    named.set(`${set.name}/${name}`, value);
  };
  for (const [name, value] of Object.entries(set.shared)) put(`shared/${name}`, value);
  for (const [path, params] of set.entries) for (const [name, value] of Object.entries(params)) put(`${path}/${name}`, value);
  for (const [name, value] of set.copies) put(name, value);
  return named;
}
