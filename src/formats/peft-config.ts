import { z } from "zod";
import { StrutError, nearest } from "../errors.ts";

/** Every `peft_type` up to PEFT 0.21, and BONE, which 0.19 dropped. */
export const PEFT_TYPES = [
  "LORA",
  "ADALORA",
  "ADAMSS",
  "ADAPTION_PROMPT",
  "BEFT",
  "BOFT",
  "BONE",
  "C3A",
  "CARTRIDGE",
  "CPT",
  "DEFT",
  "DELORA",
  "FOURIERFT",
  "FROD",
  "GLORA",
  "GRALORA",
  "HIRA",
  "HRA",
  "IA3",
  "LILY",
  "LN_TUNING",
  "LOHA",
  "LOKR",
  "MISS",
  "MULTITASK_PROMPT_TUNING",
  "OFT",
  "OSF",
  "P_TUNING",
  "PEANUT",
  "POLY",
  "PREFIX_TUNING",
  "PROMPT_TUNING",
  "PSOFT",
  "PVERA",
  "RANDLORA",
  "ROAD",
  "SHADOW",
  "SHIRA",
  "SUPERTUNING",
  "TINYLORA",
  "TRAINABLE_TOKENS",
  "UNILORA",
  "VBLORA",
  "VERA",
  "WAVEFT",
  "XLORA",
] as const;
export type PeftType = (typeof PEFT_TYPES)[number];

const names = z.array(z.string());
const ids = z.array(z.int().nonnegative());

/** PEFT writes every key, so null and absent both mean the default. */
const or = <T>(schema: z.ZodType<T>, value: T) => schema.nullish().transform((given) => given ?? value);
const orNull = <T>(schema: z.ZodType<T>) => or<T | null>(schema, null);

const common = z.object({
  task_type: orNull(z.string()),
  auto_mapping: orNull(z.record(z.string(), z.unknown())),
  base_model_name_or_path: orNull(z.string()),
  revision: orNull(z.string()),
  peft_version: or(z.string(), "0.21.0"),
  target_modules: orNull(z.union([z.string(), names])),
  exclude_modules: orNull(z.union([z.string(), names])),
  modules_to_save: orNull(names),
  layers_to_transform: orNull(z.union([z.int(), z.array(z.int())])),
  layers_pattern: orNull(z.union([z.string(), names])),
});

const flag = or(z.boolean(), false);
const settings = orNull(z.record(z.string(), z.unknown()));

const lora = common.extend({
  r: or(z.int().nonnegative(), 8),
  lora_alpha: or(z.number(), 8),
  lora_dropout: or(z.number(), 0),
  fan_in_fan_out: flag,
  bias: or(z.enum(["none", "all", "lora_only"]), "none"),
  use_rslora: flag,
  use_dora: flag,
  init_lora_weights: or(z.union([z.boolean(), z.string()]), true),
  rank_pattern: or(z.record(z.string(), z.int().nonnegative()), {}),
  alpha_pattern: or(z.record(z.string(), z.number()), {}),
  lora_bias: flag,
  layer_replication: orNull(z.array(z.tuple([z.int().nonnegative(), z.int().nonnegative()]))),
  trainable_token_indices: orNull(z.union([ids, z.record(z.string(), ids)])),
  ensure_weight_tying: flag,
  target_parameters: orNull(names),
  alora_invocation_tokens: orNull(z.array(z.int())),
  arrow_config: settings,
  corda_config: settings,
  eva_config: settings,
  kasa_config: settings,
  loftq_config: or(z.record(z.string(), z.unknown()), {}),
  lora_ga_config: settings,
  megatron_config: settings,
  megatron_core: or(z.string(), "megatron.core"),
  monteclora_config: settings,
  qalora_group_size: or(z.int(), 16),
  use_bdlora: settings,
  use_qalora: flag,
  velora_config: settings,
});

interface Raw {
  /** The file as it was read, unknown keys included; they are written back. `runtime_config` is dropped. */
  readonly raw: Readonly<Record<string, unknown>>;
}
/** An adapter_config.json under PEFT's own names: the keys all methods share. */
export type PeftConfig = z.output<typeof common> & Raw & { readonly peft_type: PeftType };
/** The adapter_config.json of a LoRA, every key of PEFT 0.21 filled in. */
export type LoraPeftConfig = z.output<typeof lora> & Raw & { readonly peft_type: "LORA" };

export const isLora = (config: PeftConfig): config is LoraPeftConfig => config.peft_type === "LORA";

/**
 * Reads the content of an adapter_config.json. Only `peft_type` is required; missing keys get PEFT's defaults, unknown
 * keys stay in `raw`. `path` stands in messages.
 *
 * @example
 * const config = parsePeftConfig({ peft_type: "LORA", r: 4, target_modules: ["q_proj"] });
 */
