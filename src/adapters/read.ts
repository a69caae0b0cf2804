import { StrutError } from "../errors.ts";
import { adaptersIn, openAdapterDirectory, type AdapterDirectory, type OwnConfig } from "../formats/adapter-directory.ts";
import type { LoraPeftConfig, PeftConfig } from "../formats/peft-config.ts";
import { parsePeftKeys, refuseStrayKeys, type ParsedKeys, type SharedPart } from "../formats/peft-keys.ts";
import { loraLayers, refuseUnreadableLora, type LoraSite } from "../formats/peft-lora.ts";
import { patternLookup } from "../formats/peft-patterns.ts";
import { replicateLayers } from "../models/change.ts";
import { realOf, type Model } from "../models/model.ts";
import { readTensor } from "../models/stored.ts";
import type { Params, Site } from "../nn/contracts.ts";
import { parseOptions, snake } from "../nn/options.ts";
import { noGrad, Parameter, Rng, scope, type Real, type Tensor } from "../tensor/index.ts";
import { copiedLeaves, initialise, leafOf, takenFrom, tiedHead } from "./adapt.ts";
import type { Adapter } from "./adapter.ts";
import { newLive, tryOut, withAdapters, type AttachedAdapter, type Taken, type Targeting } from "./attach.ts";
import { oneOf, refuseUnlike, sourcesOf } from "./published.ts";
import { tokenRows } from "./tokens.ts";

export interface LoadAdapterOptions {
  /** Defaults to "default". */
  name?: string;
  /** Methods that may be in the directory; the first whose layout fits is taken. */
  methods: readonly Adapter[];
  /** Whether its parameters train; defaults to true. */
  trainable?: boolean;
}

type Options = Readonly<Record<string, unknown>>;

/** What a directory's config says of its adapter, whichever config it is. */
interface Description {
  readonly definition: Adapter;
  readonly options: Options;
  readonly targeting: Targeting;
  readonly seed: number;
  readonly raw?: Options;
  /** Modules it sits on, where the config lists them. */
  readonly targets?: readonly string[];
  /** Options of one site where they differ. */
  siteOptions(path: string, tensors: Params): Options | undefined;
}

const typesOf = (methods: readonly Adapter[]): string => [...new Set(methods.flatMap(({ layout }) => layout.type ?? []))].join(", ");

/** The method of a config: by peft_type and the settings that mark a variant. */
function methodOf(config: PeftConfig, methods: readonly Adapter[], path: string, keys: readonly string[]): Adapter {
  const marked = methods.find(({ layout: { reads } }) => reads?.type === config.peft_type && keys.some((key) => key.endsWith(reads.tensor)));
  if (marked) return marked;
  const marks = (value: unknown, found: unknown): boolean => value === found || (value === false && (found === undefined || found === null));
  const found = methods.find(
    ({ layout: { type, formerly = {}, fixed = {}, beside } }) =>
      (type === config.peft_type || config.peft_type in formerly) &&
      !beside &&
      Object.entries(fixed).every(([key, value]) => marks(value, (config as unknown as Options)[key] ?? config.raw[key])),
  );
  if (found) return found;
  throw new StrutError("peft-config", `${path} is an adapter of type ${config.peft_type}, which strut cannot read`, {
    path,
    hint: `It reads ${typesOf(methods)}. Merge the adapter in PEFT and load the merged model.`,
  });
}

const orUndefined = <T>(value: T | null | undefined): T | undefined => value ?? undefined;

const defined = <T extends object>(value: T): T => Object.fromEntries(Object.entries(value).filter(([, item]) => item !== undefined)) as T;

/** Where a config puts its adapter, in our spelling. */
const targetingOf = (c: Partial<LoraPeftConfig>): Targeting =>
  defined({
    targets: orUndefined(c.target_modules),
    excludeModules: orUndefined(c.exclude_modules),
    layersToTransform: orUndefined(c.layers_to_transform),
    layersPattern: orUndefined(c.layers_pattern),
    rankPattern: c.rank_pattern,
    alphaPattern: c.alpha_pattern,
    // each type of PEFT has its own name before it: lora_only, MiSS_only, bone_only
    bias: c.bias?.endsWith("_only") ? "lora_only" : c.bias,
    modulesToSave: orUndefined(c.modules_to_save),
    trainableTokenIndices: orUndefined(c.trainable_token_indices),
    ensureWeightTying: c.ensure_weight_tying,
    layerReplication: orUndefined(c.layer_replication),
  } as Targeting);

