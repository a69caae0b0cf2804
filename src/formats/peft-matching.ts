import { StrutError, nearest } from "../errors.ts";
import type { PeftConfig } from "./peft-config.ts";
import { pythonPattern } from "./peft-regexp.ts";
import { defaultTargets } from "./peft-targets.ts";

/** A module of the base model under its Hugging Face path; containers such as "model.layers.0.mlp" are of kind "other". */
export interface MatchableModule {
  readonly path: string;
  readonly kind: "linear" | "embedding" | "conv2d" | "norm" | "other";
  /** The layer that makes the logits; "all-linear" leaves it out. */
  readonly isOutputHead?: boolean;
  /** The path of the embedding whose weight this head shares. */
  readonly tiedTo?: string;
}

/** The keys of an adapter's config, or of a user's request, that say where adapters go. */
export type TargetSelection = Partial<
  Pick<PeftConfig, "target_modules" | "exclude_modules" | "modules_to_save" | "layers_to_transform" | "layers_pattern" | "task_type">
> & { readonly ensure_weight_tying?: boolean };

export interface MatchOptions {
  /** `model_type` of the base, for PEFT's default targets. */
  readonly modelType?: string | undefined;
  /** What messages call the base, such as "LlamaForCausalLM"; defaults to "the model". */
  readonly modelName?: string;
  /** Kinds the method can adapt; defaults to linear, embedding and conv2d. */
  readonly kinds?: readonly MatchableModule["kind"][];
}

export interface Matches<M extends MatchableModule = MatchableModule> {
  /** Modules to adapt, in the order of the model. */
  readonly matched: readonly M[];
  /** Entries of a target list that match no module; PEFT says nothing about them. */
  readonly unmatched: readonly string[];
  /** Modules that `modules_to_save` trains and stores whole. */
  readonly saved: readonly M[];
}

type Rule = (path: string) => boolean;

const EMBEDDING_NAMES = ["embed_tokens", "lm_head"];

/** PEFT's list rule: the whole path, or its end after a dot. */
const listed =
  (entry: string): Rule =>
  (path) =>
    path === entry || path.endsWith(`.${entry}`);

const never: Rule = () => false;
const any =
  (rules: readonly Rule[]): Rule =>
  (path) =>
    rules.some((rule) => rule(path));

const selected = (selection: string | readonly string[], what: string): Rule =>
  typeof selection === "string" ? pythonPattern(selection, what).fullmatch : any(selection.map(listed));

/**
 * Says which modules of a model an adapter's config adapts, as PEFT 0.21 decides it: a string is a Python pattern for
 * the whole path, "all-linear" every linear layer except the output head, a list entry a path or its ending;
 * `exclude_modules` and `modules_to_save` win over targets.
 *
 * @example
 * matchModules(modules, { target_modules: ["q_proj"] }, { modelType: "llama" }).matched.map((module) => module.path);
 */
export function matchModules<M extends MatchableModule>(modules: readonly M[], config: TargetSelection, options: MatchOptions = {}): Matches<M> {
  const asked = config.target_modules ?? defaultTargets(options.modelType);
  const isAllLinear = typeof asked === "string" && asked.toLowerCase() === "all-linear";
  const targets = isAllLinear ? allLinear(modules, config) : asked;
  const isTarget = targetRule(targets, config, isAllLinear);
  const isExcluded = any([
    ...(config.exclude_modules?.length ? [selected(config.exclude_modules, "exclude_modules")] : []),
    ...(config.modules_to_save ?? []).map((entry) => keptFree(entry)),
  ]);
  const tie = tiedPair(modules, config);
  const isTied = tie && namesEmbedding(targets) ? tie : never;
  const isSaved = tie && namesEmbedding(config.modules_to_save ?? []) ? tie : never;
  const hits = modules.filter(({ path }) => path !== "" && (isTied(path) || (!isExcluded(path) && isTarget(path))));
  if (hits.length === 0) throw noMatch(modules, asked, isTarget, config, options);
  refuseKinds(hits, asked, options);
  return {
    matched: hits,
    unmatched: typeof targets === "string" ? [] : targets.filter((entry) => !modules.some(({ path }) => listed(entry)(path))),
    saved: modules.filter(({ path }) => isSaved(path) || config.modules_to_save?.some((entry) => path.endsWith(entry))),
  };
}

/** Paths that `modules_to_save` keeps adapters away from; by which modules it selects, see `saved`. */
const keptFree = (entry: string): Rule => {
  const pattern = pythonPattern(`(^|.*\\.)${entry}($|\\..*)`, "modules_to_save");
  return (path) => pattern.match(path) !== undefined;
};

function allLinear(modules: readonly MatchableModule[], config: TargetSelection): string[] {
  const head =
    modules.find(({ isOutputHead }) => isOutputHead)?.path ??
    (config.task_type === "SEQ_CLS" ? ["score", "classifier"].find((name) => modules.some(({ path }) => path === name)) : undefined);
  return modules.filter(({ kind, path }) => kind === "linear" && path !== head).map(({ path }) => path);
}

function targetRule(targets: string | readonly string[], config: TargetSelection, isAllLinear: boolean): Rule {
  const layers = layerFilter(config);
  if ((isAllLinear || typeof targets === "string") && (layers || config.layers_pattern?.length))
    throw new StrutError("peft-targets", "layers_to_transform and layers_pattern need a list of target_modules, found a string.", {
      path: "layers_to_transform",
      hint: 'Name the targets as a list, such as ["q_proj", "v_proj"], or put the layers into the pattern.',
    });
  if (typeof targets === "string") return selected(targets, "target_modules");
  const rules = targets.map(listed);
  // An entry that is a whole path is taken whatever the layer: PEFT asks for the layer only in its ending branch.
  return (path) => targets.includes(path) || (any(rules)(path) && (layers?.(path) ?? true));
}

