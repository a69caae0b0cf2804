import { StrutError } from "../errors.ts";
import type { Batch, Task } from "../nn/contracts.ts";
import { hostNumbers, tensor, type Tensor } from "../tensor/index.ts";

/**
 * A batch of calibration data: token ids, or the `inputs` of another task, x and what its loss reads. Labels, which default to the
 * ids, matter to statistics of gradients only.
 */
export interface CalibrationBatch extends Batch {
  /**
   * [rows][tokens], 0 where a token does not count, such as padding; defaults to all. Attention is causal, so padding stands
   * at the end of a row. A token that does not count is not scored either. Of `inputs` it is the tensor `mask`.
   */
  readonly mask?: readonly ArrayLike<number>[];
}

export type CalibrationBatches = Iterable<CalibrationBatch> | AsyncIterable<CalibrationBatch>;

/** A batch as it goes through a model. */
export interface Prepared {
  readonly rows: number;
  /** Of each token, or each row where inputs are no tokens, whether it counts. */
  readonly counts: Uint8Array;
  /** Places of those that count; undefined if all do. */
  readonly places: Int32Array | undefined;
  /** How many count. */
  readonly tokens: number;
  /** How many labels are scored. */
  readonly scored: number;
  /** What the model reads. */
  input(): Tensor;
  /** i32 [rows, tokens], for models that read it. */
  readonly mask?: Tensor;
  /** At each place the label of the next, −1 where none is scored: the loss of token ids. */
  targets?(): Tensor;
  /** Of `inputs`, whose loss the task knows. */
  readonly of?: { readonly batch: Batch; readonly task: Task };
}

/** The places that count. */
function counted(counts: Uint8Array): Pick<Prepared, "counts" | "places" | "tokens"> {
  const tokens = counts.reduce((sum, count) => sum + count, 0);
  return { counts, tokens, places: tokens === counts.length ? undefined : Int32Array.from(counts.keys()).filter((i) => counts[i] === 1) };
}

function ofTokens({ ids, labels = ids, mask }: CalibrationBatch, index: number): Prepared {
  const width = ids[0]?.length ?? 0;
  if (ids.length === 0 || width === 0) throw new StrutError("batch", `calibration batch ${index} is empty`, { hint: "Leave it out." });
  for (const [name, lines] of Object.entries({ ids, labels, mask: mask ?? ids }))
    if (lines.length !== ids.length || Array.from(lines).some((line) => line.length !== width))
      throw new StrutError("batch", `calibration batch ${index}: ${name} must be ${ids.length} rows of ${width}, like row 0 of the ids`, {
        hint: "Pad shorter rows at their end, with a mask of 0.",
      });
  const flat = (lines: readonly ArrayLike<number>[]): Int32Array => Int32Array.from(lines.flatMap((line) => Array.from(line)));
  const [tokens, wanted] = [flat(ids), flat(labels)];
  const counts = mask ? Uint8Array.from(flat(mask), (value) => Number(value !== 0)) : new Uint8Array(tokens.length).fill(1);
  const targets = wanted.map((_, i) => ((i + 1) % width === 0 || wanted[i + 1]! < 0 || counts[i + 1] === 0 ? -1 : wanted[i + 1]!));
  return {
    rows: ids.length,
    ...counted(counts),
    scored: targets.reduce((sum, target) => sum + Number(target >= 0), 0),
    input: () => tensor(tokens, [ids.length, width], "i32"),
    targets: () => tensor(targets, [tokens.length], "i32"),
  };
}

function ofInputs(batch: CalibrationBatch, index: number, task: Task | undefined): Prepared {
  const { x, mask } = batch.inputs!;
  if (!x || x.size === 0)
    throw new StrutError("batch", `calibration batch ${index} has ${x ? "an empty inputs.x" : `no inputs.x beside ${Object.keys(batch.inputs!).join(", ")}`}`, {
      hint: "The model reads inputs.x.",
    });
  const [rows, tokens] = [x.shape[0]!, x.dtype === "i32" ? x.size : x.shape[0]!];
  if (mask && mask.size !== tokens)
    throw new StrutError(
      "batch",
      `calibration batch ${index}: inputs.mask is [${mask.shape}], expected one entry for each of ${tokens} ${x.dtype === "i32" ? "tokens" : "rows"}`,
      {
        hint: "Give 1 where a token counts and 0 where it is padding.",
      },
    );
  return {
    rows,
    ...counted(mask ? Uint8Array.from(hostNumbers(mask) as Int32Array, (value) => Number(value !== 0)) : new Uint8Array(tokens).fill(1)),
    scored: task?.scored(batch) ?? 0,
    input: () => x,
    ...(mask ? { mask } : {}),
    ...(task ? { of: { batch, task } } : {}),
  };
}

/** The batches one by one; a task tells the loss of those that have `inputs`. */
export async function* prepared(batches: CalibrationBatches, task?: Task): AsyncGenerator<Prepared> {
  let index = 0;
  for await (const batch of batches) yield batch.inputs ? ofInputs(batch, index++, task) : ofTokens(batch, index++);
}

/** The batches over and over, each with how often all have been seen before; one that can be read once only is held. */
export async function* cycled(batches: CalibrationBatches): AsyncGenerator<{ batch: Prepared; round: number }> {
  const held: Prepared[] = [];
  for await (const batch of prepared(batches)) {
    held.push(batch);
    yield { batch, round: 0 };
  }
  for (let round = 1; held.length > 0; round++) for (const batch of held) yield { batch, round };
}
