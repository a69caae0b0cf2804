import { StrutError } from "../errors.ts";
import type { Batch } from "../nn/contracts.ts";
import { tensor, type Tensor } from "../tensor/index.ts";

/** A batch of calibration data. Its labels, which default to its ids, matter to statistics of gradients only. */
export interface CalibrationBatch extends Batch {
  /**
   * [rows][tokens], 0 where a token does not count, such as padding; defaults to all. Attention is causal, so padding stands
   * at the end of a row. A token that does not count is not scored either.
   */
  readonly mask?: readonly ArrayLike<number>[];
}

export type CalibrationBatches = Iterable<CalibrationBatch> | AsyncIterable<CalibrationBatch>;

/** A batch as flat arrays; tensors are made of them when they are needed. */
export class Prepared {
  readonly rows: number;
  readonly width: number;
  readonly counts: Uint8Array;
  /** Places of the tokens that count; undefined if all do. */
  readonly places: Int32Array | undefined;
  readonly tokens: number;
  /** How many labels are scored. */
  readonly scored: number;
  readonly #ids: Int32Array;
  readonly #targets: Int32Array;

  constructor({ ids, labels = ids, mask }: CalibrationBatch, index: number) {
    const width = ids[0]?.length ?? 0;
    if (ids.length === 0 || width === 0) throw new StrutError("batch", `calibration batch ${index} is empty`, { hint: "Leave it out." });
    for (const [name, lines] of Object.entries({ ids, labels, mask: mask ?? ids }))
      if (lines.length !== ids.length || Array.from(lines).some((line) => line.length !== width))
        throw new StrutError("batch", `calibration batch ${index}: ${name} must be ${ids.length} rows of ${width}, like row 0 of the ids`, {
          hint: "Pad shorter rows at their end, with a mask of 0.",
        });
    const flat = (lines: readonly ArrayLike<number>[]): Int32Array => Int32Array.from(lines.flatMap((line) => Array.from(line)));
    this.rows = ids.length;
    this.width = width;
    this.#ids = flat(ids);
    this.counts = mask ? Uint8Array.from(flat(mask), (value) => Number(value !== 0)) : new Uint8Array(this.#ids.length).fill(1);
    const wanted = flat(labels);
    this.#targets = wanted.map((_, i) => ((i + 1) % width === 0 || wanted[i + 1]! < 0 || this.counts[i + 1] === 0 ? -1 : wanted[i + 1]!));
    this.tokens = this.counts.reduce((sum, count) => sum + count, 0);
    this.places = this.tokens === this.#ids.length ? undefined : Int32Array.from(this.#ids.keys()).filter((i) => this.counts[i] === 1);
    this.scored = this.#targets.reduce((sum, target) => sum + Number(target >= 0), 0);
  }

  ids = (): Tensor => tensor(this.#ids, [this.rows, this.width], "i32");

  /** At each place the label of the next, −1 where none is scored. */
  targets = (): Tensor => tensor(this.#targets, [this.rows * this.width], "i32");
}

/** The batches one by one. */
export async function* prepared(batches: CalibrationBatches): AsyncGenerator<Prepared> {
  let index = 0;
  for await (const batch of batches) yield new Prepared(batch, index++);
}
