import { merge } from "../adapters/index.ts";
import { StrutError } from "../errors.ts";
import { evaluate, type Model } from "../models/index.ts";
import { prepare, trainedSize } from "../recipe/prepare.ts";
import { trainOptions } from "../recipe/run.ts";
import type { Recipe } from "../recipe/schema.ts";
import { engine } from "../tensor/index.ts";
import { train, type StepEvent } from "../training/index.ts";
import { savedBytes } from "./plan.ts";
import type { Setup } from "./setup.ts";

/** One run of a comparison, in a process of its own. Without a method it measures the base model. */
export interface Job {
  /** Its result, below the folder of the comparison. */
  readonly file: string;
  readonly method?: { readonly id: string; readonly options: Readonly<Record<string, unknown>>; readonly rate: number };
  readonly seed: number;
}

/** Losses are means of −log p over the tokens of a half of what was held out, in nats. */
export interface Measured {
  /** On the half that chooses the learning rate. */
  readonly validation: number;
  /** On the half that the table shows. */
  readonly loss: number;
  readonly tokens: number;
  readonly parameters: number;
  /** Of the weights in the saved adapter. */
  readonly bytes: number;
  readonly optimizerBytes: number;
  /** Most memory of the process until the end of training, and what its tensors had of it. */
  readonly peakBytes: number;
  readonly tensorBytes: number;
  /** The median. */
  readonly secondsPerStep: number;
  readonly seconds: number;
  readonly mergeable: boolean;
}

/** What the file of a job holds when it is done. */
export type Done = { readonly job: Job; readonly measured: Measured } | { readonly job: Job; readonly failed: string };

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0;

/** A recipe's model, text and training without a method. */
export function baseRecipe(recipe: Recipe): Recipe {
  const { targets: _, ...rest } = recipe;
  return { ...rest, method: "full" };
}

/** Trains one method at one rate from one seed, and measures it. */
export async function runJob({ recipe }: Setup, { method, seed }: Job, onStep?: (event: StepEvent) => void): Promise<Measured> {
  const began = performance.now();
  const prepared = await prepare(
    method
      ? { ...recipe, method: method.id, options: { ...method.options }, training: { ...recipe.training, learningRate: method.rate, seed } }
      : baseRecipe(recipe),
  );
  const [validation, test] = halves(prepared.heldOut!);
  const { window } = prepared;
  const score = async (model: Model, ids: Int32Array): Promise<{ loss: number; tokens: number }> => {
    const { loss, tokens } = await evaluate(model, ids, { window });
    if (!Number.isFinite(loss)) throw new StrutError("nan", `the held-out loss is ${loss} after training`);
    return { loss, tokens };
  };
  if (!method) {
    const { loss, tokens } = await score(prepared.base, test);
    const nothing = { parameters: 0, bytes: 0, optimizerBytes: 0, peakBytes: 0, tensorBytes: 0, secondsPerStep: 0, mergeable: true };
    return { validation: (await score(prepared.base, validation)).loss, loss, tokens, ...nothing, seconds: (performance.now() - began) / 1000 };
  }
  const times: number[] = [];
  let last = performance.now();
  const { model, optimizerBytes } = await train(prepared.model, {
    ...(await trainOptions({ ...prepared, heldOut: undefined })),
    onEvent(event) {
      if (event.event !== "step") return;
      times.push((performance.now() - last) / 1000);
      last = performance.now();
      onStep?.(event);
    },
  });
  const [peakBytes, tensorBytes] = [process.resourceUsage().maxRSS * 1024, engine().pool.peakBytes];
  const { loss, tokens } = await score(model, test);
  return {
    validation: (await score(model, validation)).loss,
    loss,
    tokens,
    // some methods grow in training, others shrink
    parameters: Math.max(prepared.parameters.trained, trainedSize(model)),
    bytes: await savedBytes(model),
    optimizerBytes,
    peakBytes,
    tensorBytes,
    secondsPerStep: median(times),
    seconds: (performance.now() - began) / 1000,
    mergeable: canMerge(model),
  };
}

const halves = (ids: Int32Array): [Int32Array, Int32Array] => [ids.subarray(0, ids.length >> 1), ids.subarray(ids.length >> 1)];

function canMerge(model: Model): boolean {
  try {
    merge(model);
    return true;
  } catch (error) {
    if (error instanceof StrutError) return false;
    throw error;
  }
}
