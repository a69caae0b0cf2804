import { evaluate } from "../models/evaluate.ts";
import type { Model } from "../models/model.ts";
import type { Batch, Task } from "../nn/contracts.ts";
import { free, noGrad, scope } from "../tensor/index.ts";
import { areBatches, type EvaluationOptions } from "./options.ts";
import { Pulse } from "./pulse.ts";

export interface Measured {
  readonly loss: number;
  readonly tokens: number;
}

/** Mean loss over a run's evaluation data; undefined if `signal` stopped it. */
export async function measure(model: Model, task: Task, { data, window }: EvaluationOptions, signal?: AbortSignal): Promise<Measured | undefined> {
  if (areBatches(data)) return meanLoss(model, task, data, signal);
  try {
    return await evaluate(model, data, { ...(window === undefined ? {} : { window }), ...(signal ? { signal } : {}) });
  } catch (error) {
    if (signal?.aborted && error === signal.reason) return undefined;
    throw error;
  }
}

/** Mean loss over batches, weighted by scored tokens, in f64; nothing is recorded. Gives undefined if `signal` stopped it. */
async function meanLoss(model: Model, task: Task, batches: readonly Batch[], signal?: AbortSignal): Promise<Measured | undefined> {
  const pulse = new Pulse();
  let [sum, tokens] = [0, 0];
  for (const batch of batches) {
    await pulse.beat();
    if (signal?.aborted) return undefined;
    const scored = task.scored(batch);
    if (scored === 0) continue;
    const loss = noGrad(() => scope(() => task.loss(model, batch)));
    sum += scored * (await loss.item());
    free(loss);
    tokens += scored;
  }
  return { loss: tokens === 0 ? NaN : sum / tokens, tokens };
}
