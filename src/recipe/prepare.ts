import { adapt, adapterParameters, attachedTo, loadKept, recover, removeHeads, type Coverage } from "../adapters/index.ts";
import { initializerById, isAdapter, methodById } from "../catalog.ts";
import { splitTail, textsOf, tokenBatches, tokenStream, type BatchSource } from "../data/index.ts";
import { StrutError } from "../errors.ts";
import type { Tokenizer } from "../formats/tokenizer.ts";
import { languageDimensions, loadModel, parameters, prune, unfreeze, type Model, type Pruned } from "../models/index.ts";
import type { Batch } from "../nn/contracts.ts";
import { start, type Parameter } from "../tensor/index.ts";
import { freshModel, openModel, openText, type Opened } from "./open.ts";
import type { Recipe } from "./schema.ts";

/** A run that is ready to start: everything a recipe names was found, and it fits together. */
export interface Prepared {
  readonly recipe: Recipe;
  readonly base: Model;
  /** The base with what trains. */
  readonly model: Model;
  readonly tokenizer: Tokenizer;
  readonly batches: BatchSource;
  /** Token ids of the held-out text, if any was held out. */
  readonly heldOut: Int32Array | undefined;
  readonly window: number;
  /** The base that is trained on in place of the full one, where the recipe prunes. */
  readonly pruned?: Pruned;
  /** What the adapter sits on; undefined if all weights train. */
  readonly coverage: Coverage | undefined;
  readonly parameters: { readonly trained: number; readonly total: number };
}

/** Longest rows where a recipe names no window: long contexts would need memory that few have. */
const LONGEST = 512;

const sizes = (all: Iterable<Parameter>): number => [...all].reduce((sum, { size }) => sum + size, 0);

/** How many numbers of a model train: its own that were unfrozen, and those of its active adapters. */
export function trainedSize(model: Model): number {
  const all = [...parameters(model).values(), ...model.active.flatMap((name) => [...adapterParameters(attachedTo(model, name)!).values()])];
  return sizes(all.filter(({ trainable }) => trainable));
}

function opened({ model, fromScratch, tokenizer, training }: Recipe): Promise<Opened> {
  if (!fromScratch) return openModel(model, { tokenizer });
  if (tokenizer === undefined && model.endsWith(".json"))
    throw new StrutError("recipe", `${model} is a config.json, which brings no tokenizer`, { path: "tokenizer", hint: "Name the folder of one as tokenizer." });
  return freshModel(model, tokenizer ?? model, training.seed);
}

/** Loads what a recipe names: model, tokenizer, text, method. Nothing is written. */
export async function prepare(recipe: Recipe): Promise<Prepared> {
  const { data, training } = recipe;
  const content = await openText(data.text);
  await start();
  const { model: base, tokenizer } = await opened(recipe);
  const { context } = languageDimensions(base);
  const window = data.window ?? Math.min(context, LONGEST);
  if (window > context)
    throw new StrutError("context", `data.window is ${window}, more than the model's context of ${context}`, {
      path: "data.window",
      hint: `Use at most ${context}.`,
    });
  const texts = textsOf(content, data.text);
  // one text is split inside, several between two of them
  const split = texts.length === 1 ? splitTail(texts[0]!, data.heldOut) : splitTail(texts, data.heldOut);
  const stream = (part: string | string[]): Int32Array => tokenStream(tokenizer, typeof part === "string" ? [part] : part);
  const batches = tokenBatches(stream(split.train), { window, rows: training.batchSize, seed: training.seed });
  const pruned = recipe.prune && (await prunedBase(base, recipe.prune, batches, training.seed));
  const model = await withTrainable(pruned?.model ?? base, recipe, batches);
  refuseStages(recipe, model, base, pruned);
  const heldOut = data.heldOut > 0 ? stream(split.heldOut) : undefined;
  if (heldOut && heldOut.length < 2)
    throw new StrutError("data", `the held-out part of ${data.text} has ${heldOut.length} tokens; at least 2 are needed`, {
      path: "data.heldOut",
      hint: "Hold out a larger share, or 0 for none.",
    });
  const name = model.active[0];
  const own = name === undefined ? undefined : attachedTo(model, name);
  return {
    recipe,
    base,
    model,
    tokenizer,
    batches,
    heldOut,
    window,
    ...(pruned ? { pruned } : {}),
    coverage: own?.coverage,
    parameters: { trained: trainedSize(model), total: sizes(parameters(base).values()) },
  };
}

