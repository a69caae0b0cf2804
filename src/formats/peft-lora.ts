import { StrutError } from "../errors.ts";
import type { LoraPeftConfig } from "./peft-config.ts";
import type { LoraPart, ParsedKeys, PeftKey, SharedPart } from "./peft-keys.ts";
import { type PatternValue, patternLookup } from "./peft-patterns.ts";

/** A layer of the base model that a LoRA may sit on. */
export interface LoraSite {
  readonly kind: "linear" | "embedding" | "conv2d";
  /** Linear out×in (GPT-2's Conv1D too), embedding tokens×dim, convolution out×(in/groups)×height×width. */
  readonly shape: readonly number[];
  /** Groups of a convolution; defaults to 1. */
  readonly groups?: number;
}

/** One adapted layer of a LoRA file, checked against its layer. */
export interface LoraLayer {
  readonly path: string;
  readonly kind: LoraSite["kind"];
  /** Rows of A as stored. */
  readonly rank: number;
  readonly alpha: number;
  /** What B·A is multiplied with: alpha / rank, or alpha / √rank with `use_rslora`. */
  readonly scale: number;
  /** The file's key of each tensor that is there. */
  readonly tensors: Readonly<Partial<Record<LoraPart, string>>>;
}

export interface LoraLayers {
  readonly layers: readonly LoraLayer[];
  /** Sentences about what the file says two ways, and which was taken. */
  readonly warnings: readonly string[];
}

/** Initialisations that also change the base weights, and how the base is changed. */
const CHANGES_BASE: readonly [RegExp, string, string][] = [
  [/^pissa_niter_\d+$/, "PiSSA", "W − s·B₀·A₀ of a randomised decomposition, which nobody can draw again"],
  [/^corda/, "CorDA", "the rest of a decomposition that needs the training data"],
  [/^lora_ga$/, "LoRA-GA", "W − s·B₀·A₀ of a gradient on the training data"],
  [/^loftq$/, "LoftQ", "its quantised form"],
];

/** Keys whose presence makes the adapter another function than LoRA or DoRA. */
const VARIANTS: readonly [keyof LoraPeftConfig, string][] = [
  ["alora_invocation_tokens", "aLoRA"],
  ["arrow_config", "Arrow"],
  ["kasa_config", "KaSA"],
  ["megatron_config", "Megatron layers"],
  ["monteclora_config", "MonteCLoRA"],
  ["target_parameters", "adapters on single parameters"],
  ["use_bdlora", "BD-LoRA"],
  ["use_qalora", "QALoRA"],
];

/** Throws a sentence where the config asks for more than a LoRA or DoRA on the untouched base model. */
export function refuseUnreadableLora(config: LoraPeftConfig, path: string): void {
  const init = String(config.init_lora_weights).toLowerCase();
  const base = CHANGES_BASE.find(([pattern]) => pattern.test(init));
  if (base)
    throw new StrutError(
      "peft-lora",
      `${path} is ${base[1]} as trained ("init_lora_weights": ${JSON.stringify(config.init_lora_weights)}): its base weights are not W but ${base[2]}; strut cannot read that yet.`,
      {
        path,
        hint: `Save it from PEFT as a plain LoRA: model.save_pretrained(folder, path_initial_model_for_weight_conversion=the adapter as it was before training).`,
      },
    );
  const variant = VARIANTS.find(([key]) => ![null, false].includes(config[key] as null) && JSON.stringify(config[key]) !== "[]");
  if (variant)
    throw new StrutError("peft-lora", `${path} sets ${variant[0]}, so this is ${variant[1]} and not a plain LoRA; strut cannot read that yet.`, {
      path,
      hint: "Merge it into the base model with PEFT, and use the merged model.",
    });
}

/**
 * Joins a LoRA file's tensors into layers and checks every shape. The rank is that of the tensors; where the config says
 * another one, a warning says so (PEFT sorts pattern keys on saving, so the config may mean something else than it did).
 *
 * @example
 * const { layers, warnings } = loraLayers(parsePeftKeys(file.entries.keys()), (key) => file.entries.get(key)!.shape, sites, config);
 */
