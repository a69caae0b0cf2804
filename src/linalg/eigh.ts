import { scope } from "../tensor/scope.ts";
import { empty, tensor, type Tensor } from "../tensor/tensor.ts";
import { doubles, turned } from "./blocks.ts";
import { tridiagonalEigh, tridiagonalValues } from "./divide-and-conquer.ts";
import { narrowedTo, scaledDoubles, squareExtent } from "./numbers.ts";
import { backTransform, tridiagonalize } from "./tridiagonal.ts";

/** Eigenvalues, ascending, and eigenvectors as the rows of a matrix, all f64. */
export interface EigenRows {
  values: Float64Array;
  rows: Tensor;
}

/** The entry of largest magnitude of a row is made positive, the first one on ties. Whether the row was turned round. */
export function fixSign(row: Float64Array): boolean {
  let at = 0;
  for (let i = 1; i < row.length; i++) if (Math.abs(row[i]!) > Math.abs(row[at]!)) at = i;
  if (!(row[at]! < 0)) return false;
  for (let i = 0; i < row.length; i++) row[i] = -row[i]!;
  return true;
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
  squareExtent(a, what);
  return scaledDoubles(turned(a), what);
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
    return {
      eigenvalues: tensor(
        values.map((x) => x * scale),
        [values.length],
        a.dtype,
      ),
      eigenvectors: turned(narrowedTo(rows, a.dtype)),
    };
  });
}

/** The eigenvalues of `eigh` alone, at about half its cost. */
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
