import { readFile } from "node:fs/promises";
import { promisify } from "node:util";
import { gunzip } from "node:zlib";
import { loadAdapter } from "../adapters/index.ts";
import { adapters } from "../catalog.ts";
import { StrutError } from "../errors.ts";
import { fileError } from "../formats/files.ts";
import { readConfig, readJsonObject } from "../formats/huggingface.ts";
import { checkVocabulary, loadTokenizer, type Tokenizer } from "../formats/tokenizer.ts";
import { languageDimensions, loadModel, randomModel, type Model } from "../models/index.ts";
import { Rng } from "../tensor/index.ts";

/** A model and the tokenizer that belongs to it. */
export interface Opened {
  readonly model: Model;
  readonly tokenizer: Tokenizer;
}

/** Loads a model with its tokenizer, and an adapter on it if one is named. Text would be nonsense if the two did not fit. */
export async function openModel(
  folder: string,
  { adapter, tokenizer: tokenizerFolder = folder }: { adapter?: string | undefined; tokenizer?: string | undefined } = {},
): Promise<Opened> {
  const base = await loadModel(folder);
  const tokenizer = await loadTokenizer(tokenizerFolder);
  checkVocabulary(tokenizer, languageDimensions(base).vocabularySize);
  return { model: adapter === undefined ? base : await openAdapter(base, adapter), tokenizer };
}

/**
 * A model of a config.json (or of the one in a folder) with fresh weights: matrices from N(0, initializer_range²), norms 1, biases
 * 0; output projections of residual blocks of GPT-2 are smaller by √(2·layers), as in transformers.
 */
export async function freshModel(config: string, tokenizerFolder: string, seed: number): Promise<Opened> {
  const isFile = config.endsWith(".json");
  const read = isFile ? await readJsonObject(config, "Name a config.json, or a folder that has one.") : await readConfig(config);
  const tokenizer = await loadTokenizer(tokenizerFolder);
  const std = typeof read["initializer_range"] === "number" ? read["initializer_range"] : 0.02;
  const rng = new Rng(seed).fork("fresh weights");
  const depth = Number(read["n_layer"]);
  const drawn = randomModel(read, (name, shape) => rng.fork(name).normal(shape, name.endsWith("c_proj.weight") ? std / Math.sqrt(2 * depth) : std));
  checkVocabulary(tokenizer, languageDimensions(drawn).vocabularySize);
  return { model: { ...drawn, folder: tokenizerFolder }, tokenizer };
}

/** Puts the adapter of a PEFT directory on a model, whatever method of the catalog made it. */
export const openAdapter = async (model: Model, folder: string): Promise<Model> => loadAdapter(model, folder, { methods: await adapters(), trainable: false });

/** Largest text, unpacked: what a string of the engine can hold. */
const LONGEST_TEXT = 2 ** 29 - 25;

/** Reads a text file, packed by gzip or not, as one string. Bytes that are no UTF-8 are refused, since they would silently become other characters. */
export async function openText(path: string): Promise<string> {
  const stored = await readFile(path).catch((cause: unknown) => {
    throw fileError(cause, path, "read");
  });
  const refuse = (why: string, cause?: unknown): never => {
    throw new StrutError("data", `${path} is no text: ${why}`, { path, hint: "Give a plain text file in UTF-8.", cause });
  };
  let bytes: Uint8Array = stored;
  if (stored[0] === 0x1f && stored[1] === 0x8b)
    try {
      bytes = await promisify(gunzip)(stored, { maxOutputLength: LONGEST_TEXT });
    } catch (cause) {
      refuse(`it cannot be unpacked: ${(cause as Error).message}`, cause);
    }
  if (bytes.includes(0)) refuse("it holds zero bytes");
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    return refuse("it is not valid UTF-8", cause);
  }
}
