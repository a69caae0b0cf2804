import type { Model } from "../models/model.ts";
import type { Batch } from "../nn/contracts.ts";
import { noGrad, scope } from "../tensor/index.ts";
import { languageModelLoss, scoredTokens } from "./loss.ts";
import { Pulse } from "./pulse.ts";

/**
 * Mean loss over batches, weighted by scored tokens, in f64; nothing is recorded. Gives undefined if `signal` stopped it.
 *
 * @example
 * const { loss } = (await meanLoss(model, heldOut))!;
 */
export async function meanLoss(model: Model, batches: readonly Batch[], signal?: AbortSignal): Promise<{ loss: number; tokens: number } | undefined> {
  const pulse = new Pulse();
  let [sum, tokens] = [0, 0];
  for (const batch of batches) {
    await pulse.beat();
    if (signal?.aborted) return undefined;
    const scored = scoredTokens(batch);
    if (scored === 0) continue;
    const loss = noGrad(() => scope(() => languageModelLoss(model, batch)));
    sum += scored * (await loss.item());
    tokens += scored;
  }
  return { loss: tokens === 0 ? NaN : sum / tokens, tokens };
}