function fromOwn(config: OwnConfig, methods: readonly Adapter[], path: string): Description {
  const definition = methods.find(({ id }) => id === config.method);
  if (!definition)
    throw new StrutError("adapter-config", `${path} is an adapter of the method ${JSON.stringify(config.method)}, which strut does not know`, {
      path,
      hint: "It may come from a newer strut.",
    });
  return {
    definition,
    options: parseOptions(definition, config.options),
    targeting: targetingOf(config.targeting as Partial<LoraPeftConfig>),
    seed: config.seed,
    targets: config.targets,
    siteOptions: (module) => config.site_options[module],
  };
}

function fromPeft(config: PeftConfig, methods: readonly Adapter[], path: string, keys: readonly string[]): Description {
  const definition = methodOf(config, methods, path, keys);
  const { layout } = definition;
  const settings: Options = { ...config.raw, ...(config as unknown as Options) };
  const given = Object.keys(definition.options.shape).flatMap((key): [string, unknown][] => {
    const value = settings[layout.options?.[key] ?? snake(key)];
    return value === undefined || value === null ? [] : [[key, value]];
  });
  const options = parsedForgivingly(definition, Object.fromEntries(given));
  const patterned = (module: string): Options | undefined => {
    if (!("r" in options)) return undefined;
    const pattern = (key: "rank" | "alpha", otherwise: unknown): number =>
      patternLookup((config.raw[`${key}_pattern`] ?? {}) as Record<string, number>, otherwise as number, `${key}_pattern`)(module).value;
    const own = { r: pattern("rank", options["r"]), ...("alpha" in options ? { alpha: pattern("alpha", options["alpha"]) } : {}) };
    return Object.entries(own).every(([key, value]) => options[key] === value) ? undefined : { ...options, ...own };
  };
  return {
    definition,
    options,
    targeting: targetingOf(settings as Partial<LoraPeftConfig>),
    seed: 0,
    raw: config.raw,
    siteOptions: (module, tensors) => {
      const own = layout.siteOptions?.(module, tensors, settings);
      return own ? { ...options, ...own } : patterned(module);
    },
  };
}

/** A config's options with defaults filled in; a value that no new adapter may have, such as rank 0, is kept as it is. */
function parsedForgivingly({ options }: Adapter, given: Readonly<Record<string, unknown>>): Options {
  return Object.fromEntries(
    Object.entries(options.shape).map(([key, schema]) => {
      const parsed = schema.safeParse(given[key]);
      return [key, parsed.success ? parsed.data : given[key]];
    }),
  );
}

/**
 * Puts an adapter from a directory, PEFT's or ours, on a model and makes it the active one.
 *
 * @example
 * const tuned = await loadAdapter(base, "my-adapter", { methods: [lora, dora] });
 */
export async function loadAdapter(model: Model, folder: string, { name = "default", methods, trainable = true }: LoadAdapterOptions): Promise<Model> {
  const directory = await openAdapterDirectory(folder);
  try {
    const { own, peft, path } = directory;
    const description = own ? fromOwn(own, methods, path) : fromPeft(peft!, methods, path, [...directory.weights.entries.keys()]);
    const { targeting } = description;
    const base = targeting.layerReplication ? replicateLayers(model, targeting.layerReplication) : model;
    const set = await readSet(base, directory, description, name);
    const adapted = withAdapters(base, new Map([...base.adapters, [name, set]]), [name]);
    tryOut(adapted, set, path);
    if (!trainable)
      for (const parameter of [...[...set.entries.values(), set.shared].flatMap((p) => Object.values(p)), ...set.copies.values()])
        if (parameter instanceof Parameter) parameter.trainable = false;
    return adapted;
  } finally {
    await directory.close();
  }
}

/**
 * Puts all adapters of a folder on a model, as `saveAdapters` and PEFT write them, and makes them active together.
 *
 * @example
 * const both = await loadAdapters(base, "my-adapter", { methods: [lora, dora] });
 */
export async function loadAdapters(model: Model, folder: string, options: Omit<LoadAdapterOptions, "name">): Promise<Model> {
  const found = await adaptersIn(folder);
  if (found.size === 0)
    throw new StrutError("files", `The folder ${folder} holds no adapter.`, { path: folder, hint: "Name the folder that adapters were saved into." });
  let adapted = model;
  for (const [name, path] of found) adapted = await loadAdapter(adapted, path, { ...options, name });
  return withAdapters(adapted, adapted.adapters, [...found.keys()]);
}

/** The tensors of each adapted module, and the keys that are not the method's own. */
interface Sorted {
  readonly byModule: ReadonlyMap<string, Readonly<Record<string, string>>>;
  readonly others: ParsedKeys<string>["keys"];
  readonly shared: Readonly<Record<string, string>>;
}

