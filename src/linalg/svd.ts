import { StrutError } from "../errors.ts";
import { kernels } from "../tensor/engine.ts";
import { scope } from "../tensor/scope.ts";
import { empty, tensor, type Tensor } from "../tensor/tensor.ts";
import { block, doubles, multiplyInto, turned } from "./blocks.ts";
import { tridiagonalValues } from "./divide-and-conquer.ts";
import { eighInPlace, fixSign } from "./eigh.ts";
import { extents, narrowedTo, scaledDoubles } from "./numbers.ts";
import { completeRows } from "./orthonormal.ts";
import { tridiagonalize } from "./tridiagonal.ts";

/** A = U·diag(S)·Vh with a's dtype; r = min(m, n). */
export interface Svd {
  /** m×r, orthonormal columns. */
  U: Tensor;
  /** r, descending. */
  S: Tensor;
  /** r×n, orthonormal rows. */
  Vh: Tensor;
}

/** Singular vectors as rows, in f64: left r×m, right r×n. */
export interface SingularRows {
  left: Tensor;
  values: Float64Array;
  right: Tensor;
}

const BAND = 256;
const SWEEPS = 40;

/** Upper triangle of A·Aᵀ for f64 rows, in bands. */
function gramOfRows(a: Tensor): Tensor {
  const [n, m] = a.shape as [number, number];
  const gram = empty([n, n], "f64");
  for (let top = 0; top < n; top += BAND) {
    const bottom = Math.min(n, top + BAND);
    multiplyInto(block(gram, top, bottom, top, n), block(a, top, bottom, 0, m), turned(block(a, top, n, 0, m)));
  }
  return gram;
}

/** `a` scaled to about 1 in f64 and turned so that it has no more columns than rows. */
function prepared(a: Tensor, what: string): { tall: Tensor; scale: number; wide: boolean } {
  const [m, n] = extents(a, what);
  const { matrix, scale } = scaledDoubles(a, what);
  return { tall: m < n ? turned(matrix) : matrix, scale, wide: m < n };
}

function norms(rows: Tensor): Float64Array {
  const [n, m] = rows.shape as [number, number];
  const values = doubles(rows);
  return Float64Array.from({ length: n }, (_, i) => {
    let sum = 0;
    for (let at = i * m; at < (i + 1) * m; at++) sum += values[at]! * values[at]!;
    return Math.sqrt(sum);
  });
}

function reversed(x: Tensor): Tensor {
  const [n, m] = x.shape as [number, number];
  const out = empty([n, m], "f64");
  for (let i = 0; i < n; i++) doubles(out).set(doubles(x).subarray((n - 1 - i) * m, (n - i) * m), i * m);
  return out;
}

/** Rotates the rows of U·Σ until they are orthogonal to f64 rounding; the Gram has left those below 1e-8·σ₁ mixed. */
function jacobi(left: Tensor, right: Tensor): void {
  const [n, m] = left.shape as [number, number];
  const off = empty([Math.max(1, Math.ceil(n / 2))], "f64");
  const tolerance = 8 * Math.sqrt(Math.max(m, 4)) * 2 ** -52;
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    kernels().jacobi_sweep(left, right, off, n, m, tolerance);
    if (!doubles(off).some((cosine) => cosine > tolerance)) return;
  }
  throw new StrutError("convergence", `svd: the rows are not orthogonal after ${SWEEPS} sweeps`, { hint: "Please report the matrix." });
}

/** Rows in another order. */
function sortRows(x: Tensor, order: readonly number[]): Tensor {
  const [n, m] = x.shape as [number, number];
  const out = empty([n, m], "f64");
  order.forEach((from, i) => doubles(out).set(doubles(x).subarray(from * m, (from + 1) * m), i * m));
  return out;
}

/**
 * Singular rows of a tall f64 matrix with entries about 1. With `exact` to f64 rounding, else to that of f32: right vectors
 * from the Gram's eigenvectors, left ones as A·v/σ. Those that this does not settle are made orthonormal again, and those
 * whose σ is noise are completed.
 */
