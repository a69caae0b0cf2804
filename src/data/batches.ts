import { StrutError } from "../errors.ts";
import { toBytes } from "../tensor/index.ts";
import type { Awaitable, Batch } from "../nn/contracts.ts";

/** Batches by number: batch k is a function of k alone, so a run that is resumed need not remember what it saw. */
export interface BatchSource {
  batch(k: number): Awaitable<Batch>;
  /** Batches until the data has been seen once; without it there are no epochs. */
  readonly epochLength?: number;
  /** Tells this data from other data, for resuming. */
  readonly fingerprint: string;
}

/** 64 bits of a sequence of numbers, as 16 hexadecimal digits (FNV-1a twice). */
export function fingerprint(...sequences: readonly ArrayLike<number>[]): string {
  let [a, b] = [0x811c9dc5, 0x9747b28c];
  const take = (n: number): void => {
    a = Math.imul(a ^ n, 0x01000193);
    b = Math.imul(b ^ (n + (a >>> 7)), 0x85ebca6b);
    b ^= b >>> 13;
  };
  for (const sequence of sequences) {
    take(sequence.length);
    for (let i = 0; i < sequence.length; i++) take(sequence[i]!);
  }
  return [a, b].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
}

/** Bytes of a batch's input tensors, each behind its shape. */
export const inputBytes = ({ inputs = {} }: Batch): ArrayLike<number>[] => Object.values(inputs).flatMap((x) => [x.shape, toBytes(x)]);

/** A list of batches, over and over. */
export function cycled(batches: readonly Batch[]): BatchSource {
  if (batches.length === 0) throw new StrutError("data", "there is no batch to train on", { hint: "Give at least one." });
  return {
    batch: (k) => batches[k % batches.length]!,
    epochLength: batches.length,
    fingerprint: fingerprint(
      ...batches.flatMap((batch) => [[batch.ids.length, batch.labels?.length ?? 0], ...batch.ids, ...(batch.labels ?? []), ...inputBytes(batch)]),
    ),
  };
}
