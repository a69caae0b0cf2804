import { StrutError } from "../errors.ts";
import { forward, hidden, plainWeight, type Model } from "../models/model.ts";
import type { Batch, Run, Task } from "../nn/contracts.ts";
import { crossEntropy, hostNumbers, linearCrossEntropy, meanSquaredError, reshape, tensor, type Tensor } from "../tensor/index.ts";

/** Label that is not scored, as in torch and transformers. */
const IGNORED = -100;

interface Prepared {
  readonly ids: Tensor;
  /** i32 [rows·tokens]: at each position the label of the next, −1 where there is none. */
  readonly targets: Tensor;
  /** How many targets count. */
  readonly scored: number;
}

/** A batch as tensors; throws a sentence unless it is a rectangle of ids. The last token of a row predicts nothing and is not fed. */
function prepareBatch({ ids, labels = ids }: Batch): Prepared {
  const rows = ids.length;
  const tokens = ids[0]?.length ?? 0;
  if (rows === 0 || tokens < 2)
    throw new StrutError("batch", `a batch needs at least one row of at least 2 tokens, this one has ${rows} rows of ${tokens}`, {
      hint: "The loss predicts each token from those before it.",
    });
  const width = tokens - 1;
  const flat = new Int32Array(rows * width);
  const targets = new Int32Array(rows * width).fill(-1);
  let scored = 0;
  for (let r = 0; r < rows; r++) {
    const [row, wanted] = [ids[r]!, labels[r]];
    if (row.length !== tokens || wanted?.length !== tokens)
      throw new StrutError("batch", `row ${r} of a batch has ${row.length} ids and ${wanted?.length ?? 0} labels, expected ${tokens} as in row 0`, {
        hint: "Pad shorter rows, with labels of −100.",
      });
    for (let t = 0; t < tokens; t++) {
      if (t < width) flat[r * width + t] = row[t]!;
      if (t === 0 || wanted[t] === IGNORED) continue;
      if (!(wanted[t]! >= 0)) throw new StrutError("batch", `label ${wanted[t]} at row ${r}, position ${t} is neither a token id nor −100`);
      targets[r * width + t - 1] = wanted[t]!;
      scored++;
    }
  }
  return { ids: tensor(flat, [rows, width], "i32"), targets: tensor(targets, [rows * width], "i32"), scored };
}

/** How many targets of a batch count. */
export function scoredTokens({ ids, labels = ids }: Batch): number {
  let scored = 0;
  for (const row of labels) for (let t = 1; t < row.length; t++) if (row[t] !== IGNORED) scored++;
  return scored;
}

/**
 * Next-token cross-entropy, the mean over scored targets: what transformers' causal models give as `loss` for input_ids
 * and labels. With a plain head the logits are never held all at once.
 *
 * @example
 * const gradients = backward(languageModelLoss(tuned, { ids: [[1, 5, 9]] }));
 */
export function languageModelLoss(model: Model, batch: Batch, run: Run = {}): Tensor {
  const { ids, targets, scored } = prepareBatch(batch);
  if (scored === 0) throw new StrutError("batch", "no label of a batch is scored, so it has no loss", { hint: "Leave out batches whose labels are all −100." });
  const width = model.dimensions.width;
  const { head: path } = model.architecture;
  const observed = run.observer && (run.observer.sees?.(model.layers.get(path)!.site!) ?? true);
  const head = observed || run.mix ? undefined : plainWeight(model, path);
  if (head) return linearCrossEntropy(reshape(hidden(model, ids, run), [-1, width]), head, targets);
  return crossEntropy(forward(model, ids, run), targets);
}

function inputOf({ inputs }: Batch, name: string, task: string): Tensor {
  const found = inputs?.[name];
  if (found) return found;
  throw new StrutError("batch", `a batch of the task ${task} needs inputs.${name}, this one has ${Object.keys(inputs ?? {}).join(", ") || "none"}`);
}

/** Next-token prediction of `ids`: what train() does unless told otherwise. */
export const languageModelling: Task = {
  name: "language-modelling",
  loss: (model, batch, run) => languageModelLoss(model as Model, batch, run),
  scored: scoredTokens,
};

/**
 * Cross-entropy of a model's output for `inputs.x` against the classes in `inputs.labels` (i32; −1 is not scored).
 *
 * @example
 * const course = { task: classification, steps: 100 };
 */
export const classification: Task = {
  name: "classification",
  loss: (model, batch, run) => crossEntropy(forward(model as Model, inputOf(batch, "x", "classification"), run), inputOf(batch, "labels", "classification")),
  scored: (batch) => Array.from(hostNumbers(inputOf(batch, "labels", "classification")) as Int32Array).filter((label) => label >= 0).length,
};

/** Mean squared error of a model's output for `inputs.x` against `inputs.y`. */
export const regression: Task = {
  name: "regression",
  loss: (model, batch, run) => meanSquaredError(forward(model as Model, inputOf(batch, "x", "regression"), run), inputOf(batch, "y", "regression")),
  scored: (batch) => inputOf(batch, "y", "regression").size,
};
