import { StrutError } from "../errors.ts";
import { type LibraryTokenizer, repair } from "./tokenizer-repair.ts";

/** Text to token ids and back, as the `tokenizers` library of Hugging Face does it from the same tokenizer.json. */
export interface Tokenizer {
  /** Token ids of a text; with `special` (the default) those of the template too, such as the one that begins a text. */
  encode(text: string, options?: { special?: boolean }): number[];
  /** The text of token ids; `skipSpecial` leaves special tokens out and defaults to false. */
  decode(ids: readonly number[], options?: { skipSpecial?: boolean }): string;
  /** The token of an id, as the vocabulary spells it. */
  token(id: number): string | undefined;
  /** One more than the largest id. */
  readonly vocabularySize: number;
  readonly bos: number | undefined;
  readonly eos: number | undefined;
}

/** Reads tokenizer.json, and tokenizer_config.json where there is one, from a model's folder. */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  const { readJsonObject } = await import("./huggingface.ts");
  const path = `${folder}/tokenizer.json`;
  const definition = await readJsonObject(
    path,
    "A folder whose tokenizer is only tokenizer.model or vocab.json needs converting: save it with `AutoTokenizer.from_pretrained(…).save_pretrained(…)` in Python.",
  );
  const config = await readJsonObject(`${folder}/tokenizer_config.json`, "", { optional: true });
  return createTokenizer(definition, config ?? {}, path);
}

/** Makes a tokenizer from the parsed contents of tokenizer.json and tokenizer_config.json; `path` stands in messages. */
export async function createTokenizer(definition: object, config: Record<string, unknown>, path = "tokenizer.json"): Promise<Tokenizer> {
  const { Tokenizer: HuggingFaceTokenizer } = await import("@huggingface/tokenizers");
  let inner: LibraryTokenizer;
  try {
    inner = new HuggingFaceTokenizer({ added_tokens: [], ...definition }, config);
    repair(inner);
  } catch (cause) {
    throw new StrutError("tokenizer", `${path} describes a tokenizer that cannot be used: ${cause instanceof Error ? cause.message : String(cause)}`, {
      path,
      hint: "Expected a tokenizer.json as the Hugging Face tokenizers library writes it.",
      cause,
    });
  }
  const clean = config["clean_up_tokenization_spaces"] === true;
  const vocabulary = inner.model.vocab;
  const idOf = (key: string): number | undefined => {
    const value = config[key];
    const token = typeof value === "object" && value !== null && "content" in value ? value.content : value;
    return typeof token === "string" ? inner.token_to_id(token) : undefined;
  };
  return {
    encode: (text, { special = true } = {}) => inner.encode(text, { add_special_tokens: special }).ids,
    decode(ids, { skipSpecial = false } = {}) {
      // the library spells an unknown id "<unk>", Hugging Face leaves it out
      const known = ids.filter((id) => vocabulary[id] !== undefined);
      return known.length === 0 ? "" : inner.decode(known, { skip_special_tokens: skipSpecial, clean_up_tokenization_spaces: clean });
    },
    token: (id) => vocabulary[id],
    vocabularySize: vocabulary.length,
    bos: idOf("bos_token"),
    eos: idOf("eos_token"),
  };
}

/** Throws unless every id that the tokenizer can produce has a row in a model's vocabulary. */
export function checkVocabulary(tokenizer: Tokenizer, vocabularySize: number): void {
  const beyond: string[] = [];
  let count = 0;
  for (let id = vocabularySize; id < tokenizer.vocabularySize; id++) {
    const token = tokenizer.token(id);
    if (token === undefined) continue;
    count++;
    if (beyond.length < 3) beyond.push(`${JSON.stringify(token)} is ${id}`);
  }
  if (count === 0) return;
  throw new StrutError(
    "tokenizer",
    `The model has ${vocabularySize} rows in its vocabulary, but ${count} of the tokenizer's ids lie beyond: ${beyond.join(", ")}${count > beyond.length ? ", …" : ""}.`,
    { hint: "Use the tokenizer that belongs to this model, or enlarge its embedding." },
  );
}