export function loraLayers(
  parsed: ParsedKeys<LoraPart | SharedPart>,
  shapeOf: (key: string) => readonly number[],
  sites: ReadonlyMap<string, LoraSite>,
  config: LoraPeftConfig,
): LoraLayers {
  const byModule = new Map<string, Map<LoraPart, PeftKey>>();
  for (const key of parsed.keys) if (isLoraPart(key.part)) byModule.set(key.module, (byModule.get(key.module) ?? new Map()).set(key.part, key));
  const rankOf = patternLookup(config.rank_pattern, config.r, "rank_pattern");
  const alphaOf = patternLookup(config.alpha_pattern, config.lora_alpha, "alpha_pattern");
  const warnings: string[] = [];
  const layers = [...byModule].map(([path, parts]): LoraLayer => {
    const site = sites.get(path);
    if (!site) throw bad(path, `The adapter has tensors for ${path}, which the model does not have.`, "The adapter was made for another base model.");
    const rank = checkedRank(path, site, parts, shapeOf);
    if (parts.has("lora_magnitude_vector") !== config.use_dora) throw halfDora(path, config.use_dora);
    const alpha = alphaOf(path);
    warnings.push(...rankWarning(path, rank, rankOf(path)), ...alphaWarning(path, alpha));
    return {
      path,
      kind: site.kind,
      rank,
      alpha: alpha.value,
      scale: rank === 0 ? 0 : alpha.value / (config.use_rslora ? Math.sqrt(rank) : rank),
      tensors: Object.fromEntries([...parts].map(([part, { key }]) => [part, key])),
    };
  });
  return { layers, warnings };
}

const halfDora = (path: string, isDora: boolean): StrutError =>
  bad(
    path,
    `${path} has ${isDora ? "no lora_magnitude_vector, but the config says" : "a lora_magnitude_vector, but the config does not say"} "use_dora": true.`,
    "Config and tensors come from different adapters; copy both files from the same place.",
  );

const isLoraPart = (part: LoraPart | SharedPart): part is LoraPart => part.startsWith("lora_");

const bad = (path: string, sentence: string, hint: string): StrutError => new StrutError("peft-shape", sentence, { path, hint });

const times = (shape: readonly number[]): string => (shape.length === 0 ? "a single number" : shape.join("×"));

function checkedRank(path: string, site: LoraSite, parts: ReadonlyMap<LoraPart, PeftKey>, shapeOf: (key: string) => readonly number[]): number {
  const isEmbedding = site.kind === "embedding";
  const [nameA, nameB] = isEmbedding ? (["lora_embedding_A", "lora_embedding_B"] as const) : (["lora_A.weight", "lora_B.weight"] as const);
  const [a, b] = [parts.get(nameA), parts.get(nameB)];
  if (!a || !b)
    throw bad(
      path,
      `${path} has ${[...parts.keys()].join(", ")}, expected both ${nameA} and ${nameB} on a layer of kind ${site.kind}.`,
      "The file is incomplete, or was made for another base model.",
    );
  const [shapeA, shapeB] = [shapeOf(a.key), shapeOf(b.key)];
  const rank = shapeA[0] ?? 0;
  for (const [part, { key }] of parts) {
    const expected = expectedShape(part, site, rank);
    if (!expected) throw bad(path, `${path} has ${part}, which a layer of kind ${site.kind} does not take.`, "The adapter was made for another base model.");
    const found = shapeOf(key);
    if (String(found) === String(expected)) continue;
    const inner = part === nameB && String([found[0], ...found.slice(2)]) === String([expected[0], ...expected.slice(2)]);
    throw bad(
      path,
      inner
        ? `${path} has ${nameA} ${times(shapeA)} and ${nameB} ${times(shapeB)}, which do not fit each other: expected ${nameB} ${times(expected)}.`
        : `${path} has ${part} ${times(found)}, expected ${times(expected)} for a layer of ${times(site.shape)}.`,
      inner ? "The file is damaged; save it again." : "The adapter was made for another base model.",
    );
  }
  return rank;
}

function expectedShape(part: LoraPart, { kind, shape, groups = 1 }: LoraSite, rank: number): readonly number[] | undefined {
  const [out, into, ...kernel] = shape as [number, number, ...number[]];
  if (kind === "embedding") return { lora_embedding_A: [rank, out], lora_embedding_B: [into, rank], lora_magnitude_vector: [into] }[part as string];
  const ones = kernel.map(() => 1);
  return {
    // A convolution's A reads all inputs, only B is grouped; PEFT does the same.
    "lora_A.weight": [rank, into * groups, ...kernel],
    "lora_B.weight": [out, rank / groups, ...ones],
    "lora_B.bias": [out],
    lora_magnitude_vector: kind === "conv2d" ? [1, out, ...ones] : [out],
  }[part as string];
}

function rankWarning(path: string, rank: number, { value, key }: PatternValue): string[] {
  if (value === rank) return [];
  const by = key === undefined ? "r" : `rank_pattern ${JSON.stringify(key)}`;
  return [`${path}: the tensors have rank ${rank}, the config says ${value} (${by}); the tensors were taken.`];
}

function alphaWarning(path: string, { value, key, rivals }: PatternValue): string[] {
  if (rivals.length === 0) return [];
  return [
    `${path}: alpha ${value} is from alpha_pattern ${JSON.stringify(key)}, the first that matches, but ${rivals.map((rival) => JSON.stringify(rival)).join(", ")} would match too; PEFT may have sorted these keys when it saved them.`,
  ];
}
