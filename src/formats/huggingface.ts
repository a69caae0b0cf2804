import { StrutError, nearest } from "../errors.ts";
import { type WriteOptions, fileError, readText, writeAtomically } from "./files.ts";
import { files, paths } from "./system.ts";

const { join } = paths;
/** A parsed config: what strut does not know is kept and written back. */
export type Config = Record<string, unknown>;

/** Reads a JSON file that must hold an object. With `optional`, a file that is not there gives undefined. */
export async function readJsonObject(path: string, hint: string, options: { optional: true }): Promise<Config | undefined>;
export async function readJsonObject(path: string, hint: string, options?: { optional?: false }): Promise<Config>;
export async function readJsonObject(path: string, hint: string, { optional = false } = {}): Promise<Config | undefined> {
  if (!(await exists(path))) {
    if (optional) return undefined;
    const folder = join(path, "..");
    await checkFolder(folder);
    const name = path.slice(path.search(/[^/\\]*$/));
    const near = nearest(name, await files.readdir(folder), 1);
    throw new StrutError("files", `The folder ${folder} has no ${name}.`, {
      path,
      hint: `${near.length > 0 ? `It has ${near[0]}. ` : ""}${hint}`.trim() || "Check that this is the right folder.",
    });
  }
  const text = (await readText(path)).replace(/^\ufeff/, "");
  return parseJsonObject(text, path);
}

/** Parses JSON that must be an object; `path` stands in messages. */
export function parseJsonObject(text: string, path: string): Config {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new StrutError("config", `${path} is not valid JSON: ${(cause as Error).message}.`, { path, hint: "Mend the file, or download it again.", cause });
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Config;
  const found = value === null ? "null" : Array.isArray(value) ? "a list" : `a ${typeof value}`;
  throw new StrutError("config", `${path} holds ${found}, expected an object of settings.`, { path, hint: "Mend the file, or download it again." });
}

const exists = (path: string): Promise<boolean> =>
  files.stat(path).then(
    () => true,
    (cause: NodeJS.ErrnoException) => {
      if (cause.code === "ENOENT") return false;
      throw fileError(cause, path, "read");
    },
  );

/** Throws a sentence unless `folder` is a folder that exists. */
export async function checkFolder(folder: string): Promise<void> {
  try {
    if ((await files.stat(folder)).isDirectory()) return;
  } catch (cause) {
    throw fileError(cause, folder, "read");
  }
  throw new StrutError("files", `${folder} is a file, expected a model's folder.`, { path: folder, hint: "Name the folder that holds config.json." });
}

/** Reads config.json of a model's folder. */
export async function readConfig(folder: string): Promise<Config> {
  await checkFolder(folder);
  return readJsonObject(join(folder, "config.json"), "A model's folder holds config.json beside its weights.");
}

/** Reads generation_config.json, which not every model has. */
export const readGenerationConfig = (folder: string): Promise<Config | undefined> =>
  readJsonObject(join(folder, "generation_config.json"), "", { optional: true });

/** Writes config.json with its keys in the order given, as transformers lays it out. */
export async function writeConfig(folder: string, config: Config, options: WriteOptions = {}): Promise<void> {
  await writeAtomically(join(folder, "config.json"), `${JSON.stringify(config, null, 2)}\n`, options);
}

const companion =
  /^(generation_config\.json|tokenizer.*\.(json|model)|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|spiece\.model|sentencepiece.*\.model|chat_template.*|(pre)?processor_config\.json|LICENSE.*|NOTICE.*)$/i;

/** Names of the small files that belong to a model beside its config and weights: tokenizer, generation settings, licence. */
export async function companionFiles(folder: string): Promise<string[]> {
  await checkFolder(folder);
  const names = (await files.readdir(folder)).filter((name) => companion.test(name));
  const kinds = await Promise.all(names.map(async (name) => ({ name, file: (await files.stat(join(folder, name))).isFile() })));
  return kinds
    .filter(({ file }) => file)
    .map(({ name }) => name)
    .sort();
}

/** Copies the companion files from one model's folder to another. */
export async function copyCompanions(from: string, to: string): Promise<string[]> {
  const names = await companionFiles(from);
  try {
    for (const name of names) await files.copyFile(join(from, name), join(to, name));
  } catch (cause) {
    throw fileError(cause, to, "write");
  }
  return names;
}
