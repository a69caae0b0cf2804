import type { z } from "zod";
import { StrutError } from "../errors.ts";
import { matchModules, type MatchableModule, type Matches } from "../formats/peft-matching.ts";
import { patternLookup } from "../formats/peft-patterns.ts";
import type { Params, Site } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { leafCopy, ownBuffers, replicateLayers } from "../models/change.ts";
import type { Model } from "../models/model.ts";
import { isReal, keep, noGrad, Parameter, Rng, scope, type Real, type Tensor } from "../tensor/index.ts";
import type { Adapter, InitContext } from "./adapter.ts";
import { attachedTo, newLive, withAdapters, type AttachedAdapter, type Coverage, type Targeting } from "./attach.ts";
import { tokenRows } from "./tokens.ts";

export interface AdaptOptions extends Targeting {
  /** Defaults to "default", as in PEFT. */
  name?: string;
  /** Seed of the initial values; defaults to 0. */
  seed?: number;
}

/** Layers and the containers around them, as target rules see them. */
export function matchableModules(model: Model): MatchableModule[] {
  const modules = new Map<string, MatchableModule>();
  for (const { spec } of model.layers.values()) {
    const parts = spec.path.split(".");
    for (let i = 1; i < parts.length; i++) {
      const path = parts.slice(0, i).join(".");
      if (!modules.has(path)) modules.set(path, { path, kind: "other" });
    }
    modules.set(spec.path, {
      path: spec.path,
      kind: spec.kind,
      ...(spec.path === model.architecture.head ? { isOutputHead: true } : {}),
      ...(spec.tiedTo ? { tiedTo: spec.tiedTo } : {}),
    });
  }
  return [...modules.values()];
}

const list = (value: string | readonly string[]): string | string[] => (typeof value === "string" ? value : [...value]);

function match(model: Model, kinds: readonly Site["kind"][], t: Targeting): Matches {
  return matchModules(
    matchableModules(model),
    {
      ...(t.targets === undefined ? {} : { target_modules: list(t.targets) }),
      ...(t.excludeModules === undefined ? {} : { exclude_modules: list(t.excludeModules) }),
      ...(t.modulesToSave === undefined ? {} : { modules_to_save: [...t.modulesToSave] }),
      ...(t.layersToTransform === undefined
        ? {}
        : { layers_to_transform: typeof t.layersToTransform === "number" ? t.layersToTransform : [...t.layersToTransform] }),
      ...(t.layersPattern === undefined ? {} : { layers_pattern: list(t.layersPattern) }),
      ensure_weight_tying: t.ensureWeightTying ?? false,
    },
    { modelType: model.architecture.modelType, modelName: className(model), kinds },
  );
}

export const className = (model: Model): string => String((model.config["architectures"] as unknown[] | undefined)?.[0] ?? model.architecture.modelType);

const toCoverage = (matches: Matches): Coverage => ({
  matched: matches.matched.map(({ path }) => path),
  unmatched: matches.unmatched,
  saved: matches.saved.map(({ path }) => path),
});

/**
 * What an adapter would sit on, before anything is made: modules matched, target entries that match nothing, modules saved
 * whole. Nothing matched at all is an error that names the nearest modules.
 */
export const coverage = (model: Model, method: Pick<Adapter, "kinds">, targeting: Targeting = {}): Coverage =>
  toCoverage(match(targeting.layerReplication ? replicateLayers(model, targeting.layerReplication) : model, method.kinds, targeting));

/** Copies of base leaves that train beside the adapter: biases and whole modules. */
export function copiedLeaves(
  model: Model,
  name: string,
  matches: Coverage,
  { bias = "none", ensureWeightTying = false }: Targeting,
  trained: Adapter["copies"] = {},
): Map<string, Parameter> {
  const copies = new Map<string, Parameter>();
  const made = new Map<Parameter, Parameter>();
  const copy = (leafName: string, leaf: Parameter | undefined): void => {
    if (!leaf || copies.has(leafName)) return;
    const own = made.get(leaf) ?? leafCopy(leaf, `${name}/${leafName}`);
    if (ensureWeightTying || trained.weight) made.set(leaf, own);
    copies.set(leafName, own);
  };
  const everywhere = [...model.layers.values()].every(({ site, spec }) => !site || matches.matched.includes(spec.path));
  for (const [path, layer] of model.layers) {
    const isSaved = matches.saved.some((saved) => path === saved || path.startsWith(`${saved}.`));
    // norms go with the whole model
    const isOwn = layer.site ? matches.matched.includes(path) : everywhere;
    if (isSaved || (trained.weight && isOwn)) copy(`${path}.weight`, layer.weight);
    if (isSaved || (trained.bias && isOwn) || bias === "all" || (bias === "lora_only" && matches.matched.includes(path))) copy(`${path}.bias`, layer.bias);
  }
  return copies;
}

/** Each site's options where patterns give it another rank or alpha. */
function patternedOptions(options: Record<string, unknown>, paths: readonly string[], t: Targeting): Map<string, Record<string, unknown>> {
  const rank = patternLookup(t.rankPattern ?? {}, options["r"] as number, "rank_pattern");
  const alpha = patternLookup(t.alphaPattern ?? {}, options["alpha"] as number, "alpha_pattern");
  return new Map(
    paths.flatMap((path): [string, Record<string, unknown>][] => {
      const own = { r: rank(path).value, alpha: alpha(path).value };
      return own.r === options["r"] && own.alpha === options["alpha"] ? [] : [[path, { ...options, ...own }]];
    }),
  );
}

/** What a method made, as it will be kept: real numbers train unless the method froze them, indices do not. */
function leafOf(value: Tensor, name: string, frozen: boolean): Tensor {
  if (!isReal(value.dtype)) return keep(value);
  if (!(value instanceof Parameter)) return new Parameter(value, name, !frozen);
  if (value.name === "") value.name = name;
  return value;
}

