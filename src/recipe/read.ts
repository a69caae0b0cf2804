import { dirname, isAbsolute, join } from "node:path";
import { isMap, isScalar, LineCounter, parseDocument, type Document } from "yaml";
import type { z } from "zod";
import { nearest, StrutError } from "../errors.ts";
import { readText } from "../formats/files.ts";
import { camel } from "../nn/options.ts";
import { withHuggingFaceOptimizer } from "./huggingface-optimizers.ts";
import { recipeAliases, recipeSchema, type Recipe } from "./schema.ts";

type Path = readonly string[];

/** A recipe's text with the lines of its keys, for messages. */
class Source {
  readonly path: string;
  readonly #lines = new LineCounter();
  readonly #document: Document;

  constructor(text: string, path: string) {
    this.path = path;
    this.#document = parseDocument(text, { lineCounter: this.#lines, prettyErrors: false });
    const [problem] = [...this.#document.errors, ...this.#document.warnings];
    if (problem)
      throw this.error(`it is not valid YAML: ${problem.message}`, "Check the indentation and the quotes there.", this.#lines.linePos(problem.pos[0]).line);
  }

  value(): unknown {
    try {
      return this.#document.toJS({ maxAliasCount: 100 });
    } catch (cause) {
      throw this.error(`it cannot be read: ${(cause as Error).message}`, "Write the values out instead of using aliases.");
    }
  }

  /** The line on which the key at a path stands. */
  line(path: Path): number | undefined {
    let node: unknown = this.#document.contents;
    let found: number | undefined;
    for (const name of path) {
      const pair = isMap(node) ? node.items.find(({ key }) => isScalar(key) && String(key.value) === name) : undefined;
      const range = isScalar(pair?.key) ? pair.key.range : undefined;
      if (!pair || !range) break;
      found = this.#lines.linePos(range[0]).line;
      node = pair.value;
    }
    return found;
  }

  error(message: string, hint: string, line?: number): StrutError {
    return new StrutError("recipe", `${this.path}${line === undefined ? "" : `, line ${line}`}: ${message}`, { path: this.path, hint });
  }
}

/** The schema below optionality and defaults. */
function inner(schema: z.core.$ZodType): z.core.$ZodType {
  const { innerType } = schema._zod.def as { innerType?: z.core.$ZodType };
  return innerType ? inner(innerType) : schema;
}

const shapeOf = (schema: z.core.$ZodType): Record<string, z.core.$ZodType> | undefined =>
  (inner(schema)._zod.def as { shape?: Record<string, z.core.$ZodType> }).shape;

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);

/** Where a key stands: under its own name, and as the recipe spells it. */
interface Place {
  readonly name: Path;
  readonly written: Path;
}

/** Gives keys their camelCase names all the way down where the schema has keys; an unknown one ends in its nearest name. */
function named(given: Record<string, unknown>, schema: z.core.$ZodType, source: Source, at: Place, spelled: Map<string, Path>): Record<string, unknown> {
  const shape = shapeOf(schema)!;
  const result: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(given)) {
    const name = Object.hasOwn(shape, key) ? key : Object.hasOwn(recipeAliases, key) ? recipeAliases[key]! : camel(key);
    const here = { name: [...at.name, name], written: [...at.written, key] };
    const field = Object.hasOwn(shape, name) ? shape[name]! : undefined;
    if (!field) throw unknownKey(key, Object.keys(shape), source, here);
    if (value === null) continue; // the default, as in PEFT's files
    const other = spelled.get(here.name.join("."))?.at(-1);
    if (other !== undefined) throw source.error(`${other} and ${key} are the same key`, "Keep one of them.", source.line(here.written));
    spelled.set(here.name.join("."), here.written);
    result[name] = isObject(value) && shapeOf(field) ? named(value, field, source, here, spelled) : value;
  }
  return result;
}

