import { StrutError } from "../errors.ts";
import {
  csrIndex,
  flatIndex,
  hostNumbers,
  packBits,
  reshape,
  sparseLinear,
  sparseMatmul,
  tensor,
  unpackBits,
  type Real,
  type SparseIndex,
  type Tensor,
} from "../tensor/index.ts";
import { costOf, fits, oneHot, rowsOf, type LinearOperator } from "./operator.ts";

type Shape = readonly [number, number];

function sparse(
  kind: string,
  index: SparseIndex,
  values: Tensor,
  parts: LinearOperator["parts"],
  options: NonNullable<LinearOperator["options"]>,
): LinearOperator {
  const { rows: out, cols } = index.forward;
  const along =
    (transposed: boolean) =>
    (x: Tensor): Tensor => {
      const [from, to] = transposed ? [out, cols] : [cols, out];
      if (x.shape.at(-1) !== from) throw new StrutError("shape", `${kind}: x must end in ${from}, got [${x.shape}]`);
      return reshape(sparseLinear(index, values, reshape(x, [rowsOf(x), from]), transposed), [...x.shape.slice(0, -1), to]);
    };
  return {
    kind,
    out,
    in: cols,
    parts,
    options,
    apply: along(false),
    applyTransposed: along(true),
    toDense: () => sparseMatmul(index, values, oneHot([...Array(cols).keys()], values.dtype as Real)),
    cost: () => costOf(parts, 2 * values.size),
  };
}

/**
 * Compressed rows: row r holds values[k] at columns[k] for k from rowPointers[r] up to rowPointers[r+1].
 *
 * @example
 * const w = csr(ones([2]), tensor([2, 0], [2], "i32"), tensor([0, 1, 2], [3], "i32"), 3);
 */
export function csr(values: Tensor, columns: Tensor, rowPointers: Tensor, cols: number): LinearOperator {
  fits(values.size === columns.size, "csr", "one column for each value", values, columns);
  return sparse("csr", csrIndex(rowPointers, columns, cols), values, { values, columns, rowPointers }, { cols });
}

/**
 * Values at flat indices row·in + column (i32), in any order; values at one place add up. SLTrain, SaRA and DSEE train the values.
 *
 * @example
 * const w = flatSparse(ones([2]), tensor([5, 0], [2], "i32"), [2, 3]);
 */
export function flatSparse(values: Tensor, indices: Tensor, [out, cols]: Shape): LinearOperator {
  fits(values.size === indices.size, "flat-sparse", "one index for each value", values, indices);
  return sparse("flat-sparse", flatIndex(indices, out, cols), values, { values, indices }, { shape: [out, cols] });
}

/** Bits of a place within M neighbours. */
function placeBits([n, m]: Shape, cols: number): number {
  const bits = Math.log2(m);
  if (Number.isInteger(bits) && bits >= 1 && bits <= 8 && n >= 1 && n <= m && cols % m === 0) return bits;
  throw new StrutError("range", `n-of-m: ${n} of ${m} in rows of ${cols}: M must be 2, 4, … 256, N at most M, and M divide the row`);
}

/**
 * N of every M neighbours in a row are kept: values [out, in/M·N], and the place of each within its M, packed in log₂M bits.
 * `placesOf` says which; 2:4 and 4:8 are the usual ones.
 *
 * @example
 * const w = nOfM(ones([1, 2]), packBits(tensor([0, 3], [2], "i32"), 2), [2, 4], 4);
 */
export function nOfM(values: Tensor, places: Tensor, [n, m]: Shape, cols: number): LinearOperator {
  const bits = placeBits([n, m], cols);
  const [out, kept] = values.shape as [number, number];
  fits(kept === (cols / m) * n, "n-of-m", `values out×${(cols / m) * n}`, values);
  const within = hostNumbers(unpackBits(places, [out * kept], bits)) as Int32Array;
  const columns = within.map((place, k) => Math.floor((k % kept) / n) * m + place);
  const pointers = Int32Array.from({ length: out + 1 }, (_, r) => r * kept);
  const index = csrIndex(tensor(pointers, [out + 1], "i32"), tensor(columns, [columns.length], "i32"), cols);
  return sparse("n-of-m", index, values, { values, places }, { n, m, cols });
}

/**
 * The N largest of every M neighbours of a matrix by magnitude, with their places packed: what nOfM takes.
 *
 * @example
 * const { values, places } = largestOfM(ones([2, 8]), [2, 4]);
 */
export function largestOfM(weight: Tensor, [n, m]: Shape): { values: Tensor; places: Tensor } {
  const [out, cols] = weight.shape as [number, number];
  const bits = placeBits([n, m], cols);
  const numbers = hostNumbers(weight) as Float32Array;
  const kept: number[] = [];
  const places: number[] = [];
  for (let start = 0; start < out * cols; start += m) {
    const order = Array.from({ length: m }, (_, i) => i).sort((a, b) => Math.abs(numbers[start + b]!) - Math.abs(numbers[start + a]!));
    for (const place of order.slice(0, n).sort((a, b) => a - b)) {
      places.push(place);
      kept.push(numbers[start + place]!);
    }
  }
  return { values: tensor(kept, [out, (cols / m) * n], weight.dtype), places: packBits(tensor(places, [places.length], "i32"), bits) };
}
