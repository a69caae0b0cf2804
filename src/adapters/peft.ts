import { StrutError } from "../errors.ts";
import { parsePeftConfig, type LoraPeftConfig, type PeftConfig } from "../formats/peft-config.ts";
import { openPeftDirectory, writePeftDirectory, type PeftDirectory } from "../formats/peft-directory.ts";
import { parsePeftKeys, peftKey, refuseStrayKeys, type LoraPart, type SharedPart } from "../formats/peft-keys.ts";
import { loraLayers, refuseUnreadableLora, type LoraSite } from "../formats/peft-lora.ts";
import { savesEmbeddings } from "../formats/peft-matching.ts";
import { orderProofPatterns } from "../formats/peft-patterns.ts";
import type { TensorToWrite } from "../formats/safetensors-write.ts";
import { replicateLayers } from "../models/change.ts";
import type { Model } from "../models/model.ts";
import { toWrite } from "../models/save.ts";
import { readFloats } from "../models/stored.ts";
import type { Params } from "../nn/contracts.ts";
import { snake } from "../nn/options.ts";
import { copyOf, noGrad, Parameter, transpose, type Tensor } from "../tensor/index.ts";
import { copiedLeaves, matchableModules, required, tiedHead } from "./adapt.ts";
import type { Adapter } from "./adapter.ts";
import { newLive, withAdapters, type AttachedAdapter, type Targeting } from "./attach.ts";
import { tokenRows } from "./tokens.ts";

export interface LoadPeftOptions {
  /** Defaults to "default". */
  name?: string;
  /** Methods that may be in the directory; the first whose layout fits is taken. */
  methods: readonly Adapter[];
  /** Whether its parameters train; defaults to true. */
  trainable?: boolean;
}

/** The method of a config: by peft_type and the settings that mark a variant. */
function methodOf(config: PeftConfig, methods: readonly Adapter[], path: string): Adapter {
  const found = methods.find(
    ({ peft }) =>
      peft?.type === config.peft_type &&
      Object.entries(peft.fixed ?? {}).every(([key, value]) => (config as unknown as Record<string, unknown>)[key] === value),
  );
  if (found) return found;
  throw new StrutError("peft-config", `${path} is an adapter of type ${config.peft_type}, which strut cannot read`, {
    path,
    hint: `It reads ${[...new Set(methods.flatMap(({ peft }) => (peft ? [peft.type] : [])))].join(", ")}. Merge the adapter in PEFT and load the merged model.`,
  });
}

const orUndefined = <T>(value: T | null | undefined): T | undefined => value ?? undefined;

const defined = <T extends object>(value: T): T => Object.fromEntries(Object.entries(value).filter(([, item]) => item !== undefined)) as T;

/** Where a config puts its adapter, in our spelling. */
const targetingOf = (c: LoraPeftConfig): Targeting =>
  defined({
    targets: orUndefined(c.target_modules),
    excludeModules: orUndefined(c.exclude_modules),
    layersToTransform: orUndefined(c.layers_to_transform),
    layersPattern: orUndefined(c.layers_pattern),
    rankPattern: c.rank_pattern,
    alphaPattern: c.alpha_pattern,
    bias: c.bias,
    modulesToSave: orUndefined(c.modules_to_save),
    trainableTokenIndices: orUndefined(c.trainable_token_indices),
    ensureWeightTying: c.ensure_weight_tying,
    layerReplication: orUndefined(c.layer_replication),
  } as Targeting);

/**
 * Puts an adapter from a PEFT directory on a model and makes it the active one.
 *
 * @example
 * const tuned = await loadPeft(base, "my-adapter", { methods: [lora, dora] });
 */
export async function loadPeft(model: Model, folder: string, { name = "default", methods, trainable = true }: LoadPeftOptions): Promise<Model> {
  const directory = await openPeftDirectory(folder);
  try {
    const definition = methodOf(directory.config, methods, folder);
    const config = directory.config as LoraPeftConfig;
    refuseUnreadableLora(config, folder);
    const targeting = targetingOf(config);
    const base = targeting.layerReplication ? replicateLayers(model, targeting.layerReplication) : model;
    const set = await readSet(base, directory, definition, config, targeting, name);
    for (const parameter of [...[...set.entries.values()].flatMap((p) => Object.values(p)), ...set.copies.values()])
      if (parameter instanceof Parameter) parameter.trainable = trainable;
    return withAdapters(base, new Map([...base.adapters, [name, set]]), [name]);
  } finally {
    await directory.close();
  }
}

