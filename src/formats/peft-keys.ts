import { StrutError } from "../errors.ts";

const PREFIX = "base_model.model.";

/**
 * Tensors of a LoRA behind the module's path, exactly as PEFT writes them: entries of a ParameterDict have no ".weight",
 * modules have one.
 */
export const LORA_PARTS = ["lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B"] as const;
export type LoraPart = (typeof LORA_PARTS)[number];

/**
 * Tensors that every method's file may hold: the layer under an adapter (`base_layer`), the rows of trained tokens (the
 * rows themselves, whatever "delta" says), and whole parameters (`modules_to_save`, `bias: "all"`).
 */
export const SHARED_PARTS = ["base_layer.weight", "base_layer.bias", "token_adapter.trainable_tokens_delta", "weight", "bias"] as const;
export type SharedPart = (typeof SHARED_PARTS)[number];

/** One tensor of an adapter file. */
export interface PeftKey<P extends string = LoraPart | SharedPart> {
  /** The key as it stands in the file. */
  readonly key: string;
  /** The module's path in the base model, without PEFT's prefix. */
  readonly module: string;
  readonly part: P;
  /** The adapter's name, where the file still carries one. */
  readonly adapter?: string;
}

export interface ParsedKeys<P extends string = LoraPart | SharedPart> {
  readonly keys: readonly PeftKey<P>[];
  /** Keys that are none of the known parts. */
  readonly unknown: readonly string[];
}

/** A part behind a module's path; LoRA-XS's name lost its dot when PEFT took the adapter's name out of it. */
const joined = (part: string): string => (part.startsWith("_") ? part : `.${part}`);

/** Segments that belong to some method's adapter, so that no plain weight may sit under them. */
const METHOD_SEGMENT = /^(lora|vera|hada|lokr|ia3|boft|oft|hra|hira|miss|bone|randlora|fourierft|vblora|adalora|road|shira|c3a|delora|osf|waveft)_/;

/**
 * Sorts the keys of an adapter file by module and part. The prefix `base_model.model.` may be missing, and an adapter's
 * name may stand last or last but one, as other tools leave it. `parts` are those of the method, as it writes them.
 *
 * @example
 * parsePeftKeys(["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]).keys[0]!.module;
 */
export function parsePeftKeys(keys: Iterable<string>): ParsedKeys;
export function parsePeftKeys<const P extends string>(keys: Iterable<string>, parts: readonly P[]): ParsedKeys<P | SharedPart>;
export function parsePeftKeys(keys: Iterable<string>, parts: readonly string[] = LORA_PARTS): ParsedKeys<string> {
  const found = new Map<string, PeftKey<string>>();
  const unknown: string[] = [];
  for (const key of keys) {
    const parsed = parseKey(key, parts);
    if (!parsed) {
      unknown.push(key);
      continue;
    }
    const identity = `${parsed.module}\n${parsed.part}`;
    const other = found.get(identity);
    if (other)
      throw new StrutError("peft-keys", `The adapter holds ${parsed.part} of ${parsed.module} twice: ${other.key} and ${key}.`, {
        path: key,
        hint: "The file mixes several adapters; save each of them into a folder of its own.",
      });
    found.set(identity, parsed);
  }
  return { keys: [...found.values()], unknown };
}

function parseKey(key: string, parts: readonly string[]): PeftKey<string> | undefined {
  const path = (key.startsWith(PREFIX) ? key.slice(PREFIX.length) : key).replace(/^_orig_mod\./, "");
  for (const { rest, adapter } of withoutAdapter(path)) {
    // A DoRA magnitude is ".weight" of a layer in memory; PEFT's own saving drops that word, other tools keep it.
    const part = parts.find((name) => rest.endsWith(joined(name))) ?? parts.find((name) => rest.endsWith(`.${name}.weight`));
    if (part) return { key, module: rest.slice(0, rest.lastIndexOf(joined(part))), part, ...adapter };
  }
  const tokens = /^(.+)\.token_adapter\.trainable_tokens_delta(?:\.([^.]+))?$/.exec(path);
  if (tokens) return whole(key, tokens[1]!, "token_adapter.trainable_tokens_delta", tokens[2]);
  const base = /^(.+)\.(base_layer\.(?:weight|bias))$/.exec(path);
  if (base) return whole(key, base[1]!, base[2]!, undefined);
  const plain = /^(.+?)(?:\.modules_to_save(?:\.([^.]+))?)?\.(weight|bias)$/.exec(path);
  return plain ? whole(key, plain[1]!, plain[3]!, plain[2]) : undefined;
}

function whole(key: string, module: string, part: string, adapter: string | undefined): PeftKey<string> | undefined {
  const segments = module.split(".");
  const isMethods = segments.some((segment) => METHOD_SEGMENT.test(segment)) || segments.includes("original_module");
  return isMethods ? undefined : { key, module, part, ...(adapter === undefined ? {} : { adapter }) };
}

/** The path as it is, then without its last segment but one, then without its last: where PEFT keeps an adapter's name. */
function withoutAdapter(path: string): { rest: string; adapter: { readonly adapter?: string } }[] {
  const segments = path.split(".");
  return [
    { rest: path, adapter: {} },
    ...[-2, -1].flatMap((at) => {
      const adapter = segments.at(at);
      return adapter === undefined ? [] : [{ rest: segments.toSpliced(at, 1).join("."), adapter: { adapter } }];
    }),
  ];
}

/**
 * The key under which PEFT stores a part of a module.
 *
 * @example
 * peftKey("model.layers.0.self_attn.q_proj", "lora_A.weight"); // "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
 */
export function peftKey<P extends string = LoraPart | SharedPart>(module: string, part: P): string {
  return `${PREFIX}${module}${joined(part)}`;
}

/** Refuses an adapter file that holds anything strut would not use, or that belongs to modules the model lacks. */
export function refuseStrayKeys({ keys, unknown }: ParsedKeys<string>, model: { readonly name: string; has(module: string): boolean }, path: string): void {
  const astray = keys.filter(({ module }) => !model.has(module)).map(({ key }) => key);
  const lines = [...difference("no part of this method", unknown), ...difference(`a module that ${model.name} does not have`, astray)];
  if (lines.length === 0) return;
  throw new StrutError("peft-keys", `${path} holds tensors that strut cannot place:\n${lines.join("\n")}`, {
    path,
    hint: astray.length > 0 ? "The adapter was made for another base model." : "Nothing was loaded; the file may come from a newer PEFT.",
  });
}

function difference(what: string, keys: readonly string[]): string[] {
  if (keys.length === 0) return [];
  const shown = keys.slice(0, 5).map((key) => `  + ${key}`);
  return [`${keys.length} × ${what}:`, ...shown, ...(keys.length > 5 ? [`    and ${keys.length - 5} more`] : [])];
}