function layerFilter({ layers_to_transform: wanted, layers_pattern: pattern }: TargetSelection): Rule | undefined {
  if (wanted === null || wanted === undefined || (Array.isArray(wanted) && wanted.length === 0)) return undefined;
  const names = typeof pattern === "string" ? [pattern] : (pattern ?? []);
  const patterns = names.filter((name) => name !== "").map((name) => `(?:^|.*?\\.)${name}\\.(?P<idx>\\d+)\\.`);
  if (patterns.length === 0) patterns.push(".*?\\.[^.]*\\.(?P<idx>\\d+)\\.");
  const compiled = patterns.map((source) => pythonPattern(source, "layers_pattern"));
  return (path) => {
    for (const { match } of compiled) {
      const found = match(path);
      if (found) return [wanted].flat().includes(Number(found["idx"]));
    }
    return false;
  };
}

/** With `ensure_weight_tying`, naming the embedding or the head that shares its weight means both. */
function tiedPair(modules: readonly MatchableModule[], config: TargetSelection): Rule | undefined {
  const head = config.ensure_weight_tying ? modules.find(({ tiedTo }) => tiedTo !== undefined) : undefined;
  return head && ((path) => path === head.path || path === head.tiedTo);
}

const namesEmbedding = (selection: string | readonly string[]): boolean =>
  typeof selection === "string"
    ? EMBEDDING_NAMES.some(selected(selection, "target_modules"))
    : selection.some((entry) => EMBEDDING_NAMES.includes(entry.split(".").at(-1)!));

/**
 * Whether PEFT stores the embedding and the head whole (as `base_layer.weight`) because they are adapted. It goes by the
 * two names embed_tokens and lm_head, so GPT-2's wte is not stored, nor is "model.embed_tokens" in a list without them.
 */
export function savesEmbeddings(config: TargetSelection & Partial<{ trainable_token_indices: unknown }>, paths: readonly string[]): boolean {
  const targets = config.target_modules;
  if (!targets || targets === "all-linear" || (config.trainable_token_indices ?? null) !== null) return false;
  if (typeof targets !== "string") return EMBEDDING_NAMES.some((name) => targets.includes(name));
  return paths.filter(any(EMBEDDING_NAMES.map(listed))).some(selected(targets, "target_modules"));
}

/**
 * The base layer behind each layer of a model made by `layer_replication`; adapters carry the new numbers.
 *
 * @example
 * replicatedLayers([[0, 3], [2, 5]]); // [0, 1, 2, 2, 3, 4]
 */
export function replicatedLayers(ranges: readonly (readonly [number, number])[]): number[] {
  return ranges.flatMap(([from, to]) => Array.from({ length: Math.max(0, to - from) }, (_, i) => from + i));
}

const listing = (names: readonly string[], most = 12): string => names.slice(0, most).join(", ") + (names.length > most ? ", …" : "");

function refuseKinds(hits: readonly MatchableModule[], asked: string | readonly string[], options: MatchOptions): void {
  const kinds = options.kinds ?? ["linear", "embedding", "conv2d"];
  const wrong = hits.find(({ kind }) => !kinds.includes(kind));
  if (!wrong) return;
  const isContainer = wrong.kind === "other";
  throw new StrutError(
    "peft-targets",
    `targets ${JSON.stringify(asked)} match ${wrong.path}, which is ${isContainer ? "no layer with a weight of its own" : `of kind ${wrong.kind}`}.`,
    { path: "target_modules", hint: `Only layers of kind ${kinds.join(", ")} can be adapted${isContainer ? "; name the layers inside of it" : ""}.` },
  );
}

function noMatch(
  modules: readonly MatchableModule[],
  asked: string | readonly string[],
  isTarget: Rule,
  config: TargetSelection,
  { modelName = "the model" }: MatchOptions,
): StrutError {
  const excluded = modules.filter(({ path }) => isTarget(path));
  if (excluded.length > 0)
    return new StrutError(
      "peft-targets",
      `targets ${JSON.stringify(asked)} match only modules that exclude_modules or modules_to_save take away: ${listing(
        excluded.map(({ path }) => path),
        3,
      )}.`,
      {
        path: "target_modules",
        hint: "Name other targets, or exclude less.",
      },
    );
  const suffixes = new Map<string, number>();
  for (const { path, kind } of modules)
    if (kind === "linear" || kind === "conv2d") {
      const name = path.split(".").at(-1)!;
      suffixes.set(name, (suffixes.get(name) ?? 0) + 1);
    }
  const entries = typeof asked === "string" ? [asked] : asked;
  const near = [...new Set(entries.flatMap((entry) => nearest(entry.split(".").at(-1)!, suffixes.keys(), 1)))];
  const shown = near.map((name) => `${JSON.stringify(name)} (${suffixes.get(name)} ${suffixes.get(name) === 1 ? "layer" : "layers"})`);
  const layers = layerFilter(config) ? ` with layers_to_transform ${JSON.stringify(config.layers_to_transform)}` : "";
  return new StrutError("peft-targets", `targets ${JSON.stringify(asked)} match no layer of ${modelName}${layers}.`, {
    path: "target_modules",
    hint: `${shown.length > 0 && !layers ? `Did you mean ${shown.join(" or ")}? ` : ""}Linear layers: ${listing([...suffixes.keys()])}.`,
  });
}
