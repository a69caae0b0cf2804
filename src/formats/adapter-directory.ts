import { z } from "zod";
import { StrutError } from "../errors.ts";
import { fileError, writeAtomically, writeFolderAtomically } from "./files.ts";
import { readJsonObject } from "./huggingface.ts";
import type { PeftConfig } from "./peft-config.ts";
import { fillPeftFolder, openPeftDirectory } from "./peft-directory.ts";
import type { SafetensorsFile } from "./safetensors.ts";
import { openSafetensorsFile } from "./safetensors-folder.ts";
import type { TensorToWrite } from "./safetensors-write.ts";
import { files, paths } from "./system.ts";

const { join } = paths;
const OWN = "strut.json";
const PEFT = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";

const record = z.record(z.string(), z.unknown());
const ownConfig = z.object({
  format: z.literal("strut-adapter"),
  version: z.literal(1),
  method: z.string(),
  options: record,
  /** Options of modules that differ. */
  site_options: z.record(z.string(), record).default({}),
  /** Of the initial values: what is not stored is made again from it. */
  seed: z.int().default(0),
  targets: z.array(z.string()),
  /** PEFT's names: bias, modules_to_save, trainable_token_indices … */
  targeting: record.default({}),
});

/** strut.json: an adapter of a method that PEFT does not know, or more than its config can say. */
export type OwnConfig = z.output<typeof ownConfig>;

/** An adapter's folder with its tensors open: strut.json if it has one, else PEFT's adapter_config.json. */
export interface AdapterDirectory {
  readonly path: string;
  readonly own?: OwnConfig;
  readonly peft?: PeftConfig;
  readonly weights: SafetensorsFile;
  readonly close: () => Promise<void>;
}

/** Opens an adapter's folder, ours or PEFT's. */
export async function openAdapterDirectory(folder: string): Promise<AdapterDirectory> {
  const names = await files.readdir(folder).catch(() => [] as string[]);
  if (!names.includes(OWN)) {
    const { config, ...rest } = await openPeftDirectory(folder);
    return { ...rest, peft: config };
  }
  const path = join(folder, OWN);
  const parsed = ownConfig.safeParse(await readJsonObject(path, ""));
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    throw new StrutError("adapter-config", `${path} is not the config of an adapter: ${issue.path.join(".") || "it"}: ${issue.message}`, {
      path,
      hint: "Save the adapter again, or take the file from where it was saved.",
    });
  }
  const weights = await openSafetensorsFile(join(folder, WEIGHTS));
  return { path: folder, own: parsed.data, weights, close: () => weights.close() };
}

export interface AdapterContents {
  readonly peft?: PeftConfig;
  readonly own?: OwnConfig;
  /** Under PEFT's keys, see `peftKey`. */
  readonly tensors: Iterable<TensorToWrite>;
}

/**
 * Writes adapters by name, whole or not at all: "default" into the folder itself and the others into subfolders of their names, as
 * PEFT does; a single one always into the folder itself.
 */
export const writeAdapterDirectory = (folder: string, adapters: ReadonlyMap<string, AdapterContents>, options: { overwrite?: boolean } = {}): Promise<void> =>
  writeFolderAtomically(
    folder,
    async (temporary) => {
      for (const [name, { peft, own, tensors }] of adapters) {
        const isInside = adapters.size === 1 || name === "default";
        if (!isInside && /^\.*$|[/\\:]/.test(name))
          throw new StrutError("adapter", `the adapter ${JSON.stringify(name)} cannot be saved beside others: its name would not be one of a folder`, {
            hint: "Give adapters names without slashes and colons.",
          });
        const at = isInside ? temporary : join(temporary, name);
        if (at !== temporary) await files.mkdir(at, { recursive: true });
        await fillPeftFolder(at, { tensors, ...(peft ? { config: peft } : {}) });
        if (own) await writeAtomically(join(at, OWN), `${JSON.stringify(own, null, 2)}\n`);
      }
    },
    options,
  );

/** The adapters that stand in a folder, by name: "default" in the folder itself, others in subfolders. */
export async function adaptersIn(folder: string): Promise<Map<string, string>> {
  const holds = async (path: string): Promise<boolean> => (await files.readdir(path).catch(() => [] as string[])).some((name) => name === OWN || name === PEFT);
  const names = await files.readdir(folder).catch((cause: unknown) => {
    throw fileError(cause, folder, "read");
  });
  const found = new Map<string, string>((await holds(folder)) ? [["default", folder]] : []);
  for (const name of [...names].sort()) if (await holds(join(folder, name))) found.set(name, join(folder, name));
  return found;
}