function unknownKey(key: string, known: readonly string[], source: Source, { written }: Place): StrutError {
  const where = written.length === 1 ? "a recipe" : written.slice(0, -1).join(".");
  const [near] = nearest(camel(key), known, 1);
  return source.error(`${where} has no key ${JSON.stringify(key)}`, near ? `Did you mean ${near}?` : `Its keys are ${known.join(", ")}.`, source.line(written));
}

const fieldAt = (names: Path): z.ZodType | undefined =>
  names.reduce<z.core.$ZodType | undefined>((schema, name) => schema && shapeOf(schema)?.[name], recipeSchema) as z.ZodType | undefined;

function wrongValue(issue: z.core.$ZodIssue, given: unknown, source: Source, spelled: ReadonlyMap<string, Path>): StrutError {
  const names = issue.path.map(String);
  const known = names.findLastIndex((_, i) => spelled.has(names.slice(0, i + 1).join(".")));
  const written = [...(spelled.get(names.slice(0, known + 1).join(".")) ?? []), ...names.slice(known + 1)];
  const where = written.join(".") || "the recipe";
  const described = names.findLastIndex((_, i) => fieldAt(names.slice(0, i + 1))?.description);
  const field = described < 0 ? undefined : fieldAt(names.slice(0, described + 1));
  const value = names.reduce<unknown>(
    (inside, name) => (typeof inside === "object" && inside !== null ? (inside as Record<string, unknown>)[name] : undefined),
    given,
  );
  const hint = field ? `${names[described]}: ${field.description}.` : `Its keys are ${Object.keys(recipeSchema.shape).join(", ")}.`;
  if (value === undefined) return source.error(`${where} is missing`, hint, source.line(written.slice(0, -1)));
  const shown = JSON.stringify(value) ?? String(value);
  const why =
    issue.code === "invalid_union"
      ? "none of the forms it can have"
      : issue.message.replace(/^Invalid input: |^Invalid option: /, "").replace(/^./, (first) => first.toLowerCase());
  return source.error(`${where} is ${shown.length > 80 ? `${shown.slice(0, 80)}…` : shown}: ${why}`, hint, source.line(written));
}

/**
 * Reads a recipe: YAML (or JSON) of the keys of `recipeSchema`. Unknown keys, wrong values and broken YAML end in a sentence
 * with the line. Paths in it are relative to its own folder.
 */
export async function readRecipe(path: string): Promise<Recipe> {
  return parseRecipe(await readText(path), path);
}

/**
 * Reads the text of a recipe; `path` stands in messages, and paths in the text are relative to its folder.
 *
 * @example
 * const recipe = parseRecipe("model: stories\ndata: { text: tales.txt }\noptions: { r: 4, lora_alpha: 8 }");
 */
export function parseRecipe(text: string, path = "recipe.yaml"): Recipe {
  const source = new Source(text, path);
  const given = source.value();
  if (!isObject(given)) throw source.error("it holds no keys", "Begin with `model: FOLDER`; examples/ has whole recipes.");
  const spelled = new Map<string, Path>();
  const renamed = named(given, recipeSchema, source, { name: [], written: [] }, spelled);
  if (renamed["fromScratch"] === true) renamed["method"] ??= "full";
  const parsed = recipeSchema.safeParse(renamed);
  if (!parsed.success) throw wrongValue(parsed.error.issues[0]!, renamed, source, spelled);
  const recipe = parsed.data;
  const here = (file: string): string => (isAbsolute(file) ? file : join(dirname(path), file));
  const { prune } = recipe;
  const inside = prune && {
    ...prune,
    ...(prune.from === undefined ? {} : { from: here(prune.from) }),
    ...(prune.align ? { align: { ...prune.align, text: here(prune.align.text) } } : {}),
  };
  return {
    ...recipe,
    model: here(recipe.model),
    ...(recipe.tokenizer === undefined ? {} : { tokenizer: here(recipe.tokenizer) }),
    data: { ...recipe.data, text: here(recipe.data.text) },
    ...(inside ? { prune: inside } : {}),
    training: withHuggingFaceOptimizer(recipe.training, (message, hint) => source.error(message, hint, source.line(["training", "optim"]))),
  };
}
