import { readFile } from "node:fs/promises";
import { loadAdapter } from "../adapters/index.ts";
import { adapters } from "../catalog.ts";
import { StrutError } from "../errors.ts";
import { fileError } from "../formats/files.ts";
import { checkVocabulary, loadTokenizer, type Tokenizer } from "../formats/tokenizer.ts";
import { languageDimensions, loadModel, type Model } from "../models/index.ts";

/** A model and the tokenizer that belongs to it. */
export interface Opened {
  readonly model: Model;
  readonly tokenizer: Tokenizer;
}

/** Loads a model with its tokenizer, and an adapter on it if one is named. Text would be nonsense if the two did not fit. */
export async function openModel(folder: string, { adapter }: { adapter?: string | undefined } = {}): Promise<Opened> {
  const base = await loadModel(folder);
  const tokenizer = await loadTokenizer(folder);
  checkVocabulary(tokenizer, languageDimensions(base).vocabularySize);
  return { model: adapter === undefined ? base : await openAdapter(base, adapter), tokenizer };
}

/** Puts the adapter of a PEFT directory on a model, whatever method of the catalog made it. */
export const openAdapter = async (model: Model, folder: string): Promise<Model> => loadAdapter(model, folder, { methods: await adapters(), trainable: false });

/** Reads a text file as one string. Bytes that are no UTF-8 are refused, since they would silently become other characters. */
export async function openText(path: string): Promise<string> {
  const bytes = await readFile(path).catch((cause: unknown) => {
    throw fileError(cause, path, "read");
  });
  const refuse = (why: string, cause?: unknown): never => {
    throw new StrutError("data", `${path} is no text: ${why}`, { path, hint: "Give a plain text file in UTF-8.", cause });
  };
  if (bytes.includes(0)) refuse("it holds zero bytes");
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    return refuse("it is not valid UTF-8", cause);
  }
}
