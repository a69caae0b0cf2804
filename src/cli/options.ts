import { type Command, InvalidArgumentError, Option } from "commander";
import type { z } from "zod";
import { refuseFilled as refuseFilledFolder } from "../formats/files.ts";

/** What an option holds, below its defaults and optionality. */
function innermost(schema: z.core.$ZodType): z.core.$ZodTypeDef & { readonly innerType?: z.core.$ZodType } {
  const { def } = schema._zod;
  const { innerType } = def as { innerType?: z.core.$ZodType };
  return innerType ? innermost(innerType) : def;
}

const kebab = (name: string): string => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

export function number(text: string): number {
  const value = text.trim() === "" ? Number.NaN : Number(text);
  if (Number.isFinite(value)) return value;
  throw new InvalidArgumentError("It must be a number.");
}

const powers: Record<string, number> = {
  "": 1,
  k: 1e3,
  kb: 1e3,
  m: 1e6,
  mb: 1e6,
  g: 1e9,
  gb: 1e9,
  tb: 1e12,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  tib: 2 ** 40,
};

/** Bytes of "5GB", "80k", "1GiB" or a plain number, as transformers reads them. */
export function byteSize(text: string): number {
  const [, digits, unit] = /^\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*$/i.exec(text) ?? [];
  const power = powers[unit?.toLowerCase() ?? "-"];
  const size = Number(digits) * (power ?? Number.NaN);
  if (size >= 1) return Math.floor(size);
  throw new InvalidArgumentError("It must be a size such as 5GB, 200MB or 1GiB.");
}

/** A whole number from `least` on. */
export const wholeFrom =
  (least: number) =>
  (text: string): number => {
    const value = number(text);
    if (Number.isSafeInteger(value) && value >= least) return value;
    throw new InvalidArgumentError(`It must be a whole number of at least ${least}.`);
  };

/**
 * Adds a command-line option for each option of a schema, in the words of its description. `flags` gives some of them
 * another spelling.
 */
export function schemaOptions(command: Command, schema: z.ZodObject, names: readonly string[], flags: Readonly<Record<string, string>> = {}): void {
  for (const name of names) {
    const field = schema.shape[name] as z.ZodType;
    const { type } = innermost(field);
    const value = { number: " <number>", string: " <text>", array: " <text...>" }[type as string] ?? "";
    const option = new Option(flags[name] ?? `--${kebab(name)}${value}`, field.description);
    if (type === "number") option.argParser(number);
    command.addOption(option);
  }
}

/** The options of a schema that were given, under the schema's names. */
export function givenOptions(
  options: Readonly<Record<string, unknown>>,
  names: readonly string[],
  renamed: Readonly<Record<string, string>> = {},
): Record<string, unknown> {
  return Object.fromEntries(names.flatMap((name) => (options[renamed[name] ?? name] === undefined ? [] : [[name, options[renamed[name] ?? name]]])));
}

export const jsonOption = (): Option => new Option("--json", "print JSON instead of text");

export const outOption = (what: string): Option => new Option("--out <folder>", what).makeOptionMandatory();

export const overwriteOption = (): Option => new Option("--overwrite", "replace what the folder holds");

export const dtypeOption = (): Option =>
  new Option("--dtype <dtype>", "stored type of the weights; defaults to what they have").choices(["f32", "bf16", "f16"]);

/** Refuses a folder that holds something before work is done for it. */
export async function refuseFilled(folder: string, overwrite = false, hint = "Choose a new folder, or add --overwrite."): Promise<void> {
  if (!overwrite) await refuseFilledFolder(folder, hint);
}
