import { StrutError } from "../errors.ts";
import { fileError, writeAtomically, writeFolderAtomically } from "./files.ts";
import { readJsonObject } from "./huggingface.ts";
import { type LoraPeftConfig, type PeftConfig, parsePeftConfig, peftConfigText } from "./peft-config.ts";
import type { SafetensorsFile } from "./safetensors.ts";
import { openSafetensorsFile } from "./safetensors-folder.ts";
import { type LayoutOptions, type TensorToWrite, writeSafetensors } from "./safetensors-write.ts";
import { files, paths } from "./system.ts";

const { join } = paths;
const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";
const PICKLE = "adapter_model.bin";

/** An adapter's folder, its config read and its tensors open. */
export interface PeftDirectory {
  readonly path: string;
  readonly config: PeftConfig;
  readonly weights: SafetensorsFile;
  readonly close: () => Promise<void>;
}

/** Reads adapter_config.json of an adapter's folder. */
export async function readPeftConfig(folder: string): Promise<PeftConfig> {
  const path = join(folder, CONFIG);
  return parsePeftConfig(await readJsonObject(path, "Name the folder that PEFT saved the adapter into."), path);
}

/** Writes adapter_config.json into an existing folder, whole or not at all. */
export async function writePeftConfig(folder: string, config: PeftConfig | LoraPeftConfig): Promise<void> {
  await writeAtomically(join(folder, CONFIG), peftConfigText(config));
}

/**
 * Opens an adapter's folder as PEFT saves it: adapter_config.json and adapter_model.safetensors. A pickle is never read.
 *
 * @example
 * const adapter = await openPeftDirectory("my-adapter");
 * console.log(adapter.config.peft_type, adapter.weights.entries.size);
 * await adapter.close();
 */
export async function openPeftDirectory(folder: string): Promise<PeftDirectory> {
  const names = await files.readdir(folder).catch((cause: unknown) => {
    throw fileError(cause, folder, "read");
  });
  if (!names.includes(CONFIG)) throw await noAdapter(folder, names);
  const config = await readPeftConfig(folder);
  if (!names.includes(WEIGHTS)) throw noWeights(folder, names);
  const weights = await openSafetensorsFile(join(folder, WEIGHTS));
  return { path: folder, config, weights, close: () => weights.close() };
}

async function noAdapter(folder: string, names: readonly string[]): Promise<StrutError> {
  const named = await namedAdapters(folder, names);
  const hint =
    named.length > 0
      ? `Its subfolders hold the adapters ${named.join(", ")}: name one of them, such as ${join(folder, named[0]!)}.`
      : names.includes("config.json")
        ? "It is a model's folder: give it as the model, and name the folder of an adapter here."
        : "Name the folder that PEFT saved the adapter into.";
  return new StrutError("files", `The folder ${folder} has no ${CONFIG}, so it holds no adapter.`, { path: folder, hint });
}

async function namedAdapters(folder: string, names: readonly string[]): Promise<string[]> {
  const isAdapter = (name: string): Promise<boolean> =>
    files.stat(join(folder, name, CONFIG)).then(
      () => true,
      () => false,
    );
  const found = await Promise.all(names.map(async (name) => ((await isAdapter(name)) ? [name] : [])));
  return found.flat().sort();
}

function noWeights(folder: string, names: readonly string[]): StrutError {
  if (names.includes(PICKLE))
    return new StrutError("pickle", `The folder ${folder} holds its adapter only as a pickle (${PICKLE}), which could run any program and is never opened.`, {
      path: join(folder, PICKLE),
      hint: `Convert it where you trust it, in Python: \`safetensors.torch.save_file(torch.load("${PICKLE}", weights_only=True), "${WEIGHTS}", {"format": "pt"})\`.`,
    });
  return new StrutError("files", `The folder ${folder} has ${CONFIG} but no ${WEIGHTS}.`, {
    path: join(folder, WEIGHTS),
    hint: "Copy or download the adapter's weights into the folder too.",
  });
}

export interface PeftContents {
  readonly config: PeftConfig | LoraPeftConfig;
  /** Under PEFT's keys, see `peftKey`. */
  readonly tensors: Iterable<TensorToWrite>;
  /** The file these tensors were read from; unchanged names and shapes keep its header, so that it is written byte-equal. */
  readonly template?: LayoutOptions["template"];
}

/**
 * Writes an adapter's folder as PEFT does, whole or not at all. A folder that already holds something is refused, or
 * replaced as a whole with `overwrite`. PEFT puts an adapter that is not named "default" into a subfolder of its name.
 */
export const writePeftDirectory = (folder: string, contents: PeftContents, options: { overwrite?: boolean } = {}): Promise<void> =>
  writeFolderAtomically(folder, (temporary) => fillPeftFolder(temporary, contents), options);

/** Writes an adapter's tensors, and its config if PEFT has one for it, into a folder that is there. */
export async function fillPeftFolder(
  folder: string,
  { config, tensors, template }: Omit<PeftContents, "config"> & Partial<Pick<PeftContents, "config">>,
): Promise<void> {
  const metadata = { format: "pt" };
  await writeSafetensors(join(folder, WEIGHTS), tensors, { metadata, ...(template ? { template } : {}) });
  if (config) await writePeftConfig(folder, config);
}
