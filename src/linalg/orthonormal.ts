import { Rng } from "../tensor/rng.ts";
import { scope } from "../tensor/scope.ts";
import { copyOf, empty, type Tensor } from "../tensor/tensor.ts";
import { block, doubles, multiplyInto, turned } from "./blocks.ts";

/** x·y of the first n numbers; four sums, since each waits for the one before it. */
function dot(x: Float64Array, y: Float64Array, n: number): number {
  let [a, b, c, d] = [0, 0, 0, 0];
  let k = 0;
  for (; k + 3 < n; k += 4) {
    a += x[k]! * y[k]!;
    b += x[k + 1]! * y[k + 1]!;
    c += x[k + 2]! * y[k + 2]!;
    d += x[k + 3]! * y[k + 3]!;
  }
  for (; k < n; k++) a += x[k]! * y[k]!;
  return a + b + (c + d);
}

/** L⁻¹ of a symmetric matrix L·Lᵀ (n×n, row-major), both lower triangular; a row that depends on those before becomes zero. */
function inverseFactor(gram: Float64Array, n: number): Float64Array {
  const rowsOf = (x: Float64Array): Float64Array[] => Array.from({ length: n }, (_, i) => x.subarray(i * n, i * n + n));
  const inverse = new Float64Array(n * n);
  const [l, inverses] = [rowsOf(gram), rowsOf(inverse)];
  for (let i = 0; i < n; i++) {
    const [row, own] = [l[i]!, inverses[i]!];
    for (let j = 0; j < i; j++) row[j] = (row[j]! - dot(row, l[j]!, j)) / l[j]![j]!;
    const before = row[i]!;
    const pivot = before - dot(row, row, i);
    own[i] = 1;
    for (let k = 0; k < i; k++) {
      const factor = row[k]!;
      const other = inverses[k]!;
      for (let j = 0; j <= k; j++) own[j]! -= factor * other[j]!;
    }
    row[i] = pivot > 1e-14 * before ? Math.sqrt(pivot) : Infinity;
    const scale = 1 / row[i]!; // 0 for a dependent row
    for (let j = 0; j <= i; j++) own[j]! *= scale;
  }
  return inverse;
}

/**
 * Makes the rows of an f64 matrix orthonormal in place, by Cholesky of their Gram, in passes of which the first has a shift
 * (Fukaya et al. 2020, doi:10.1137/18M1218212): three will do for a condition up to about 1e12, one keeps the span.
 */
export function orthonormalizeRows(rows: Tensor, passes = 3): void {
  const [n] = rows.shape as [number, number];
  if (n === 0) return;
  scope(() => {
    const [gram, inverse] = [empty([n, n], "f64"), empty([n, n], "f64")];
    for (let pass = 0; pass < passes; pass++) {
      multiplyInto(gram, rows, turned(rows));
      const values = doubles(gram);
      let trace = 0;
      for (let i = 0; i < n; i++) trace += values[i * (n + 1)]!;
      if (pass === 0) for (let i = 0; i < n; i++) values[i * (n + 1)]! += 1e-13 * trace;
      doubles(inverse).set(inverseFactor(values, n));
      multiplyInto(rows, inverse, copyOf(rows));
    }
  });
}

/** Subtracts from rows first … last its part in the span of the rows before, which are orthonormal. Twice is enough. */
export function projectOut(all: Tensor, first: number): void {
  const [n, m] = all.shape as [number, number];
  if (first === 0 || first === n) return;
  const [strong, weak] = [block(all, 0, first, 0, m), block(all, first, n, 0, m)];
  scope(() => {
    const products = empty([n - first, first], "f64");
    for (let pass = 0; pass < 2; pass++) {
      multiplyInto(products, weak, turned(strong));
      multiplyInto(weak, products, strong, -1, 1);
    }
  });
}

/**
 * Rows from `first` on become orthonormal to each other and to those before. Rows from `blank` on hold nothing of worth and
 * are drawn anew, always the same.
 */
export function completeRows(all: Tensor, first: number, blank: number): void {
  const [n, m] = all.shape as [number, number];
  if (first === n) return;
  scope(() => {
    const drawn = new Rng(20).normal([n - blank, m], 1 / Math.sqrt(m), "f64");
    doubles(all).set(doubles(drawn), blank * m);
    projectOut(all, blank);
    orthonormalizeRows(block(all, blank, n, 0, m));
    projectOut(all, first);
    orthonormalizeRows(block(all, first, n, 0, m));
    projectOut(all, first);
  });
}