/** The parameters of every site, made by the method's `init`, each from random numbers of its own. */
export async function initialise(method: Adapter, model: Model, sites: readonly Site[], optionsAt: (path: string) => never, name: string, seed: number) {
  const dtype = ([...model.layers.values()][0]!.weight.dtype as Real) ?? "f32";
  if (!isReal(dtype)) throw new StrutError("dtype", `adapters need f32 or f64 weights, the model has ${dtype}`);
  const root = new Rng(seed).fork(method.id);
  const context = (path: string): InitContext => ({ rng: root.fork(path), sites, dtype });
  const owned = (prefix: string, params: Params): Params =>
    Object.fromEntries(Object.entries(params).map(([key, value]) => [key, leafOf(value, `${prefix}/${key}`, method.layout.frozen?.includes(key) ?? false)]));
  return noGrad(() =>
    scope(async () => {
      const shared = owned(`${name}/shared`, (await method.shared?.(sites, optionsAt(""), context("shared"))) ?? {});
      const entries = new Map<string, Params>();
      for (const site of sites)
        entries.set(site.path, owned(`${name}/${site.path}`, await method.init(site, optionsAt(site.path), context(site.path), shared)));
      return { entries, shared };
    }),
  );
}

function checkRank(site: Site, options: Record<string, unknown>): void {
  const [r, most] = [options["r"], Math.min(site.out, site.in)];
  if (typeof r === "number" && r > most)
    throw new StrutError("option", `rank ${r} is above what ${site.path} can have: its matrix is ${site.out}×${site.in}`, {
      path: "r",
      hint: `Use a rank of at most ${most}, or leave this module out.`,
    });
}

/**
 * A new model with an adapter on the chosen modules; the base and its leaves are shared and never written. The new adapter
 * is the active one; adapters already there stay attached.
 *
 * @example
 * const tuned = await adapt(model, lora, { r: 8, alpha: 16 }, { targets: ["q_proj", "v_proj"] });
 */
export async function adapt<O extends z.ZodObject, P extends Params, S extends Params>(
  model: Model,
  method: Adapter<O, P, S>,
  options: z.input<O> | Readonly<Record<string, unknown>> = {},
  { name = "default", seed = 0, ...given }: AdaptOptions = {},
): Promise<Model> {
  if (attachedTo(model, name))
    throw new StrutError("adapter", `the model already has an adapter named ${name}`, { hint: "Give the new one another name, or remove the old one." });
  const definition = method as unknown as Adapter;
  const parsed = parseOptions(definition, options as Record<string, unknown>, definition.layout.options) as Record<string, unknown>;
  const targeting = {
    ...definition.defaults?.(
      parsed as never,
      [...model.layers.values()].map(({ spec }) => spec),
    ),
    ...given,
  };
  const base = ownBuffers(targeting.layerReplication ? replicateLayers(model, targeting.layerReplication) : model);
  const covered = toCoverage(match(base, method.kinds, targeting));
  const sites = covered.matched.map((path) => base.layers.get(path)!.site!);
  const siteOptions = patternedOptions(parsed, covered.matched, targeting);
  const optionsAt = (path: string) => (siteOptions.get(path) ?? parsed) as never;
  if (!method.anyRank) for (const site of sites) checkRank(site, optionsAt(site.path));
  const tied = tiedHead(base, covered.matched, targeting);
  const { entries, shared } = await initialise(
    definition,
    base,
    sites.filter(({ path }) => path !== tied?.head),
    optionsAt,
    name,
    seed,
  );
  if (tied) entries.set(tied.head, entries.get(tied.embedding)!);
  const copies = copiedLeaves(base, name, covered, targeting, method.copies);
  if (method.copies && copies.size === 0)
    throw new StrutError("targets", `${method.id} trains ${method.copies.weight ? "weights" : "biases"}, and none of the modules has any`, {
      hint: "Choose other targets, or another method.",
    });
  const tokens = tokenRows(base, name, targeting.trainableTokenIndices, copies);
  const regime = definition.regime?.(parsed as never);
  const set: AttachedAdapter = {
    name,
    method: method.id,
    definition,
    options: parsed,
    siteOptions,
    targeting,
    seed,
    entries,
    shared,
    copies,
    tokens,
    live: newLive(),
    warnings: [],
    coverage: covered,
    ...(regime ? { regime } : {}),
  };
  return withAdapters(base, new Map([...base.adapters, [name, set]]), [name]);
}

/** The head and embedding that share one adapter, if both were chosen and their tie is kept. */
export function tiedHead(model: Model, matched: readonly string[], { ensureWeightTying }: Targeting): { head: string; embedding: string } | undefined {
  const head = model.architecture.head;
  const embedding = model.layers.get(head)?.spec.tiedTo;
  return ensureWeightTying && embedding && matched.includes(head) && matched.includes(embedding) ? { head, embedding } : undefined;
}

/** The same model with other adapters active; none for the base alone. */
export function activate(model: Model, names: readonly string[]): Model {
  for (const name of names) required(model, name);
  return { ...model, active: names };
}

/** The model without one of its adapters. */
export function removeAdapter(model: Model, name: string): Model {
  required(model, name);
  return withAdapters(
    model,
    new Map([...model.adapters].filter(([other]) => other !== name)),
    model.active.filter((other) => other !== name),
  );
}

export function required(model: Model, name: string): AttachedAdapter {
  const set = attachedTo(model, name);
  if (set) return set;
  throw new StrutError("adapter", `the model has no adapter named ${name}`, {
    hint: model.adapters.size === 0 ? "It has none at all." : `It has ${[...model.adapters.keys()].join(", ")}.`,
  });
}