function sortKeys(base: Model, { path, peft }: AdapterDirectory, { layout }: Adapter, sources: ReadonlyMap<string, readonly string[]>): Sorted {
  const former = peft && layout.formerly?.[peft.peft_type];
  const namesAt = (kind: keyof typeof layout.tensors): Readonly<Record<string, string>> => ({ ...layout.tensors[kind], ...former });
  const parts = [...new Set((Object.keys(layout.tensors) as (keyof typeof layout.tensors)[]).flatMap((kind) => Object.values(namesAt(kind))))];
  const prefix = `base_model.${layout.sharedPrefix}`;
  const named = layout.sharedPrefix
    ? [...sources.keys()].filter((key) => key.startsWith(prefix)).map((key): [string, string] => [key.slice(prefix.length), key])
    : Object.entries(layout.shared ?? {}).map(([param, part]): [string, string] => [param, `base_model.${part}`]);
  const shared = Object.fromEntries(named.filter(([, key]) => sources.has(key)));
  const repeated = (key: string): boolean => layout.repeated?.some((name) => key.endsWith(`.${name}`)) ?? false;
  const parsed = parsePeftKeys(
    [...sources.keys()].filter((key) => !Object.values<string>(shared).includes(key) && !repeated(key)),
    parts,
  );
  refuseStrayKeys(parsed, { name: "the base model", has: (module) => base.layers.has(module) }, path);
  const byModule = new Map<string, Record<string, string>>();
  for (const { key, module, part } of parsed.keys) {
    if (!parts.includes(part)) continue;
    const kind = base.layers.get(module)!.site?.kind;
    const param = Object.entries(kind && layout.tensors[kind] ? namesAt(kind) : {}).find(([, name]) => name === part)?.[0];
    if (!param)
      throw new StrutError("peft-shape", `${module} has ${part}, which a layer of kind ${base.layers.get(module)!.spec.kind} does not take.`, {
        path,
        hint: "The adapter was made for another base model.",
      });
    byModule.set(module, { ...byModule.get(module), [param]: key });
  }
  return { byModule, others: parsed.keys.filter(({ part }) => !parts.includes(part)), shared };
}

/** Rank, shapes and warnings of a LoRA's file, which PEFT may have written in another order than it means. */
function checkLora(
  base: Model,
  { weights, peft }: AdapterDirectory,
  { layout }: Adapter,
): { ranks: Map<string, { r: number; alpha: number }>; warnings: readonly string[] } {
  const parts = Object.values(layout.tensors).flatMap((names) => Object.values(names));
  const parsed = parsePeftKeys(weights.entries.keys(), parts);
  const sites = new Map(
    base.sites.map((site): [string, LoraSite] => [
      site.path,
      {
        kind: site.kind,
        shape: site.conv ? base.layers.get(site.path)!.weight.shape : [site.out, site.in],
        ...(site.conv ? { groups: site.conv.groups } : {}),
      },
    ]),
  );
  const { layers, warnings } = loraLayers(parsed as never, (key) => weights.entries.get(key)!.shape, sites, peft as LoraPeftConfig);
  return { ranks: new Map(layers.map(({ path, rank, alpha }) => [path, { r: rank, alpha }])), warnings };
}

