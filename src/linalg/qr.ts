import { scope } from "../tensor/scope.ts";
import { zeros, type Tensor } from "../tensor/tensor.ts";
import { doubles, turned } from "./blocks.ts";
import { extents, narrowedTo, scaledRows } from "./numbers.ts";
import { householder, orthogonalRows } from "./householder.ts";

export interface Qr {
  /** m×k with orthonormal columns; absent in mode "r". */
  Q?: Tensor;
  /** k×n, upper triangular, with a diagonal of at least 0. */
  R: Tensor;
}

export interface QrOptions {
  /** "reduced": k = min(m, n); "complete": k = m; "r": R of "reduced" alone. Defaults to "reduced". */
  mode?: "reduced" | "complete" | "r";
}

/** R, and the signs that make its diagonal at least 0. */
function upperOf(columns: Tensor, scales: Float64Array, rows: number): { R: Tensor; signs: Float64Array } {
  const [n, m] = columns.shape as [number, number];
  const lower = zeros([n, rows], "f64");
  const [to, from] = [doubles(lower), doubles(columns)];
  const signs = new Float64Array(Math.min(m, n));
  for (let j = 0; j < n; j++) {
    if (j < signs.length) signs[j] = from[j * m + j]! < 0 ? -1 : 1;
    const end = Math.min(j + 1, signs.length);
    for (let i = 0; i < end; i++) to[j * rows + i] = from[j * m + i]! * signs[i]! * scales[j]!;
  }
  return { R: turned(lower), signs };
}

/**
 * A = Q·R of an m×n matrix by blocked Householder reflections (Schreiber and Van Loan 1989), R with a diagonal of at least 0.
 * Computed in f64, each column scaled by a power of two, and returned in a's dtype: before that rounding
 * ‖A − Q·R‖ ≤ 10·max(m, n)·2⁻⁵²·‖A‖, column by column, and ‖Qᵀ·Q − I‖ ≤ 10·max(m, n)·2⁻⁵². Entries that are not finite are an error.
 *
 * @example
 * const { Q, R } = await qr(tensor([3, 1, 4, 2], [2, 2]));
 */
export async function qr(a: Tensor, options: { mode: "r" }): Promise<{ R: Tensor }>;
export async function qr(a: Tensor, options?: { mode?: "reduced" | "complete" }): Promise<{ Q: Tensor; R: Tensor }>;
export async function qr(a: Tensor, { mode = "reduced" }: QrOptions = {}): Promise<Qr> {
  const [m, n] = extents(a, "qr");
  return scope(() => {
    const { rows: columns, scales } = scaledRows(turned(a), "qr");
    const reflectors = householder(columns);
    const { R, signs } = upperOf(columns, scales, mode === "complete" ? m : Math.min(m, n));
    if (mode === "r") return { R: narrowedTo(R, a.dtype) };
    const rows = orthogonalRows(reflectors, R.shape[0]!);
    const values = doubles(rows);
    signs.forEach((sign, j) => {
      if (sign < 0) for (let i = j * m; i < (j + 1) * m; i++) values[i] = -values[i]!;
    });
    return { Q: narrowedTo(turned(rows), a.dtype), R: narrowedTo(R, a.dtype) };
  });
}
