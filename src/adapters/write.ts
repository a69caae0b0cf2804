import { StrutError } from "../errors.ts";
import { writeAdapterDirectory, type AdapterContents, type OwnConfig } from "../formats/adapter-directory.ts";
import { isLora, loraKeys, parsePeftConfig, type PeftConfig } from "../formats/peft-config.ts";
import { peftKey, type SharedPart } from "../formats/peft-keys.ts";
import { savesEmbeddings } from "../formats/peft-matching.ts";
import { orderProofPatterns } from "../formats/peft-patterns.ts";
import type { TensorToWrite } from "../formats/safetensors-write.ts";
import type { Model } from "../models/model.ts";
import { toWrite } from "../models/save.ts";
import type { Params } from "../nn/contracts.ts";
import { snake } from "../nn/options.ts";
import { concat, copyOf, noGrad, reshape, scale, transpose, type Tensor } from "../tensor/index.ts";
import { matchableModules, required, tiedHead } from "./adapt.ts";
import type { AttachedAdapter } from "./attach.ts";

/** An adapter as it is saved: its method has finished every site. */
function finished(model: Model, set: AttachedAdapter): AttachedAdapter {
  const { finish } = set.definition;
  if (!finish) return set;
  const entries = new Map<string, Params>();
  const siteOptions = new Map(set.siteOptions);
  for (const [path, params] of set.entries) {
    const options = set.siteOptions.get(path) ?? set.options;
    const result = noGrad(() => finish(params, model.layers.get(path)!.site!, options as never));
    entries.set(path, result.params);
    if (result.options) siteOptions.set(path, { ...options, ...result.options });
  }
  return { ...set, entries, siteOptions };
}

/** PiSSA and OLoRA as plain LoRAs of the untouched base: A' = [A; A₀], B' = [B, −B₀], twice the rank, the same scale. */
function converted(set: AttachedAdapter): AttachedAdapter {
  if (set.taken.size === 0)
    throw new StrutError("option", `adapter ${set.name} leaves the base as it is, so there is nothing to convert`, {
      path: "convert",
      hint: "Save it without.",
    });
  const twice = (o: Readonly<Record<string, unknown>>): Record<string, unknown> => ({
    ...o,
    r: 2 * (o["r"] as number),
    alpha: (o["alpha"] as number) * (o["useRslora"] ? Math.SQRT2 : 2),
    initLoraWeights: true,
  });
  const entries = new Map<string, Params>();
  for (const [path, params] of set.entries) {
    const taken = set.taken.get(path)!;
    const [A, B] = [params["A"]!, params["B"]!];
    const both = noGrad(() => ({
      A: concat([A, reshape(taken.A, A.shape)], 0),
      B: concat([B, scale(reshape(taken.B, B.shape), -1)], 1),
    }));
    entries.set(path, { ...params, ...both });
  }
  const { raw, ...kept } = set;
  const plain = raw && Object.fromEntries(Object.entries(raw).filter(([key]) => key !== "init_lora_weights"));
  return {
    ...kept,
    ...(plain ? { raw: plain } : {}),
    entries,
    options: twice(set.options),
    siteOptions: new Map([...set.siteOptions].map(([path, o]) => [path, twice(o)])),
  };
}

/** Where an adapter sits, under PEFT's names. */
const targetingOf = (model: Model, { coverage, targeting: t, ...set }: AttachedAdapter): Record<string, unknown> => ({
  target_modules:
    typeof t.targets === "string" && t.targets.toLowerCase() !== "all-linear" ? t.targets : targetNames(model, { coverage, targeting: t, ...set }),
  exclude_modules: t.excludeModules ?? null,
  modules_to_save: t.modulesToSave ?? null,
  layers_to_transform: t.layersToTransform ?? null,
  layers_pattern: t.layersPattern ?? null,
  bias: t.bias ?? "none",
  trainable_token_indices: t.trainableTokenIndices ?? null,
  ensure_weight_tying: t.ensureWeightTying ?? false,
  layer_replication: t.layerReplication ?? null,
});

/** adapter_config.json of an adapter: what it was read with, and what strut knows, under PEFT's names. */
export function peftConfigOf(model: Model, set: AttachedAdapter, held: AttachedAdapter): PeftConfig {
  const { definition, options, siteOptions, raw = {} } = set;
  const { type, options: names = {}, fixed = {}, own = {}, config } = definition.layout;
  if (!type) throw new StrutError("peft-config", `PEFT has no type for ${set.method}`, { hint: "Merge the adapter, or convert it to a LoRA." });
  const named = Object.keys(definition.options.shape)
    .filter((key) => !(key in own))
    .map((key) => [names[key] ?? snake(key), options[key]] as const)
    .filter(([key]) => type !== "LORA" || loraKeys.includes(key));
  const pattern = (key: string): Record<string, number> =>
    orderProofPatterns(new Map(set.coverage.matched.map((path) => [path, (siteOptions.get(path) ?? options)[key] as number])), options[key] as number);
  const unchanged = Object.keys(raw).length > 0;
  const patterns =
    unchanged && siteOptions.size === 0
      ? {}
      : Object.fromEntries(
          (["r", "alpha"] as const).flatMap((key) => (key in options ? [[{ r: "rank_pattern", alpha: "alpha_pattern" }[key], pattern(key)]] : [])),
        );
  return parsePeftConfig({
    task_type: "CAUSAL_LM",
    base_model_name_or_path: model.folder ?? null,
    ...raw,
    ...Object.fromEntries(named),
    ...fixed,
    peft_type: type,
    fan_in_fan_out: set.coverage.matched.some((path) => model.layers.get(path)?.spec.transposed),
    ...(unchanged ? {} : targetingOf(model, set)),
    ...patterns,
    ...config?.(set, held),
    ...set.started,
  });
}

