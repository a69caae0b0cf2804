import { StrutError } from "../errors.ts";
import { isReal } from "../tensor/dtype.ts";
import { scope } from "../tensor/scope.ts";
import { copyOf, empty, hostView, tensor, type Tensor } from "../tensor/tensor.ts";
import { doubles, turned } from "./blocks.ts";
import { tridiagonalEigh, tridiagonalValues } from "./divide-and-conquer.ts";
import { backTransform, tridiagonalize } from "./tridiagonal.ts";

/** Eigenvalues, ascending, and eigenvectors as the rows of a matrix, all f64. */
export interface EigenRows {
  values: Float64Array;
  rows: Tensor;
}

/** The largest magnitude, or a StrutError if it is not finite. */
export function largestMagnitude(a: Tensor, what: string): number {
  const values = hostView(a.contiguous ? a : copyOf(a)) as Float64Array;
  let largest = 0;
  for (let i = 0; i < values.length; i++) {
    const size = Math.abs(values[i]!);
    if (!(size <= largest)) largest = size;
    if (size !== size) break;
  }
  if (Number.isFinite(largest)) return largest;
  throw new StrutError("value", `${what}: the matrix holds ${Number.isNaN(largest) ? "NaN" : "infinity"}; every entry must be finite`, {
    hint: "Look for an overflow, or for a division by zero, in what made the matrix.",
  });
}

export function checkMatrix(a: Tensor, what: string): [number, number] {
  if (a.shape.length === 2 && isReal(a.dtype)) return a.shape as [number, number];
  throw new StrutError("shape", `${what} needs an f32 or f64 matrix, this is ${a.dtype}[${a.shape}]`, { hint: "Cast or reshape it first." });
}

export function checkSquare(a: Tensor, what: string): number {
  const [n, cols] = checkMatrix(a, what);
  if (n === cols) return n;
  throw new StrutError("shape", `${what} needs a square matrix, this one is ${n}×${cols}`);
}

/** The power of two next below; multiplying by its inverse brings x into [1, 2) without rounding. */
export const powerOfTwo = (x: number): number => (x === 0 ? 1 : 2 ** Math.max(-1021, Math.min(1021, Math.floor(Math.log2(x)))));

/** The entry of largest magnitude of a row is made positive, the first one on ties. Whether the row was turned round. */
export function fixSign(row: Float64Array): boolean {
  let at = 0;
  for (let i = 1; i < row.length; i++) if (Math.abs(row[i]!) > Math.abs(row[at]!)) at = i;
  if (!(row[at]! < 0)) return false;
  for (let i = 0; i < row.length; i++) row[i] = -row[i]!;
  return true;
}

/** A copy in f64, times a factor; `a` may have any strides. */
export function scaledDoubles(a: Tensor, factor = 1): Tensor {
  const source = a.contiguous ? a : copyOf(a);
  const out = empty(a.shape, "f64");
  const [to, from] = [doubles(out), hostView(source) as Float64Array];
  if (factor === 1) to.set(from);
  else for (let i = 0; i < to.length; i++) to[i] = from[i]! * factor;
  return out;
}

/** Eigenvectors of the symmetric f64 matrix whose upper triangle `a` holds; its memory is used up. Entries about 1 at most. */
export function eighInPlace(a: Tensor): EigenRows {
  const n = a.shape[0]!;
  return scope(() => {
    const reduced = tridiagonalize(a);
    const { values, order, vectors } = tridiagonalEigh(reduced.diagonal, reduced.offDiagonal);
    backTransform(vectors, reduced);
    const rows = empty([n, n], "f64");
    const [to, from] = [doubles(rows), doubles(vectors)];
    order.forEach((source, i) => {
      to.set(from.subarray(source * n, (source + 1) * n), i * n);
      fixSign(to.subarray(i * n, (i + 1) * n));
    });
    return { values: Float64Array.from(order, (i) => values[i]!), rows };
  });
}

/** The lower triangle as the upper one of an f64 copy, scaled to about 1. */
function prepared(a: Tensor, what: string): { matrix: Tensor; scale: number } {
  checkSquare(a, what);
  const scale = powerOfTwo(largestMagnitude(a, what));
  return { matrix: scaledDoubles(turned(a), 1 / scale), scale };
}

/** Eigenvalues and eigenvectors with a's dtype. */
export interface Eigh {
  eigenvalues: Tensor;
  /** One a column. */
  eigenvectors: Tensor;
}

/**
 * A = V·diag(λ)·Vᵀ of a symmetric n×n matrix, of which the lower triangle is read: λ ascending, V n×n. The entry of largest
 * magnitude of each vector is positive. Computed in f64, with errors about n·2⁻⁵²·‖A‖, and returned in a's dtype.
 *
 * @example
 * const { eigenvalues, eigenvectors } = await eigh(tensor([2, 1, 1, 2], [2, 2]));
 */
export async function eigh(a: Tensor): Promise<Eigh> {
  return scope(() => {
    const { matrix, scale } = prepared(a, "eigh");
    const { values, rows } = eighInPlace(matrix);
    const vectors = a.dtype === "f64" ? rows : narrowed(rows);
    return {
      eigenvalues: tensor(
        values.map((x) => x * scale),
        [values.length],
        a.dtype,
      ),
      eigenvectors: turned(vectors),
    };
  });
}

/** The same numbers in f32. */
export function narrowed(x: Tensor): Tensor {
  const out = empty(x.shape);
  (hostView(out) as Float32Array).set(doubles(x));
  return out;
}

/** The eigenvalues of `eigh` alone, at less than half its cost. */
export async function eigvalsh(a: Tensor): Promise<Tensor> {
  return scope(() => {
    const { matrix, scale } = prepared(a, "eigvalsh");
    const { diagonal, offDiagonal } = tridiagonalize(matrix);
    const values = tridiagonalValues(diagonal, offDiagonal);
    return tensor(
      values.map((x) => x * scale),
      [values.length],
      a.dtype,
    );
  });
}
