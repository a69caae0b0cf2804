import { StrutError } from "../errors.ts";
import { scope } from "../tensor/scope.ts";
import { empty, type Tensor } from "../tensor/tensor.ts";
import { doubles, multiplyInto, turned } from "./blocks.ts";
import { choleskyInPlace } from "./cholesky.ts";
import { extents, narrowedTo, scaledRows } from "./numbers.ts";
import { solveTriangularInPlace } from "./triangular.ts";

/** L of the Gram matrix of the rows, with `shift` times its trace added to the diagonal, or undefined if it has none. */
function gramFactor(rows: Tensor, shift: number): Tensor | undefined {
  const n = rows.shape[0]!;
  const gram = empty([n, n], "f64");
  multiplyInto(gram, rows, turned(rows));
  const values = doubles(gram);
  let trace = 0;
  for (let i = 0; i < n; i++) trace += values[i * (n + 1)]!;
  for (let i = 0; i < n; i++) values[i * (n + 1)]! += shift * trace;
  return choleskyInPlace(gram) < 0 ? gram : undefined;
}

/** max |L − I| */
function distanceFromIdentity(factor: Tensor): number {
  const n = factor.shape[0]!;
  return doubles(factor).reduce((most, x, at) => Math.max(most, Math.abs(at % (n + 1) === 0 ? x - 1 : x)), 0);
}

/** Passes after which rows count as dependent; a condition of 1e15 takes four. */
const PASSES = 6;

/**
 * Makes the rows of an f64 matrix (n×m, n ≤ m) orthonormal in place by Cholesky of their Gram: twice, or more often and with a shift where
 * it has no factor (Fukaya et al. 2020, doi:10.1137/18M1218212). Gives L, lower triangular, of rows = L·Q, or undefined if rows are dependent
 * to working precision.
 */
export function orthonormalizeByCholesky(rows: Tensor): Tensor | undefined {
  const [n, m] = rows.shape as [number, number];
  return scope(() => {
    let total: Tensor | undefined;
    for (let pass = 0; pass < PASSES; pass++) {
      const factor = gramFactor(rows, 0) ?? gramFactor(rows, 11 * (m * n + n * (n + 1)) * 2 ** -53);
      if (!factor) return undefined;
      solveTriangularInPlace(factor, rows);
      const before = total;
      total = factor;
      if (before) multiplyInto((total = empty([n, n], "f64")), before, factor);
      // the Gram of well-conditioned rows was right to rounding, so they are orthonormal now
      if (pass > 0 && distanceFromIdentity(factor) < 0.1) return total;
    }
    return undefined;
  });
}

/**
 * A = Q·R of a tall m×n matrix of full rank by CholeskyQR2 (Yamamoto et al. 2015), R with a positive diagonal: products and a small Cholesky
 * alone. The Gram is f64, so Q is orthonormal to n·2⁻⁵², or to 2e-7 where a is f32 and so Q is too.
 * Columns that are dependent to working precision (a condition above about 1e15) are an error.
 *
 * @example
 * const { Q, R } = await choleskyQr2(tensor([3, 0, 4, 5, 0, 0], [3, 2])); // R = [5, 4, 0, 3]
 */
export async function choleskyQr2(a: Tensor): Promise<{ Q: Tensor; R: Tensor }> {
  const [m, n] = extents(a, "choleskyQr2");
  if (m < n) throw new StrutError("shape", `choleskyQr2 needs a matrix at least as tall as wide, this one is ${m}×${n}`, { hint: "Use qr." });
  return scope(() => {
    const { rows, scales } = scaledRows(turned(a), "choleskyQr2");
    const factor = orthonormalizeByCholesky(rows);
    if (!factor)
      throw new StrutError("singular", `choleskyQr2: the ${n} columns are linearly dependent to working precision`, { hint: "qr takes such matrices." });
    const values = doubles(factor);
    for (let i = 0; i < n; i++) for (let j = 0; j <= i; j++) values[i * n + j]! *= scales[i]!;
    return { Q: narrowedTo(turned(rows), a.dtype), R: narrowedTo(turned(factor), a.dtype) };
  });
}