async function readSet(
  base: Model,
  directory: PeftDirectory,
  definition: Adapter,
  config: LoraPeftConfig,
  targeting: Targeting,
  name: string,
): Promise<AttachedAdapter> {
  const { weights, path } = directory;
  const layout = definition.peft!;
  const parsed = parsePeftKeys(weights.entries.keys());
  refuseStrayKeys(parsed, { name: "the base model", has: (module) => base.layers.has(module) }, path);
  const sites = new Map(base.sites.map((site): [string, LoraSite] => [site.path, { kind: site.kind, shape: [site.out, site.in] }]));
  const { layers, warnings } = loraLayers(parsed, (key) => weights.entries.get(key)!.shape, sites, config);
  const settings = config as unknown as Record<string, unknown>;
  const options: Record<string, unknown> = Object.fromEntries(
    Object.keys(definition.options.shape).map((key) => [key, settings[layout.options[key] ?? snake(key)]]),
  );
  const regime = definition.regime?.(options as never);
  const siteOptions = new Map<string, Record<string, unknown>>();
  const entries = new Map<string, Params>();
  for (const layer of layers) {
    if (layer.rank !== options["r"] || layer.alpha !== options["alpha"]) siteOptions.set(layer.path, { ...options, r: layer.rank, alpha: layer.alpha });
    const names = Object.entries(layout.tensors[layer.kind] ?? {});
    const params: Record<string, Parameter> = {};
    for (const [param, part] of names) {
      const key = layer.tensors[part as LoraPart];
      if (key)
        params[param] = new Parameter(
          await readFloats(directory.weights, key, base.layers.get(layer.path)!.weight.dtype, path),
          `${name}/${layer.path}/${param}`,
        );
    }
    entries.set(layer.path, params);
  }
  const matched = layers.map((layer) => layer.path);
  const covered = { matched, unmatched: [], saved: savedModules(base, parsed.keys, matched) };
  const tied = tiedHead(base, matched, targeting);
  if (tied) entries.set(tied.head, entries.get(tied.embedding)!);
  const copies = copiedLeaves(base, name, covered, targeting);
  const tokens = tokenRows(base, name, targeting.trainableTokenIndices, copies);
  for (const { key, module, part } of parsed.keys) await readShared(directory, copies, key, module, part as SharedPart);
  return {
    name,
    method: definition.id,
    definition,
    options,
    siteOptions,
    targeting,
    entries,
    shared: {},
    copies,
    tokens,
    live: newLive(),
    warnings,
    coverage: covered,
    raw: config.raw,
    ...(regime ? { regime } : {}),
  };
}

/** Modules stored whole, by the plain weights in the file. */
const savedModules = (base: Model, keys: readonly { module: string; part: string }[], matched: readonly string[]): string[] => [
  ...new Set(keys.filter(({ module, part }) => part === "weight" && base.layers.has(module) && !matched.includes(module)).map(({ module }) => module)),
];

/** Fills a copied leaf from the file. A stored base_layer.weight must agree in shape and is otherwise the base's own. */
async function readShared(directory: PeftDirectory, copies: Map<string, Parameter>, key: string, module: string, part: SharedPart): Promise<void> {
  const leaf = { weight: "weight", bias: "bias", "base_layer.bias": "bias", "token_adapter.trainable_tokens_delta": "token_rows" }[part as string];
  const target = leaf && copies.get(`${module}.${leaf}`);
  if (!target) return;
  const value = await readFloats(directory.weights, key, target.dtype, directory.path);
  if (String(value.shape) !== String(target.shape))
    throw new StrutError("peft-shape", `${key} has shape [${value.shape}], expected [${target.shape}]`, {
      path: directory.path,
      hint: "The adapter was made for another base model.",
    });
  target.assign(value);
}

