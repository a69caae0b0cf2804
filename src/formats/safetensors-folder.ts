import { StrutError } from "../errors.ts";
import { type WriteOptions, fileError, fileSource, readText, writeAtomically } from "./files.ts";
import { type SafetensorsFile, type TensorEntry, openSafetensors } from "./safetensors.ts";
import { byteLength, findEntry, refusal } from "./safetensors-header.ts";
import { JsonScanner } from "./safetensors-json.ts";
import { type TensorToWrite, writeSafetensors } from "./safetensors-write.ts";
import { files, paths } from "./system.ts";

const { basename, dirname, join } = paths;
const indexName = "model.safetensors.index.json";

/** The weights of a model's folder as one file, whatever the number of shards. */
export interface WeightFolder {
  readonly path: string;
  readonly entries: ReadonlyMap<string, TensorEntry>;
  /** The files behind it, in the order of their names. */
  readonly files: readonly SafetensorsFile[];
  readonly metadata: Readonly<Record<string, string>>;
  read(tensor: string): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** Opens one safetensors file by its path. */
export async function openSafetensorsFile(path: string): Promise<SafetensorsFile> {
  const source = await fileSource(path);
  try {
    return await openSafetensors(source, path);
  } catch (error) {
    await source.close();
    throw error;
  }
}

/**
 * Opens the weights of a model: its folder with model.safetensors, or with model.safetensors.index.json and the shards that it
 * names; or one safetensors file or index by its own path. Pickles are never read.
 */
export async function openWeights(path: string): Promise<WeightFolder> {
  const status = await files.stat(path).catch((cause: unknown) => {
    throw fileError(cause, path, "read");
  });
  if (!status.isDirectory()) return path.endsWith(".index.json") ? openShards(path) : single(path, path);
  const names = await files.readdir(path);
  if (names.includes("model.safetensors")) return single(path, join(path, "model.safetensors"));
  if (names.includes(indexName)) return openShards(join(path, indexName));
  throw withoutWeights(path, names);
}

function withoutWeights(path: string, names: string[]): StrutError {
  const details = (hint: string): { path: string; hint: string } => ({ path, hint });
  const pickle = names.find((name) => /\.(bin|pt|pth|ckpt)$/.test(name));
  if (pickle !== undefined)
    return new StrutError(
      "pickle",
      `The folder ${path} holds its weights only as a pickle (${pickle}), which could run any program and is never opened.`,
      details("Convert it where you trust it, in Python: `AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)`."),
    );
  const others = names.filter((name) => name.endsWith(".safetensors")).sort();
  const adapter = others.includes("adapter_model.safetensors");
  return new StrutError(
    "files",
    `The folder ${path} has neither model.safetensors nor ${indexName}.`,
    details(
      adapter
        ? "It is an adapter's folder: give it as the adapter, and its base model as the model."
        : others.length > 0
          ? `It has ${others.slice(0, 3).join(", ")}: name that file itself.`
          : "Name the folder that holds a model's config.json and its weights.",
    ),
  );
}

async function single(path: string, file: string): Promise<WeightFolder> {
  const opened = await openSafetensorsFile(file);
  return { path, entries: opened.entries, files: [opened], metadata: opened.metadata, read: (tensor) => opened.read(tensor), close: () => opened.close() };
}

async function openShards(indexPath: string): Promise<WeightFolder> {
  const folder = dirname(indexPath);
  const map = parseIndex(await readText(indexPath), indexPath);
  const files: SafetensorsFile[] = [];
  try {
    for (const shard of [...new Set(map.values())].sort()) files.push(await openShard(join(folder, shard), indexPath));
    const entries = joinEntries(map, files, indexPath);
    const byName = new Map(files.map((file) => [basename(file.name), file]));
    const fileOf = (tensor: string): SafetensorsFile => {
      findEntry(entries, tensor, folder);
      return byName.get(map.get(tensor)!)!;
    };
    return {
      path: folder,
      entries,
      files,
      metadata: files[0]?.metadata ?? {},
      read: async (tensor) => fileOf(tensor).read(tensor),
      close: async () => void (await Promise.all(files.map((file) => file.close()))),
    };
  } catch (error) {
    await Promise.all(files.map((file) => file.close()));
    throw error;
  }
}

async function openShard(path: string, indexPath: string): Promise<SafetensorsFile> {
  try {
    return await openSafetensorsFile(path);
  } catch (cause) {
    if (cause instanceof StrutError && (cause.cause as NodeJS.ErrnoException | undefined)?.code === "ENOENT")
      throw refusal(indexPath, `it names the shard ${basename(path)}, which is not in the folder`, "Download the missing shard.", cause);
    throw cause;
  }
}

/** Reads model.safetensors.index.json: tensor name → file beside the index. Exported for its tests. */
export function parseIndex(text: string, path: string): Map<string, string> {
  const fail = (problem: string): never => {
    throw refusal(path, problem, "The index is damaged; download it again.");
  };
  const scanner = new JsonScanner(text, (problem) => fail(`the index cannot be read: ${problem}`));
  let map: Map<string, string> | undefined;
  scanner.object("the index", (key) => {
    if (key !== "weight_map") return scanner.skip(`${JSON.stringify(key)} of the index`);
    const found = new Map<string, string>();
    scanner.object("weight_map", (tensor) => {
      const file = scanner.string(`the file of ${JSON.stringify(tensor)}`);
      if (/[/\\\0:]/.test(file) || file.includes("..") || !file.endsWith(".safetensors"))
        fail(`tensor ${JSON.stringify(tensor)} lies in ${JSON.stringify(file)}, expected the name of a safetensors file beside the index`);
      found.set(tensor, file);
    });
    map = found;
  });
  scanner.end();
  if (map === undefined) return fail("the index has no weight_map");
  if (map.size === 0) fail("the weight_map of the index is empty");
  return map;
}

/** One map over all shards, if index and shards agree. */
function joinEntries(map: ReadonlyMap<string, string>, files: readonly SafetensorsFile[], path: string): Map<string, TensorEntry> {
  const entries = new Map<string, TensorEntry>();
  const problems: string[] = [];
  const lists: Record<"twice" | "unlisted" | "elsewhere", string[]> = { twice: [], unlisted: [], elsewhere: [] };
  const seen = new Map<string, string>();
  for (const file of files) {
    const shard = basename(file.name);
    for (const [name, entry] of file.entries) {
      const earlier = seen.get(name);
      if (earlier !== undefined) lists.twice.push(`${name} (${earlier} and ${shard})`);
      else if (!map.has(name)) lists.unlisted.push(`${name} (${shard})`);
      else if (map.get(name) !== shard) lists.elsewhere.push(`${name} (index: ${map.get(name)}, found: ${shard})`);
      seen.set(name, shard);
      entries.set(name, entry);
    }
  }
  const missing = [...map].filter(([name]) => !seen.has(name)).map(([name, shard]) => `${name} (${shard})`);
  const say = (what: string, names: string[]): void => {
    if (names.length > 0) problems.push(`${names.length} ${what}: ${names.slice(0, 5).join(", ")}${names.length > 5 ? ", …" : ""}`);
  };
  say("missing from the shard named for them", missing);
  say("in a shard but not in the index", lists.unlisted);
  say("in another shard than the index says", lists.elsewhere);
  say("in two shards", lists.twice);
  if (problems.length > 0)
    throw refusal(path, `index and shards disagree on tensors\n  ${problems.join("\n  ")}`, "Download index and shards again, from the same place.");
  return entries;
}

export interface ShardOptions extends WriteOptions {
  /** Bytes of tensors that one file may hold; a larger tensor gets a file of its own. Defaults to 5·10⁹. */
  maxShardBytes?: number;
  /** Defaults to `{ format: "pt" }`, which transformers asks for. */
  metadata?: Readonly<Record<string, string>>;
}

/**
 * Writes weights into an existing folder as Hugging Face lays them out: model.safetensors if they fit into one shard, otherwise
 * model-00001-of-0000N.safetensors … and their index. Returns the names of the files written.
 */
export async function writeSharded(
  folder: string,
  tensors: Iterable<TensorToWrite> | AsyncIterable<TensorToWrite>,
  { maxShardBytes = 5e9, metadata = { format: "pt" }, ...options }: ShardOptions = {},
): Promise<string[]> {
  const { shards, total } = await intoShards(folder, tensors, maxShardBytes);
  if (shards.length <= 1) {
    await writeSafetensors(join(folder, "model.safetensors"), shards[0] ?? [], { metadata, ...options });
    return ["model.safetensors"];
  }
  const map: [string, string][] = [];
  const names: string[] = [];
  const five = (value: number): string => String(value).padStart(5, "0");
  for (const [i, shard] of shards.entries()) {
    const name = `model-${five(i + 1)}-of-${five(shards.length)}.safetensors`;
    await writeSafetensors(join(folder, name), shard, { metadata, ...options });
    names.push(name);
    map.push(...shard.map((tensor): [string, string] => [tensor.name, name]));
  }
  map.sort(([a], [b]) => (a < b ? -1 : 1));
  const index = { metadata: { total_size: total }, weight_map: Object.fromEntries(map) };
  await writeAtomically(join(folder, indexName), `${JSON.stringify(index, null, 2)}\n`, options);
  return [...names, indexName];
}

async function intoShards(
  folder: string,
  tensors: Iterable<TensorToWrite> | AsyncIterable<TensorToWrite>,
  most: number,
): Promise<{ shards: TensorToWrite[][]; total: number }> {
  const shards: TensorToWrite[][] = [];
  let shard: TensorToWrite[] = [];
  let filled = 0;
  let total = 0;
  const seen = new Set<string>();
  for await (const tensor of tensors) {
    if (seen.has(tensor.name)) throw refusal(folder, `two tensors are named ${JSON.stringify(tensor.name)}`, "Give each tensor a name of its own.");
    seen.add(tensor.name);
    const size = byteLength(tensor.dtype, tensor.shape, (problem) => {
      throw refusal(folder, `tensor ${JSON.stringify(tensor.name)}: ${problem}`, "Write it in another dtype or shape.");
    });
    total += size;
    if (size > most) {
      shards.push([tensor]);
      continue;
    }
    if (filled + size > most) {
      shards.push(shard);
      shard = [];
      filled = 0;
    }
    shard.push(tensor);
    filled += size;
  }
  if (shard.length > 0) shards.push(shard);
  return { shards, total };
}
