import { recover, removeHeads, type RecoverOptions, type RemoveHeadsOptions } from "../adapters/index.ts";
import { StrutError } from "../errors.ts";
import { parameters, prune, quantizeModel, unfreeze, type Kept, type Model, type Pruned, type PruneOptions } from "../models/index.ts";
import { layerAt } from "../models/model.ts";
import type { Awaitable, Regime } from "../nn/contracts.ts";
import { hostNumbers, mul, Parameter, tensor } from "../tensor/index.ts";
import { train, type TrainResult } from "./loop.ts";
import type { TrainOptions } from "./options.ts";

export interface SmallOptions {
  /** How the base becomes small, or a small one that somebody published, with what it keeps. */
  prune: PruneOptions | Pruned;
  /** Continued training of all of the small model's weights but its head's, before the adapter; LoRAM's rate is 5e-5, on general text. Defaults to none. */
  align?: TrainOptions;
  /** Keep the small base in 4 bits while the adapter trains (QLoRAM); defaults to false. */
  quantize?: boolean;
  /** Puts a LoRA or LoRAM on the small base. */
  adapter: (small: Model) => Awaitable<Model>;
  train: TrainOptions;
  recover?: RecoverOptions;
}

export interface SmallResult extends TrainResult {
  /** The full base with the adapter; undefined if the signal stopped the run before. */
  readonly recovered?: Model;
  /** The small base, aligned, in full precision. */
  readonly small: Model;
  readonly kept: Kept;
}

/**
 * LoRAM from end to end: prune, align, train a LoRA on the small base, and recover it for the full one. `model` of the result is the
 * small one with its adapter. Zhang et al. 2025, arXiv:2502.13533. The full base must already be good at what is trained: the more there is to learn, the more of it
 * is lost on the way back.
 *
 * @example
 * const batches = [{ ids: [[1, 403, 407, 261, 378, 432]] }];
 * const { recovered } = await trainSmall(model, {
 *   prune: { ratio: 0.5, variant: "rand" },
 *   align: { batches, steps: 1, learningRate: 5e-5 },
 *   adapter: (small) => adapt(small, loram, { r: 4 }),
 *   train: { batches, steps: 2, learningRate: 1e-3 },
 * });
 */
export async function trainSmall(full: Model, options: SmallOptions): Promise<SmallResult> {
  const { model: pruned, kept, sparse } = "kept" in options.prune ? options.prune : await prune(full, options.prune);
  if (sparse && options.quantize)
    throw new StrutError(
      "option",
      "a base with zeros in places is not quantised: rounding makes zeros of its own, which the update's mask would take for pruned",
      {
        path: "quantize",
        hint: "Use the variant stru or rand.",
      },
    );
  let small = pruned;
  if (options.align) {
    const { weight: head } = layerAt(pruned, pruned.architecture.head);
    const leaves = parameters(pruned);
    const unfrozen = unfreeze(pruned, (name) => leaves.get(name) !== head);
    const regimes = [...(options.align.regimes ?? []), ...(sparse ? [zerosStay(unfrozen)] : [])];
    const aligned = await train(unfrozen, { ...options.align, regimes });
    for (const w of parameters(aligned.model).values()) w.trainable = false;
    small = aligned.model;
    if (aligned.stopped) return { ...aligned, small, kept };
  }
  const result = await train(await options.adapter(options.quantize ? quantizeModel(small) : small), options.train);
  return { ...result, small, kept, ...(result.stopped ? {} : { recovered: recover(result.model, full, kept, options.recover) }) };
}

/** Weights that are zero when training begins get no gradient, so that they stay zero. */
function zerosStay(model: Model): Regime {
  const masks = new Map(
    model.sites.flatMap(({ path }) => {
      const { weight } = layerAt(model, path);
      const values = hostNumbers(weight) as Float32Array;
      if (!values.includes(0)) return [];
      return [
        [
          weight,
          new Parameter(
            tensor(
              values.map((w) => Number(w !== 0)),
              weight.shape,
              weight.dtype as "f32",
            ),
            `${path}.mask`,
            false,
          ),
        ] as const,
      ];
    }),
  );
  return {
    onGradient(_, w, g) {
      const mask = masks.get(w);
      return mask && mul(g, mask);
    },
  };
}

export interface FewerHeadsOptions extends RemoveHeadsOptions {
  /** Heads of each block that go; with grouped queries key/value heads. */
  count: number;
  before: TrainOptions;
  after: TrainOptions;
}

/**
 * DSEE's structured course: train, remove the lowest heads of every block by the update, train again. Chen et al. 2023, arXiv:2111.00160.
 *
 * @example
 * const tuned = await adapt(model, dsee, { r: 2, numSparse: 16, sparseMethod: "omp" });
 * const batches = [{ ids: [[1, 403, 407, 261, 378, 432]] }];
 * const run = { batches, steps: 2, learningRate: 1e-3 };
 * const { model: smaller } = await trainWithFewerHeads(tuned, { count: 1, before: run, after: run });
 */
export async function trainWithFewerHeads(model: Model, { count, before, after, ...options }: FewerHeadsOptions): Promise<TrainResult> {
  const first = await train(model, before);
  return first.stopped ? first : train(removeHeads(first.model, count, options), after);
}
