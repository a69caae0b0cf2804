import type { z } from "zod";
import { StrutError } from "../errors.ts";
import { matchModules, type MatchableModule, type Matches } from "../formats/peft-matching.ts";
import { patternLookup, shortestEndings } from "../formats/peft-patterns.ts";
import type { Params, Site, Statistic, Task } from "../nn/contracts.ts";
import type { Found, Initializer, Start, Watched } from "../initializers/initializer.ts";
import type { CalibrationBatches } from "../models/calibration.ts";
import type { SiteStatistics } from "../models/recorder.ts";
import { collectStatistics } from "../models/statistics.ts";
import { dense, lowRank } from "../operators/index.ts";
import { parseOptions } from "../nn/options.ts";
import { leafCopy, ownBuffers, replicateLayers } from "../models/change.ts";
import type { Model } from "../models/model.ts";
import { copyOf, isReal, keep, noGrad, Parameter, reshape, Rng, scope, sub, type Real, type Tensor } from "../tensor/index.ts";
import type { Adapter, InitContext } from "./adapter.ts";
import { attachedTo, newLive, withAdapters, type AttachedAdapter, type Coverage, type Taken, type Targeting } from "./attach.ts";
import { tokenRows } from "./tokens.ts";

export interface AdaptOptions extends Targeting {
  /** What chooses the start of LoRA-shaped adapters, and their ranks. */
  // oxlint-disable-next-line typescript/no-explicit-any -- an initialiser of any options
  initializer?: { readonly method: Initializer<any, any>; readonly options?: Readonly<Record<string, unknown>> };
  /** Batches for what adapter and initialiser need to know of the sites. */
  calibration?: CalibrationBatches;
  /** The loss of calibration batches that have `inputs`, where gradients are needed. */
  task?: Task;
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

/** Target entries that select exactly these modules: their paths, or from twenty on, as PEFT has it, the shortest endings that do. */
export function exactTargets(model: Model, paths: readonly string[]): string[] {
  const others = matchableModules(model).flatMap(({ path }) => (paths.includes(path) ? [] : [path]));
  return paths.length < 20 ? [...paths] : shortestEndings(paths, others);
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
    const isSaved = matches.saved.some((saved) => path === saved || path.startsWith(`${saved}.`)) || (trained.norms && !layer.site && everywhere);
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

/** What a method made, as it will be kept: real numbers train unless the method froze them, indices do not; what is frozen a checkpoint keeps. */
export function leafOf(value: Tensor, name: string, frozen: boolean): Tensor {
  if (!isReal(value.dtype) && !frozen) return keep(value);
  if (!(value instanceof Parameter)) return new Parameter(value, name, !frozen);
  if (value.name === "") value.name = name;
  return value;
}

/** The parameters of every site, made by the method's `init`, each from random numbers of its own. */
export async function initialise(
  method: Adapter,
  model: Model,
  sites: readonly Site[],
  optionsAt: (path: string) => never,
  name: string,
  seed: number,
  { statistics = new Map(), initializer }: { statistics?: ReadonlyMap<string, SiteStatistics>; initializer?: string | undefined } = {},
) {
  const dtype = ([...model.layers.values()][0]!.weight.dtype as Real) ?? "f32";
  if (!isReal(dtype)) throw new StrutError("dtype", `adapters need f32 or f64 weights, the model has ${dtype}`);
  const root = new Rng(seed).fork(method.id);
  const context = (path: string): InitContext => ({
    rng: root.fork(path),
    sites,
    dtype,
    statistic: (site) => statisticsAt(statistics, site.path, method),
    ...(initializer ? { initializer } : {}),
  });
  const owned = (prefix: string, params: Params): Params =>
    Object.fromEntries(Object.entries(params).map(([key, value]) => [key, leafOf(value, `${prefix}/${key}`, method.layout.frozen?.includes(key) ?? false)]));
  return noGrad(() =>
    scope(async () => {
      const shared = owned(`${name}/shared`, (await method.shared?.(sites, optionsAt(""), context("shared"))) ?? {});
      const entries = new Map<string, Params>();
      for (const site of sites)
        entries.set(site.path, owned(`${name}/${site.path}`, await method.init(site, optionsAt(site.path), context(site.path), shared)));
      return { entries, shared, context };
    }),
  );
}

/** What was collected at a site; a sentence if nothing was. */
function statisticsAt(statistics: ReadonlyMap<string, SiteStatistics>, path: string, { id, needs = [] }: Pick<Adapter, "id" | "needs">): SiteStatistics {
  const found = statistics.get(path);
  if (found) return found;
  throw new StrutError("data", `${id} needs ${needs.join(" and ")} of ${path}, and there was no calibration`, {
    path: "calibration",
    hint: "Give adapt() `calibration` batches.",
  });
}

/** One pass over the calibration batches for everything that is needed. */
async function calibrated(
  model: Model,
  sites: readonly Site[],
  needs: readonly Statistic[],
  { calibration, task }: AdaptOptions,
): Promise<Map<string, SiteStatistics>> {
  if (needs.length === 0 || !calibration) return new Map();
  const paths = sites.map(({ path }) => path);
  const { sites: collected } = await collectStatistics(model, calibration, { wants: [...new Set(needs)], sites: paths, ...(task ? { task } : {}) });
  return new Map(collected);
}

/** An initialiser with its options. */
interface Starting {
  // oxlint-disable-next-line typescript/no-explicit-any -- an initialiser of any options
  readonly method: Initializer<any, any>;
  readonly parsed: Record<string, unknown>;
}

/** Refuses adapters that do not have what an initialiser starts. */
function checkStart({ id, begins }: Adapter, { method: { id: what, starts } }: Starting): void {
  if (begins === starts) return;
  const core = starts === "core";
  throw new StrutError("option", `${what} starts ${core ? "a core between frozen B and A" : "B and A, which both train"}, and ${id} takes no such start`, {
    path: "initializer",
    hint: `Use it with ${core ? "lora-xs" : "lora, rslora, dora, or another adapter whose update is B·A"}.`,
  });
}

/** B, A and core of a start in a site's parameters, in the shapes that they have there. */
function begin(params: Params, { B, A, core }: Start): void {
  const put = (name: string, value: Tensor): void => (params[name] as Parameter).assign(reshape(value, params[name]!.shape));
  put("A", A);
  put("B", B);
  if (core) put("R", core);
}

/** The base without what a start took. */
export function takenFrom(site: Site, { B, A }: Pick<Start, "B" | "A">, scale: number): Taken {
  const held = (x: Tensor): Tensor => keep(copyOf(x));
  const rest = noGrad(() => sub(site.weight.toDense(), lowRank(B, A, scale).toDense()));
  return { B: held(B), A: held(A), scale, rest: dense(held(rest)) };
}

function checkRank(site: Site, options: Record<string, unknown>): void {
  const [r, most] = [options["r"], Math.min(site.out, site.in)];
  if (typeof r === "number" && r > most)
    throw new StrutError("option", `rank ${r} is above what ${site.path} can have: its matrix is ${site.out}×${site.in}`, {
      path: "r",
      hint: `Use a rank of at most ${most}, or leave this module out.`,
    });
}

/** Ranks as an initialiser spread them, put into the options of sites; those of rank 0 are left out. */
function allocated(
  sites: readonly Site[],
  options: Record<string, unknown>,
  siteOptions: Map<string, Record<string, unknown>>,
  { method, parsed }: Starting,
  ranks: Found["ranks"],
): Site[] {
  for (const [path, r] of ranks) {
    const o = siteOptions.get(path) ?? options;
    const alpha = method.keepsScale?.(parsed) && typeof o["alpha"] === "number" ? { alpha: (o["alpha"] * r) / (o["r"] as number) } : {};
    if (r !== o["r"]) siteOptions.set(path, { ...o, r, ...alpha });
  }
  return sites.filter(({ path }) => ranks.get(path) !== 0);
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
  { name = "default", seed = 0, initializer, calibration, task, ...given }: AdaptOptions = {},
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
  const chosen = covered.matched.map((path) => base.layers.get(path)!.site!);
  const siteOptions = patternedOptions(parsed, covered.matched, targeting);
  const optionsAt = (path: string) => (siteOptions.get(path) ?? parsed) as never;
  const starting = initializer && {
    method: initializer.method,
    parsed: parseOptions(initializer.method, initializer.options ?? {}) as Record<string, unknown>,
  };
  if (starting) checkStart(definition, starting);
  const needs = [...(method.needs ?? []), ...(initializer?.method.needs ?? [])];
  const batches = calibration ? { calibration, ...(task ? { task } : {}) } : {};
  const statistics = await calibrated(base, chosen, needs, batches);
  const rank = ({ path }: Site): number => (optionsAt(path) as { r: number }).r;
  const watched: Watched = { model: base, sites: chosen, rank, ...(calibration ? { batches: calibration } : {}) };
  const found: Found | undefined = await starting?.method.watch?.(watched, starting.parsed);
  const sites = starting && found ? allocated(chosen, parsed, siteOptions, starting, found.ranks) : chosen;
  const on = { ...covered, matched: sites.map(({ path }) => path) };
  if (!method.anyRank) for (const site of sites) checkRank(site, optionsAt(site.path));
  const tied = tiedHead(base, on.matched, targeting);
  const own = sites.filter(({ path }) => path !== tied?.head);
  const { entries, shared, context } = await initialise(definition, base, own, optionsAt, name, seed, { statistics, initializer: starting?.method.id });
  const taken = new Map<string, Taken>();
  for (const site of own) {
    const o = optionsAt(site.path) as Record<string, unknown>;
    const scale = definition.scale?.(o) ?? (o["alpha"] as number) / (o["r"] as number);
    await scope(async () => {
      const start = starting
        ? await starting.method.start(site, o["r"] as number, starting.parsed, {
            ...context(site.path),
            scale,
            found,
            statistics: (starting.method.needs ?? []).length > 0 ? statisticsAt(statistics, site.path, starting.method) : (undefined as never),
          })
        : await definition.start?.(site, o as never, context(site.path));
      if (!start) return;
      noGrad(() => begin(entries.get(site.path)!, start));
      statistics.delete(site.path); // a gradient is as large as its weight
      if (start.takes) taken.set(site.path, takenFrom(site, start, scale));
    });
  }
  if (tied) entries.set(tied.head, entries.get(tied.embedding)!);
  const copies = copiedLeaves(base, name, on, targeting, method.copies);
  if ((method.copies?.weight || method.copies?.bias) && copies.size === 0)
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
    // PEFT finds the sites by these; the entries given would find those of rank 0 too
    targeting: sites.length < chosen.length ? { ...targeting, targets: exactTargets(base, on.matched) } : targeting,
    seed,
    taken,
    ...(starting?.method.config ? { started: starting.method.config(starting.parsed) } : {}),
    entries,
    shared,
    copies,
    tokens,
    live: newLive(),
    warnings: found?.warnings ?? [],
    coverage: on,
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
