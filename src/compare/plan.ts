import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { adapt, saveAdapter } from "../adapters/index.ts";
import { StrutError } from "../errors.ts";
import type { Model } from "../models/index.ts";
import { parseOptions } from "../nn/options.ts";
import { trainedSize } from "../recipe/prepare.ts";
import type { Recipe } from "../recipe/schema.ts";
import { grouped } from "../report/numbers.ts";
import { solveSize } from "./budget.ts";
import { sizeOf, type Choice } from "./methods.ts";
import type { Budget } from "./setup.ts";

/** A method with the options it is compared with. */
export interface Plan {
  readonly label: string;
  readonly id: string;
  readonly title: string;
  readonly paper: string;
  readonly options: Readonly<Record<string, unknown>>;
  /** The option that sets what is stored, solved for or given; undefined where that is fixed. */
  readonly size?: { readonly name: string; readonly value: number };
  /** Of the budget's kind. */
  readonly stored: number;
  /** What a reader of the table should know. */
  readonly note?: string;
}

/** A method that cannot take part, and why. */
export type Refused = Pick<Plan, "label" | "id" | "title" | "paper"> & { readonly refused: string };

/** Bytes of the weights in a folder. */
export async function weightBytes(folder: string): Promise<number> {
  const files = (await readdir(folder)).filter((name) => name.endsWith(".safetensors"));
  const sizes = await Promise.all(files.map(async (name) => (await stat(join(folder, name))).size));
  return sizes.reduce((sum, size) => sum + size, 0);
}

/** Bytes of the weights of a model's adapter, once it is saved. */
export async function savedBytes(model: Model): Promise<number> {
  const folder = await mkdtemp(join(tmpdir(), "strut-compare-"));
  try {
    await saveAdapter(model, join(folder, "adapter"));
    return await weightBytes(join(folder, "adapter"));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Solves a method's size for the budget, by adapting the model itself. */
export async function planMethod(model: Model, choice: Choice, { targets }: Pick<Recipe, "targets">, budget: Budget): Promise<Plan | Refused> {
  const { label, method, options } = choice;
  const about = { label, id: method.id, title: method.title, paper: method.paper };
  const measure = async (own: Readonly<Record<string, unknown>>): Promise<number> => {
    const whole = method.grown?.(parseOptions(method, own, method.layout.options)) ?? own;
    const adapted = await adapt(model, method, whole, targets === undefined ? {} : { targets });
    return budget.of === "bytes" ? savedBytes(adapted) : trainedSize(adapted);
  };
  const size = sizeOf(choice);
  try {
    if (!size || size.given !== undefined) {
      const stored = await measure(options);
      const note = stored > budget.limit ? { note: `${size ? "" : "fixed size, "}above the budget` } : {};
      return { ...about, options, ...(size ? { size: { name: size.name, value: size.given! } } : {}), stored, ...note };
    }
    let problem: unknown;
    const ceiling = Math.max(...model.sites.map((site) => Math.max(site.out, site.in)));
    const solved = await solveSize(
      (value) =>
        measure({ ...options, [size.name]: value }).catch((error: unknown) => {
          if (!(error instanceof StrutError)) throw error;
          problem ??= error;
          return undefined;
        }),
      budget.limit,
      ceiling,
    );
    if (!solved) throw problem;
    const { size: value, stored, fits } = solved;
    if (!fits)
      return {
        ...about,
        refused: `even ${size.name} = ${value} stores ${grouped(stored)} ${budget.of}, more than the budget of ${grouped(budget.limit)}: a budget of ${grouped(stored)} would take it`,
      };
    return { ...about, options: { ...options, [size.name]: value }, size: { name: size.name, value }, stored };
  } catch (error) {
    return { ...about, refused: (error as Error).message };
  }
}