function tallSvd(tall: Tensor, exact: boolean): SingularRows {
  const [m, n] = tall.shape as [number, number];
  return scope(() => {
    let right = reversed(eighInPlace(gramOfRows(turned(tall))).rows);
    let left = empty([n, m], "f64");
    multiplyInto(left, right, turned(tall));
    if (exact) jacobi(left, right);
    let values = norms(left);
    const order = [...values.keys()].sort((i, j) => values[j]! - values[i]!);
    if (order.some((from, i) => from !== i)) {
      [left, right] = [sortRows(left, order), sortRows(right, order)];
      values = Float64Array.from(order, (i) => values[i]!);
    }
    const top = values[0] ?? 0;
    const noise = Math.max(top * (exact ? Math.max(m, n) * 2 ** -52 * 1e-3 : 1e-7), 1e-140);
    const trusted = exact ? noise : top * 1e-4;
    const count = (limit: number): number => values.findIndex((x) => !(x > limit));
    const [weak, blank] = [count(trusted), count(noise)].map((at) => (at < 0 ? n : at)) as [number, number];
    const rows = doubles(left);
    for (let i = 0; i < blank; i++) for (let at = i * m; at < (i + 1) * m; at++) rows[at]! /= values[i]!;
    completeRows(left, weak, blank);
    return { left, values, right };
  });
}

/** Singular rows of any f32 or f64 matrix, in f64; the left ones follow the sign rule. */
export function singularRows(a: Tensor, what: string): SingularRows {
  return scope(() => {
    const { tall, scale, wide } = prepared(a, what);
    const found = tallSvd(tall, a.dtype === "f64");
    const [left, right] = wide ? [found.right, found.left] : [found.left, found.right];
    const values = found.values.map((x) => x * scale);
    const [r, m] = left.shape as [number, number];
    const n = right.shape[1]!;
    const [u, v] = [doubles(left), doubles(right)];
    for (let i = 0; i < r; i++) if (fixSign(u.subarray(i * m, (i + 1) * m))) for (let at = i * n; at < (i + 1) * n; at++) v[at] = -v[at]!;
    return { left, values, right };
  });
}

/**
 * Thin singular value decomposition A = U·diag(S)·Vh of an m×n matrix: U m×r, S r descending, Vh r×n, r = min(m, n). The
 * entry of largest magnitude of each column of U is positive. f32: by the f64 Gram of the smaller side, to f32 rounding.
 * f64: the same, then one-sided Jacobi (Drmač & Veselić 2008, doi:10.1137/050639193), errors about n·2⁻⁵²·σ₁ at any condition.
 *
 * @example
 * const { U, S, Vh } = await svd(tensor([3, 0, 4, 5], [2, 2]));
 */
export async function svd(a: Tensor): Promise<Svd> {
  return scope(() => {
    const { left, values, right } = singularRows(a, "svd");
    const like = (x: Tensor): Tensor => narrowedTo(x, a.dtype);
    return { U: turned(like(left)), S: tensor(values, [values.length], a.dtype), Vh: like(right) };
  });
}

/** The singular values of `svd`, descending; for f32 at less than half its cost. */
export async function singularValues(a: Tensor): Promise<Tensor> {
  return scope(() => {
    const { tall, scale } = prepared(a, "singularValues");
    if (a.dtype === "f64") {
      const { values } = tallSvd(tall, true);
      return tensor(
        values.map((x) => x * scale),
        [values.length],
        "f64",
      );
    }
    const { diagonal, offDiagonal } = tridiagonalize(gramOfRows(turned(tall)));
    const values = tridiagonalValues(diagonal, offDiagonal).reverse();
    return tensor(
      values.map((x) => scale * Math.sqrt(Math.max(x, 0))),
      [values.length],
    );
  });
}
