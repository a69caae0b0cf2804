import { StrutError } from "../../errors.ts";
import { hostNumbers, tensor, type Tensor } from "../tensor.ts";
import { mul } from "./elementwise.ts";
import { embedding } from "./nn.ts";
import { segmentSum } from "./scatter.ts";
import { reshape } from "./shape.ts";

export interface EmbeddingBagOptions {
  /** Defaults to `mean`, as in torch. An empty bag gives 0. */
  mode?: "sum" | "mean";
  /** Where each bag starts in a flat list of ids [n]; the first is 0. */
  offsets?: ArrayLike<number>;
  /** For ids [bags, length]: 1 where there is an id, 0 where there is padding. */
  mask?: Tensor;
  /** A factor for each id, of the shape of ids; for `sum` only. */
  perSampleWeights?: Tensor;
}

/**
 * Sum or mean of the rows of a table for bags of ids: ids [n] with `offsets`, or [bags, length] with padding masked out → [bags, dim].
 *
 * @example
 * const y = embeddingBag(ones([10, 4]), tensor([1, 2, 3], [3], "i32"), { offsets: [0, 2] }); // [2, 4]
 */
export function embeddingBag(table: Tensor, ids: Tensor, { mode = "mean", offsets, mask, perSampleWeights }: EmbeddingBagOptions = {}): Tensor {
  if (ids.shape.length !== (offsets ? 1 : 2) || (offsets && mask))
    throw new StrutError("shape", `embeddingBag: ids are [${ids.shape}]; expected [n] with offsets, or [bags, length] with or without a mask`);
  if (perSampleWeights && (mode !== "sum" || String(perSampleWeights.shape) !== String(ids.shape)))
    throw new StrutError("option", `embeddingBag: perSampleWeights need mode "sum" and the shape of ids, got ${mode} and [${perSampleWeights.shape}]`);
  const all = Array.from(hostNumbers(ids), Number);
  const bags = offsets ? offsets.length : ids.shape[0]!;
  const bagOf = offsets ? bagsAt(offsets, all.length) : all.map((_, at) => Math.floor(at / ids.shape[1]!));
  const present = mask && Array.from(hostNumbers(mask), Number);
  if (present && present.length !== all.length) throw new StrutError("shape", `embeddingBag: the mask is [${mask.shape}], the ids [${ids.shape}]`);
  const kept = all.flatMap((_, at) => (present && present[at] === 0 ? [] : [at]));
  const list = (values: number[]): Tensor => tensor(values, [values.length], "i32");
  let rows = embedding(table, list(kept.map((at) => all[at]!)));
  if (perSampleWeights) rows = mul(rows, embedding(reshape(perSampleWeights, [all.length, 1]), list(kept)));
  const counts = new Array<number>(bags).fill(0);
  for (const at of kept) counts[bagOf[at]!]!++;
  let end = 0;
  const sums = segmentSum(rows, [0, ...counts.map((count) => (end += count))]);
  if (mode === "sum") return sums;
  return mul(
    sums,
    tensor(
      counts.map((count) => 1 / Math.max(1, count)),
      [bags, 1],
      table.dtype,
    ),
  );
}

/** The bag of each id of a flat list. */
function bagsAt(offsets: ArrayLike<number>, n: number): number[] {
  const starts = Array.from(offsets);
  if (starts[0] !== 0 || starts.some((start, i) => !Number.isInteger(start) || start > n || start < (starts[i - 1] ?? 0)))
    throw new StrutError("range", `embeddingBag: offsets [${starts}] must start at 0 and rise within ${n} ids`);
  return starts.flatMap((start, bag) => new Array<number>((starts[bag + 1] ?? n) - start).fill(bag));
}
