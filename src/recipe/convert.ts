import { copyFile, mkdir, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { StrutError } from "../errors.ts";
import { writeFolderAtomically } from "../formats/files.ts";
import { copyCompanions, readConfig, writeConfig } from "../formats/huggingface.ts";
import { openPeftDirectory } from "../formats/peft-directory.ts";
import { parsePeftKeys, peftKey } from "../formats/peft-keys.ts";
import type { FileDType, TensorEntry } from "../formats/safetensors.ts";
import { openWeights, writeSharded, type WeightFolder } from "../formats/safetensors-folder.ts";
import { writeSafetensors, type TensorToWrite } from "../formats/safetensors-write.ts";
import { fileDType, floatDType, withStoredDType } from "../models/stored.ts";
import { cast, fromBytes, noGrad, scope, start, toBytes } from "../tensor/index.ts";

export type StoredDType = "f32" | "bf16" | "f16";

export interface ConvertOptions {
  /** Of floating-point tensors; defaults to what they have. */
  dtype?: StoredDType;
  overwrite?: boolean;
  signal?: AbortSignal;
}

export interface Converted {
  readonly folder: string;
  readonly files: readonly string[];
  readonly tensors: number;
  /** Tensors whose dtype changed. */
  readonly converted: number;
  readonly bytes: number;
}

/** The stored dtype of a tensor after the conversion. */
const dtypeAfter = ({ dtype }: TensorEntry, wanted: StoredDType | undefined): FileDType => (wanted && floatDType(dtype) ? fileDType(wanted) : dtype);

interface Source {
  read(name: string): Promise<Uint8Array>;
}

/** A stored tensor under a new name and dtype, converted when its turn comes. */
function rewritten(source: Source, from: string, entry: TensorEntry, to: string, { dtype, signal }: ConvertOptions): TensorToWrite {
  const after = dtypeAfter(entry, dtype);
  return {
    name: to,
    dtype: after,
    shape: entry.shape,
    async bytes() {
      signal?.throwIfAborted();
      const bytes = await source.read(from);
      if (after === entry.dtype) return bytes;
      return noGrad(() => scope(() => toBytes(cast(throughF32(fromBytes(bytes, entry.shape, floatDType(entry.dtype)!), after), dtype!))));
    },
  };
}

/** f64 goes to the small types by way of f32, and they to each other, where no direct conversion exists. */
const throughF32 = (x: ReturnType<typeof fromBytes>, after: FileDType): ReturnType<typeof fromBytes> =>
  x.dtype !== "f32" && after !== "F32" ? cast(x, "f32") : x;

/**
 * Writes a model's folder (or one safetensors file) anew: another dtype, other shards. config.json follows the dtype, the
 * tokenizer and other companions are copied. What stays the same keeps its header text and order.
 */
export async function convertModel(from: string, out: string, options: ConvertOptions & { maxShardBytes?: number } = {}): Promise<Converted> {
  const isFolder = (await stat(from)).isDirectory();
  const config = isFolder ? await readConfig(from) : undefined;
  const weights = await openWeights(from);
  try {
    const changed = [...weights.entries.values()].filter((entry) => dtypeAfter(entry, options.dtype) !== entry.dtype).length;
    if (changed > 0) await start();
    let files: string[] = [];
    const fill = async (temporary: string): Promise<void> => {
      files = await writeWeights(weights, temporary, changed, options);
      if (!config) return;
      if (changed === 0) await copyFile(join(from, "config.json"), join(temporary, "config.json"));
      else await writeConfig(temporary, withStoredDType(config, options.dtype!));
      files.push("config.json", ...(await copyCompanions(from, temporary)));
    };
    await writeFolderAtomically(out, fill, { overwrite: options.overwrite ?? false });
    return { folder: out, files, tensors: weights.entries.size, converted: changed, bytes: await totalBytes(out, files) };
  } finally {
    await weights.close();
  }
}

/** Writes the weights in the files they came in unless dtype or sharding changes. */
async function writeWeights(weights: WeightFolder, folder: string, changed: number, options: ConvertOptions & { maxShardBytes?: number }): Promise<string[]> {
  const all = [...weights.entries].map(([name, entry]) => rewritten(weights, name, entry, name, options));
  const metadata = Object.keys(weights.metadata).length > 0 || changed === 0 ? weights.metadata : { format: "pt" };
  const total = [...weights.entries.values()].reduce((sum, { begin, end }) => sum + end - begin, 0);
  const [first] = weights.files;
  const fits = options.maxShardBytes === undefined || total <= options.maxShardBytes;
  if (weights.files.length === 1 && changed === 0 && fits) {
    await writeSafetensors(join(folder, "model.safetensors"), all, { metadata, template: first! });
    return ["model.safetensors"];
  }
  if (changed === 0 && options.maxShardBytes === undefined) return copyShards(weights, folder, options);
  return writeSharded(folder, all, { metadata, ...(options.maxShardBytes === undefined ? {} : { maxShardBytes: options.maxShardBytes }) });
}

async function copyShards(weights: WeightFolder, folder: string, options: ConvertOptions): Promise<string[]> {
  const index = "model.safetensors.index.json";
  const names: string[] = [];
  for (const file of weights.files) {
    const tensors = [...file.entries].map(([name, entry]) => rewritten(file, name, entry, name, options));
    names.push(basename(file.name));
    await writeSafetensors(join(folder, names.at(-1)!), tensors, { metadata: file.metadata, template: file });
  }
  await copyFile(join(dirname(weights.files[0]!.name), index), join(folder, index));
  return [...names, index];
}

async function totalBytes(folder: string, files: readonly string[]): Promise<number> {
  const sizes = await Promise.all(files.filter((name) => name.endsWith(".safetensors")).map((name) => stat(join(folder, name))));
  return sizes.reduce((sum, { size }) => sum + size, 0);
}

/** The key without any adapter's name, as PEFT saves it; keys of methods that are unknown here only lose `.default`. */
function plainKeys(keys: Iterable<string>): Map<string, string> {
  const { keys: known, unknown } = parsePeftKeys(keys);
  return new Map([
    ...known.map(({ key, module, part }): [string, string] => [key, peftKey(module, part)]),
    ...unknown.map((key): [string, string] => [key, key.replace(/\.default(?=\.|$)/, "")]),
  ]);
}

/**
 * Writes an adapter's folder anew: another dtype, keys without the adapter's name. An adapter with a name of its own goes
 * into a subfolder, where PEFT looks for it. The config is copied as it is.
 */
export async function convertAdapter(from: string, out: string, { name = "default", ...options }: ConvertOptions & { name?: string } = {}): Promise<Converted> {
  if (!/^[\w-]+$/.test(name))
    throw new StrutError("option", `an adapter cannot be named ${JSON.stringify(name)}`, { path: "adapter-name", hint: "Use letters, digits, _ and -." });
  const { weights, close } = await openPeftDirectory(from);
  try {
    const keys = plainKeys(weights.entries.keys());
    const entries = [...weights.entries];
    const changed = entries.filter(([, entry]) => dtypeAfter(entry, options.dtype) !== entry.dtype).length;
    if (changed > 0) await start();
    const tensors = entries.map(([key, entry]) => rewritten(weights, key, entry, keys.get(key)!, options));
    const inside = name === "default" ? "" : name;
    const files = ["adapter_model.safetensors", "adapter_config.json"].map((file) => join(inside, file));
    const fill = async (temporary: string): Promise<void> => {
      await mkdir(join(temporary, inside), { recursive: true });
      await writeSafetensors(join(temporary, files[0]!), tensors, { metadata: weights.metadata, template: weights });
      await copyFile(join(from, "adapter_config.json"), join(temporary, files[1]!));
      files.push(...(await copyCompanions(from, join(temporary, inside))).map((file) => join(inside, file)));
    };
    await writeFolderAtomically(out, fill, { overwrite: options.overwrite ?? false });
    return {
      folder: join(out, inside),
      files: files.map((file) => basename(file)),
      tensors: tensors.length,
      converted: changed,
      bytes: await totalBytes(out, files),
    };
  } finally {
    await close();
  }
}