async function readSet(base: Model, directory: AdapterDirectory, description: Description, name: string): Promise<AttachedAdapter> {
  const { weights, path, own, peft } = directory;
  const { definition, options, targeting, seed, raw } = description;
  const { layout } = definition;
  const lora = !own && layout.type === "LORA";
  if (lora) refuseUnreadableLora(peft as LoraPeftConfig, path);
  const sources = sourcesOf(base, directory, definition, options);
  const sorted = sortKeys(base, directory, definition, sources);
  const checked = lora ? checkLora(base, directory, definition) : undefined;
  const read = async (keys: Readonly<Record<string, string>>, prefix: string, like: Tensor["dtype"], site?: Site): Promise<Params> => {
    const found = await Promise.all(
      Object.entries(keys).map(async ([param, key]) => {
        const held = sources.get(key)!;
        return { param, held, key, tensors: await Promise.all(held.map((source) => readTensor(weights, source, like, path))) };
      }),
    );
    const pieces = site && layout.assemble && found.some(({ held, key }) => String(held) !== key);
    const params = pieces
      ? noGrad(() => scope(() => layout.assemble!(Object.fromEntries(found.map(({ param, tensors }) => [param, tensors])), site)))
      : Object.fromEntries(await Promise.all(found.map(async ({ param, held, tensors }) => [param, await oneOf(tensors, held, path)] as const)));
    return Object.fromEntries(
      Object.entries(params).map(([param, value]) => [param, leafOf(value, `${prefix}/${param}`, layout.frozen?.includes(param) ?? false)]),
    );
  };
  const dtype = [...base.layers.values()][0]!.weight.dtype;
  const matched = [...new Set([...(description.targets ?? []), ...sorted.byModule.keys()])];
  for (const module of matched)
    if (!base.layers.get(module)?.site)
      throw new StrutError("peft-keys", `${path} adapts ${module}, which the model does not have.`, {
        path,
        hint: "The adapter was made for another base model.",
      });
  const siteOptions = new Map<string, Record<string, unknown>>();
  const stored = new Map<string, Params>();
  for (const module of matched) {
    const tensors = await read(sorted.byModule.get(module) ?? {}, `${name}/${module}`, realOf(base.layers.get(module)!), base.layers.get(module)!.site);
    stored.set(module, tensors);
    const rank = checked?.ranks.get(module);
    const differs =
      rank && (rank.r !== options["r"] || rank.alpha !== options["alpha"])
        ? { ...options, ...rank }
        : rank
          ? undefined
          : description.siteOptions(module, tensors);
    if (differs) siteOptions.set(module, { ...differs });
  }
  const storedShared = await read(sorted.shared, `${name}/shared`, dtype);
  const optionsAt = (module: string): never => (siteOptions.get(module) ?? options) as never;
  const made = layout.derived
    ? await initialise(
        definition,
        base,
        matched.map((module) => base.layers.get(module)!.site!),
        optionsAt,
        name,
        seed,
      )
    : { entries: new Map<string, Params>(), shared: {} };
  if (layout.derived && [...sources].some(([ours, held]) => String(held) !== ours)) {
    for (const [module, params] of made.entries) refuseUnlike(params, stored.get(module)!, module, path);
    refuseUnlike(made.shared, storedShared, "the model", path);
  }
  const entries = new Map<string, Params>(matched.map((module) => [module, { ...made.entries.get(module), ...stored.get(module) }]));
  const taken = await takenOnLoading(base, description, matched, optionsAt);
  const covered = { matched, unmatched: [], saved: savedModules(base, sorted.others, matched) };
  const tied = tiedHead(base, matched, targeting);
  if (tied) entries.set(tied.head, entries.get(tied.embedding)!);
  const copies = copiedLeaves(base, name, covered, targeting, definition.copies);
  const tokens = tokenRows(base, name, targeting.trainableTokenIndices, copies);
  for (const { key, module, part } of sorted.others) await readCopy(directory, copies, key, module, part as SharedPart);
  const regime = definition.regime?.(options as never);
  return {
    name,
    method: definition.id,
    definition,
    options,
    siteOptions,
    targeting,
    seed,
    taken,
    entries,
    shared: { ...made.shared, ...storedShared },
    copies,
    tokens,
    live: newLive(),
    warnings: checked?.warnings ?? [],
    coverage: covered,
    ...(raw ? { raw } : {}),
    ...(regime ? { regime } : {}),
  };
}

/** What the base gave away when the adapter began, decomposed again. */
async function takenOnLoading(
  base: Model,
  { definition, seed }: Description,
  matched: readonly string[],
  optionsAt: (path: string) => never,
): Promise<Map<string, Taken>> {
  const taken = new Map<string, Taken>();
  const dtype = [...base.layers.values()][0]!.weight.dtype as Real;
  for (const path of definition.start ? matched : []) {
    const site = base.layers.get(path)!.site!;
    const o = optionsAt(path) as Record<string, unknown>;
    await scope(async () => {
      const context = { rng: new Rng(seed), sites: [], dtype };
      const start = await definition.start!(site, o as never, context);
      if (start?.takes) taken.set(path, takenFrom(site, start, definition.scale?.(o as never) ?? (o["alpha"] as number) / (o["r"] as number)));
    });
  }
  return taken;
}

/** Modules stored whole, by the plain weights in the file. */
const savedModules = (base: Model, keys: readonly { module: string; part: string }[], matched: readonly string[]): string[] => [
  ...new Set(keys.filter(({ module, part }) => part === "weight" && base.layers.has(module) && !matched.includes(module)).map(({ module }) => module)),
];

/** Fills a copied leaf from the file. A stored base_layer.weight must agree in shape and is otherwise the base's own. */
async function readCopy(directory: AdapterDirectory, copies: Map<string, Parameter>, key: string, module: string, part: SharedPart): Promise<void> {
  const leafName = { weight: "weight", bias: "bias", "base_layer.bias": "bias", "token_adapter.trainable_tokens_delta": "token_rows" }[part as string];
  const target = leafName && copies.get(`${module}.${leafName}`);
  if (!target) return;
  const value = await readTensor(directory.weights, key, target.dtype, directory.path);
  if (String(value.shape) !== String(target.shape))
    throw new StrutError("peft-shape", `${key} has shape [${value.shape}], expected [${target.shape}]`, {
      path: directory.path,
      hint: "The adapter was made for another base model.",
    });
  target.assign(value);
}
