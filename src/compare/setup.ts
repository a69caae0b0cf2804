import { join } from "node:path";
import { StrutError } from "../errors.ts";
import { readText, writeAtomically } from "../formats/files.ts";
import type { Recipe } from "../recipe/schema.ts";
import { firstDifference } from "../training/recipe.ts";

/** What every method may store: a number of trainable parameters, or of bytes in its file. */
export interface Budget {
  readonly of: "parameters" | "bytes";
  readonly limit: number;
}

/** All that every run of a comparison shares. */
export interface Setup {
  /** Of strut. */
  readonly version: string;
  /** What computes, such as `native (avx512)`. */
  readonly backend: string;
  /** Model, text, targets and training; each run adds method, options, learning rate and seed. */
  readonly recipe: Recipe;
  /** Tells text and model from others under the same names. */
  readonly fingerprint: string;
  readonly budget: Budget;
}

const FILE = "setup.json";

export const readSetup = async (folder: string): Promise<Setup> => JSON.parse(await readText(join(folder, FILE))) as Setup;

/** Whether the folder holds this comparison already; one with another setup is refused. */
export async function holdsSetup(folder: string, setup: Setup): Promise<boolean> {
  const before = await readSetup(folder).catch((error: unknown) => {
    if (error instanceof StrutError) return undefined; // none there yet
    throw new StrutError("files", `${join(folder, FILE)} is no setup of a comparison`, {
      path: folder,
      hint: "Choose another folder with --out.",
      cause: error,
    });
  });
  if (before === undefined) return false;
  const change = firstDifference(before, JSON.parse(JSON.stringify(setup)));
  if (!change) return true;
  throw new StrutError("option", `${folder} holds a comparison with another setup: ${change.where} was ${change.before}, now it is ${change.now}`, {
    path: folder,
    hint: "Choose another folder with --out, or give the options it was started with; methods, rates and seeds may be added.",
  });
}

export const writeSetup = (folder: string, setup: Setup): Promise<void> => writeAtomically(join(folder, FILE), `${JSON.stringify(setup, null, 2)}\n`);