export function parsePeftConfig(json: { peft_type: "LORA" } & Readonly<Record<string, unknown>>, path?: string): LoraPeftConfig;
export function parsePeftConfig(json: Readonly<Record<string, unknown>>, path?: string): PeftConfig;
export function parsePeftConfig(json: Readonly<Record<string, unknown>>, path = "adapter_config.json"): PeftConfig {
  const { runtime_config: _, ...raw } = json;
  const type = peftType(raw["peft_type"], path);
  const parsed = (type === "LORA" ? lora : common).safeParse(raw);
  if (!parsed.success) throw wrongValue(parsed.error.issues[0]!, raw, path);
  return { ...parsed.data, peft_type: type, raw };
}

function peftType(found: unknown, path: string): PeftType {
  if (found === undefined || found === null)
    throw new StrutError("peft-config", `${path} has no peft_type, so it is not the config of a PEFT adapter.`, {
      path,
      hint: 'Name the folder that holds an adapter, or add "peft_type", such as "LORA".',
    });
  const known = PEFT_TYPES.find((type) => type === found);
  if (known) return known;
  const [near] = typeof found === "string" ? nearest(found, PEFT_TYPES, 1) : [];
  throw new StrutError("peft-config", `${path} has peft_type ${JSON.stringify(found)}, which is no method of PEFT that strut knows.`, {
    path,
    hint: near ? `Did you mean ${JSON.stringify(near)}?` : "strut knows the methods of PEFT 0.21.",
  });
}

function wrongValue(issue: z.core.$ZodIssue, raw: Readonly<Record<string, unknown>>, path: string): StrutError {
  const key = String(issue.path[0]);
  const shown = JSON.stringify(raw[key])?.slice(0, 80);
  const where = issue.path.join(".");
  const why = issue.code === "invalid_union" ? "which is none of the forms that PEFT writes" : issue.message.toLowerCase();
  return new StrutError("peft-config", `${path} has ${where} ${shown}: ${why}.`, {
    path,
    hint: `Mend ${key} in the file; without the key, PEFT's default is taken.`,
  });
}

/** The keys of a LoRA's adapter_config.json. */
export const loraKeys: readonly string[] = Object.keys(lora.shape);
const FLOATS = new Set(["lora_dropout", "rho", "tau"]);

/**
 * The text of an adapter_config.json as PEFT writes it: keys sorted, two spaces, ASCII, no newline at the end. One thing
 * is not kept: a whole number that Python held as a float (`"lora_alpha": 6.0`) is written without its ".0".
 */
export function peftConfigText(config: PeftConfig | LoraPeftConfig): string {
  const { raw, ...typed } = config;
  const given: Record<string, unknown> = typed;
  const keys = isLora(config) ? loraKeys : Object.keys(common.shape).filter((key) => key in raw || (given[key] !== null && key !== "peft_version"));
  const known = Object.fromEntries(keys.map((key) => [key, given[key]]));
  return pythonJson({ ...raw, ...known, peft_type: config.peft_type, inference_mode: true }, "", "\n");
}

function pythonJson(value: unknown, key: string, newline: string): string {
  const inner = `${newline}  `;
  const wrapped = (open: string, items: readonly string[], close: string): string =>
    items.length === 0 ? open + close : `${open}${inner}${items.join(`,${inner}`)}${newline}${close}`;
  if (typeof value === "number") return pythonNumber(value, FLOATS.has(key));
  if (typeof value === "string") return pythonString(value);
  if (Array.isArray(value))
    return wrapped(
      "[",
      value.map((item) => pythonJson(item, key, inner)),
      "]",
    );
  if (typeof value !== "object" || value === null) return JSON.stringify(value ?? null);
  const entries = Object.entries(value)
    .filter(([, item]) => item !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1));
  return wrapped(
    "{",
    entries.map(([name, item]) => `${pythonString(name)}: ${pythonJson(item, name, inner)}`),
    "}",
  );
}

const pythonString = (text: string): string => JSON.stringify(text).replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

function pythonNumber(value: number, isFloat: boolean): string {
  if (!Number.isFinite(value))
    throw new StrutError("peft-config", `The config holds the number ${value}, which JSON cannot say.`, { hint: "Give a finite number." });
  if (Number.isSafeInteger(value)) return `${value === 0 ? 0 : value}${isFloat ? ".0" : ""}`;
  const [digits, power] = value.toExponential().split("e") as [string, string];
  const exponent = Number(power);
  if (exponent >= -4 && exponent < 16) return String(value);
  return `${digits}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
}