/** Batches of another text, for a stage of its own. */
export async function textBatches({ recipe, tokenizer, window }: Pick<Prepared, "recipe" | "tokenizer" | "window">, path: string): Promise<BatchSource> {
  const stream = tokenStream(tokenizer, textsOf(await openText(path), path));
  return tokenBatches(stream, { window, rows: recipe.training.batchSize, seed: recipe.training.seed });
}

const firstBatches = (batches: BatchSource, count: number): Promise<Batch[]> => Promise.all(Array.from({ length: count }, async (_, k) => batches.batch(k)));

/** The small base of a recipe: one that was written before, or one made from the gradients of the first batches. */
async function prunedBase(
  base: Model,
  { from, variant, ratio, criterion, untouched, calibrationBatches, align }: NonNullable<Recipe["prune"]>,
  batches: BatchSource,
  seed: number,
): Promise<Pruned> {
  if (from === undefined) {
    const calibration = await firstBatches(batches, calibrationBatches);
    return prune(base, { variant, ratio, criterion, untouched, seed, calibration });
  }
  if (align)
    throw new StrutError("recipe", "a base that was pruned before is taken as it is, so prune.align has no meaning", {
      path: "prune.align",
      hint: "Leave out align or from.",
    });
  const kept = await loadKept(from, base);
  return { model: await loadModel(from), kept, sparse: kept.heads.size + kept.neurons.size === 0 };
}

/** What would only fail after the training is refused before it. */
function refuseStages({ removeHeads: remove, fromScratch, training }: Recipe, model: Model, base: Model, pruned: Pruned | undefined): void {
  if (model.active.length === 0 && (pruned || remove))
    throw new StrutError("recipe", "without an adapter there is nothing to put back or to judge heads by", {
      path: "method",
      hint: "Use loram with prune, dsee with removeHeads.",
    });
  if (fromScratch && (pruned || remove))
    throw new StrutError("recipe", "of random weights none are worth keeping before others", {
      path: pruned ? "prune" : "removeHeads",
      hint: "Begin with a trained model.",
    });
  if (pruned) recover(model, base, pruned.kept);
  if (!remove) return;
  if (pruned || training.steps === undefined || training.steps < 2)
    throw new StrutError("recipe", "removeHeads needs training.steps of at least 2, and no prune", {
      path: "removeHeads",
      hint: "Give the steps, or leave out one of the two.",
    });
  removeHeads(model, remove.count);
}

const targetingKeys = [
  "targets",
  "excludeModules",
  "layersToTransform",
  "layersPattern",
  "rankPattern",
  "alphaPattern",
  "bias",
  "modulesToSave",
  "trainableTokenIndices",
  "ensureWeightTying",
  "layerReplication",
] as const;

/** The model with the recipe's adapter, or with all of its weights trainable. */
export async function withTrainable(base: Model, recipe: Recipe, batches: BatchSource): Promise<Model> {
  const targeting = Object.fromEntries(targetingKeys.flatMap((key) => (recipe[key] === undefined ? [] : [[key, recipe[key]]])));
  // on some modules it is an adapter like others
  if (recipe.method === "full" && recipe.targets === undefined) {
    const [stray] = [...Object.keys(targeting), ...(Object.keys(recipe.options).length > 0 ? ["options"] : [])];
    if (stray)
      throw new StrutError("recipe", `the method full trains every weight, so ${stray} has no meaning`, {
        path: stray,
        hint: `Leave out ${stray}, or name an adapter method.`,
      });
    return unfreeze(base);
  }
  const method = await methodById(recipe.method);
  if (!isAdapter(method))
    throw new StrutError("recipe", `the method ${method.id} is one of ${method.family}, not an adapter`, {
      path: "method",
      hint: "strut methods lists the adapters.",
    });
  const initializer = recipe.initializer === undefined ? undefined : { method: await initializerById(recipe.initializer), options: recipe.initializerOptions };
  const calibration = await firstBatches(batches, recipe.calibrationBatches);
  const adapted = await adapt(base, method, recipe.options, { ...targeting, seed: recipe.training.seed, calibration, ...(initializer ? { initializer } : {}) });
  if (!recipe.fromScratch) return adapted;
  // the rest of a random model cannot stay as it is: embeddings, norms and head train beside the adapter
  const { matched } = attachedTo(adapted, adapted.active[0]!)!.coverage;
  const rest = (name: string): boolean => !matched.some((path) => name.startsWith(`${path}.`));
  return [...parameters(adapted).keys()].some(rest) ? unfreeze(adapted, rest) : adapted;
}