/** strut.json of an adapter: the method and all of its options, for what PEFT's config cannot say. */
const ownConfigOf = (model: Model, { method, options, siteOptions, seed, ...set }: AttachedAdapter): OwnConfig => {
  const targeting = targetingOf(model, { method, options, siteOptions, seed, ...set });
  return {
    format: "strut-adapter",
    version: 1,
    method,
    options,
    site_options: Object.fromEntries(siteOptions),
    seed,
    targets: [...set.coverage.matched],
    targeting,
  };
};

/** Target entries that select exactly the adapted modules: their last names where those suffice, else whole paths. */
function targetNames(model: Model, { coverage: { matched }, targeting }: AttachedAdapter): string[] {
  if (targeting.targets !== undefined && typeof targeting.targets !== "string") return [...targeting.targets];
  const last = (path: string): string => path.split(".").at(-1)!;
  const names = new Set(matched.map(last));
  const exact = matchableModules(model).every(({ path, kind }) => kind === "other" || !names.has(last(path)) || matched.includes(path));
  return exact || targeting.layersToTransform !== undefined || targeting.excludeModules !== undefined ? [...names].sort() : [...matched];
}

/** The adapter's tensors under their keys in the file. */
function tensorsOf(model: Model, set: AttachedAdapter, config: PeftConfig | undefined): TensorToWrite[] {
  const { layout } = set.definition;
  const tied = tiedHead(model, set.coverage.matched, set.targeting);
  const out: TensorToWrite[] = [];
  const named = layout.sharedPrefix
    ? Object.keys(set.shared).map((param): [string, string] => [param, layout.sharedPrefix + param])
    : Object.entries(layout.shared ?? {});
  const shared = (layout.storesShared?.(set.options) ?? true) ? named : [];
  for (const [param, part] of shared) if (set.shared[param]) out.push(toWrite(`base_model.${part}`, set.shared[param]));
  for (const [path, params] of set.entries) {
    const site = model.layers.get(path)!.site!;
    const value = (param: string): Tensor | undefined => {
      const other = tied?.head === path ? layout.tied?.[param] : undefined;
      return other ? noGrad(() => copyOf(transpose(params[other]!))) : params[param];
    };
    for (const [param, part] of Object.entries(layout.tensors[site.kind] ?? {})) {
      const tensor = value(param);
      if (tensor) out.push(toWrite(peftKey(path, part), tensor));
    }
  }
  for (const [leaf, parameter] of set.copies) {
    const [path, kind] = [leaf.slice(0, leaf.lastIndexOf(".")), leaf.slice(leaf.lastIndexOf(".") + 1)];
    if (kind === "token_rows") {
      if (model.layers.get(path)!.spec.kind === "embedding") out.push(toWrite(peftKey(path, "token_adapter.trainable_tokens_delta"), parameter));
    } else if (kind === "bias" && set.entries.has(path)) out.push(toWrite(peftKey(path, "base_layer.bias"), parameter));
    else out.push(toWrite(peftKey(path, kind as SharedPart), parameter));
  }
  if (config && isLora(config) && savesEmbeddings(config, [...model.layers.keys()]))
    for (const path of set.entries.keys())
      if (["embed_tokens", "lm_head"].includes(path.split(".").at(-1)!)) out.push(toWrite(peftKey(path, "base_layer.weight"), model.layers.get(path)!.weight));
  return out;
}

export interface SaveAdapterOptions {
  /** Defaults to the active one. */
  name?: string;
  /** Replace what the folder holds. */
  overwrite?: boolean;
  /** Write a PiSSA or OLoRA as a plain LoRA of twice the rank, for the base as it was; defaults to false, which needs the decomposition again. */
  convert?: boolean;
}

/**
 * Writes an adapter of a model as a directory: of a method that PEFT knows one that the real PEFT opens, else strut.json beside
 * the tensors. The folder appears whole or not at all.
 *
 * @example
 * await saveAdapter(tuned, "out/adapter");
 */
export async function saveAdapter(
  model: Model,
  folder: string,
  { name = model.active[0] ?? "default", overwrite = false, convert = false }: SaveAdapterOptions = {},
): Promise<void> {
  await writeAdapterDirectory(folder, new Map([[name, contentsOf(model, name, convert)]]), { overwrite });
}

/**
 * Writes all adapters of a model into one folder, each a directory of its own: "default" the folder itself, as PEFT has it.
 *
 * @example
 * await saveAdapters(await adapt(tuned, dora, {}, { name: "second" }), "out/adapters");
 */
export const saveAdapters = (model: Model, folder: string, options: { overwrite?: boolean } = {}): Promise<void> =>
  writeAdapterDirectory(folder, new Map([...model.adapters.keys()].map((name) => [name, contentsOf(model, name)])), options);

function contentsOf(model: Model, name: string, convert = false): AdapterContents {
  const held = convert ? converted(required(model, name)) : required(model, name);
  const set = finished(model, held);
  const { type, beside, own: ours = {} } = set.definition.layout;
  const known = type && Object.entries(ours).every(([key, value]) => set.options[key] === value);
  const peft = known ? peftConfigOf(model, set, held) : undefined;
  const own = !known || beside ? ownConfigOf(model, set) : undefined;
  return { ...(peft ? { peft } : {}), ...(own ? { own } : {}), tensors: tensorsOf(model, set, peft) };
}
