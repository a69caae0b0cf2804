import type { AdapterSet, Attachment, Live, Params, Site } from "../nn/contracts.ts";
import { dense, lookUp, replacedRows, type LinearOperator } from "../operators/index.ts";
import { makeModel, realOf, type Layer, type Model } from "../models/model.ts";
import { add, noGrad, Parameter, Rng, scope, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { StrutError } from "../errors.ts";
import { addAt, applyAt, perOutput, type Adapter } from "./adapter.ts";

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
  /** Of its initial values. */
  readonly seed: number;
  /** What the base gave away to factors at the start, by site: W less it stands in the base's place. */
  readonly taken: ReadonlyMap<string, Taken>;
  /** Of the initialiser that chose the start, for the file. */
  readonly started?: Readonly<Record<string, unknown>>;
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

/** scale·B·A of the start, and the base without it. */
export interface Taken {
  readonly B: Tensor;
  readonly A: Tensor;
  readonly scale: number;
  readonly rest: LinearOperator;
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
  const taken = set.taken.get(path);
  if (taken) found.push({ adapter: set.name, weight: taken.rest });
  if (rows) found.push({ adapter: set.name, weight: replacedRows(layer.site!.weight, set.tokens.get(path)!, rows) });
  const p = set.entries.get(path);
  if (p && layer.site) found.push(siteAttachment(set, p, path));
  return found;
}

function siteAttachment(set: AttachedAdapter, p: Params, path: string): Attachment {
  const { definition: method, live, shared } = set;
  const o = (set.siteOptions.get(path) ?? set.options) as never;
  const { weight, update, forward, bias } = method;
  const withBias = (y: Tensor, site: Site): Tensor => {
    const extra = bias?.(p, site, o);
    return extra ? add(y, perOutput(site, extra)) : y;
  };
  return {
    adapter: set.name,
    ...(weight ? { weightAt: (site: Site) => weight(p, site, o, live, shared) } : {}),
    ...(forward || update || bias
      ? {
          forward: (x: Tensor, y: Tensor, site: Site) =>
            withBias(forward ? forward(x, y, p, site, o, live, shared) : update ? addAt(site, update(p, site, o, live, shared), y, x) : y, site),
        }
      : {}),
    ...(update
      ? {
          update: (site: Site) => update(p, site, o, live, shared),
          rows: (ids: Tensor, y: Tensor, site: Site) => add(y, lookUp(update(p, site, o, live, shared), ids)),
        }
      : {}),
    ...(bias ? { biasUpdate: (site: Site) => bias(p, site, o) } : {}),
  };
}

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

/** Runs each site of an adapter once, on a zero input: tensors that do not fit each other or the base end in a sentence. */
export function tryOut(model: Model, set: AttachedAdapter, path: string): void {
  noGrad(() =>
    scope(() => {
      for (const [module, params] of set.entries) {
        const layer = model.layers.get(module)!;
        const site = layer.site!;
        const dtype = realOf(layer);
        set.definition.verify?.(params, site);
        try {
          const { forward, weightAt, rows } = siteAttachment(set, params, module);
          if (site.kind === "embedding") {
            rows?.(tensor([0], [1], "i32"), zeros([1, site.in], dtype), site, {});
            continue;
          }
          const x = site.conv ? imageFor(site, dtype) : zeros([1, site.in], dtype);
          const y = applyAt(site, weightAt?.(site) ?? site.weight, x);
          const out = forward?.(x, y, site, {}) ?? y;
          if (String(out.shape) !== String(y.shape)) throw new StrutError("shape", `it gives [${out.shape}] where the layer gives [${y.shape}]`);
        } catch (cause) {
          if (!(cause instanceof StrutError)) throw cause;
          throw new StrutError("peft-shape", `The adapter's tensors for ${module} do not fit its ${site.out}×${site.in} matrix: ${cause.message}`, {
            path,
            hint: "The adapter was made for another base model, or the file is damaged.",
          });
        }
      }
    }),
  );
}

/** The smallest image a convolution takes, all zero. */
function imageFor({ conv, in: inner }: Site, dtype: Tensor["dtype"]): Tensor {
  const { kernel, dilation, groups } = conv!;
  const extent = kernel.map((k, i) => (k - 1) * dilation[i]! + 1) as [number, number];
  return zeros([1, (inner / (kernel[0] * kernel[1])) * groups, ...extent], dtype);
}