/** adapter_config.json of an adapter: what it was read with, and what strut knows, under PEFT's names. */
export function peftConfigOf(model: Model, set: AttachedAdapter): PeftConfig {
  const { definition, options, siteOptions, targeting, raw = {} } = set;
  const layout = definition.peft;
  if (!layout) throw new StrutError("peft-config", `PEFT has no type for ${set.method}`, { hint: "Merge the adapter, or convert it to a LoRA." });
  const named = Object.fromEntries(Object.keys(definition.options.shape).map((key) => [layout.options[key] ?? snake(key), options[key]]));
  const pattern = (key: string): Record<string, number> =>
    orderProofPatterns(new Map(set.coverage.matched.map((path) => [path, (siteOptions.get(path) ?? options)[key] as number])), options[key] as number);
  const unchanged = Object.keys(raw).length > 0;
  const t = targeting;
  return parsePeftConfig({
    task_type: "CAUSAL_LM",
    base_model_name_or_path: model.folder ?? null,
    ...raw,
    ...named,
    ...layout.fixed,
    peft_type: layout.type,
    fan_in_fan_out: set.coverage.matched.some((path) => model.layers.get(path)?.spec.transposed),
    ...(unchanged
      ? {}
      : {
          target_modules: typeof t.targets === "string" && t.targets.toLowerCase() !== "all-linear" ? t.targets : targetNames(model, set),
          exclude_modules: t.excludeModules ?? null,
          modules_to_save: t.modulesToSave ?? null,
          layers_to_transform: t.layersToTransform ?? null,
          layers_pattern: t.layersPattern ?? null,
          bias: t.bias ?? "none",
          trainable_token_indices: t.trainableTokenIndices ?? null,
          ensure_weight_tying: t.ensureWeightTying ?? false,
          layer_replication: t.layerReplication ?? null,
        }),
    ...(unchanged && siteOptions.size === 0 ? {} : { rank_pattern: pattern("r"), alpha_pattern: pattern("alpha") }),
  });
}

/** Target entries that select exactly the adapted modules: their last names where those suffice, else whole paths. */
function targetNames(model: Model, { coverage: { matched }, targeting }: AttachedAdapter): string[] {
  if (targeting.targets !== undefined && typeof targeting.targets !== "string") return [...targeting.targets];
  const last = (path: string): string => path.split(".").at(-1)!;
  const names = new Set(matched.map(last));
  const exact = matchableModules(model).every(({ path, kind }) => kind === "other" || !names.has(last(path)) || matched.includes(path));
  return exact || targeting.layersToTransform !== undefined || targeting.excludeModules !== undefined ? [...names].sort() : [...matched];
}

/** The adapter's tensors under PEFT's keys. */
function peftTensors(model: Model, set: AttachedAdapter, config: LoraPeftConfig): TensorToWrite[] {
  const layout = set.definition.peft!;
  const tied = tiedHead(model, set.coverage.matched, set.targeting);
  const out: TensorToWrite[] = [];
  for (const [path, held] of set.entries) {
    const site = model.layers.get(path)!.site!;
    const params = set.definition.finish?.(held, site, (set.siteOptions.get(path) ?? set.options) as never) ?? held;
    const value = (param: string): Tensor | undefined => {
      const other = tied?.head === path ? layout.tied?.[param] : undefined;
      return other ? noGrad(() => copyOf(transpose(params[other]!))) : params[param];
    };
    for (const [param, part] of Object.entries(layout.tensors[site.kind] ?? {})) {
      const tensor = value(param);
      if (tensor) out.push(toWrite(peftKey(path, part as LoraPart), tensor));
    }
  }
  for (const [leaf, parameter] of set.copies) {
    const [path, kind] = [leaf.slice(0, leaf.lastIndexOf(".")), leaf.slice(leaf.lastIndexOf(".") + 1)];
    if (kind === "token_rows") {
      if (model.layers.get(path)!.spec.kind === "embedding") out.push(toWrite(peftKey(path, "token_adapter.trainable_tokens_delta"), parameter));
    } else if (kind === "bias" && set.entries.has(path)) out.push(toWrite(peftKey(path, "base_layer.bias"), parameter));
    else out.push(toWrite(peftKey(path, kind as SharedPart), parameter));
  }
  if (savesEmbeddings(config, [...model.layers.keys()]))
    for (const path of set.entries.keys())
      if (["embed_tokens", "lm_head"].includes(path.split(".").at(-1)!)) out.push(toWrite(peftKey(path, "base_layer.weight"), model.layers.get(path)!.weight));
  return out;
}

/**
 * Writes an adapter of a model as a PEFT directory, which the real PEFT opens. The folder appears whole or not at all.
 *
 * @example
 * await savePeft(tuned, "out/adapter");
 */
export async function savePeft(
  model: Model,
  folder: string,
  { name = model.active[0] ?? "default", overwrite = false }: { name?: string; overwrite?: boolean } = {},
): Promise<void> {
  const set = required(model, name);
  const config = peftConfigOf(model, set);
  await writePeftDirectory(folder, { config, tensors: peftTensors(model, set, config as LoraPeftConfig) }, { overwrite });
}
