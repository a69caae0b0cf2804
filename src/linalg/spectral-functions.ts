import { StrutError } from "../errors.ts";
import { Rng } from "../tensor/rng.ts";
import { scope } from "../tensor/scope.ts";
import { empty, tensor, type Tensor } from "../tensor/tensor.ts";
import { doubles, multiplyInto, turned } from "./blocks.ts";
import { eighInPlace } from "./eigh.ts";
import { largestMagnitude, narrowedTo, scaledDoubles, squareExtent, widened } from "./numbers.ts";
import { rowProducts, type ProductOperator } from "./products.ts";
import { singularRows } from "./svd.ts";

/** leftᵀ·diag(d)·right for f64 rows, in the wanted dtype. */
function weighted(left: Tensor, d: ArrayLike<number>, right: Tensor, dtype: Tensor["dtype"]): Tensor {
  const [r, n] = right.shape as [number, number];
  const scaled = widened(right);
  const values = doubles(scaled);
  for (let i = 0; i < r; i++) for (let at = i * n; at < (i + 1) * n; at++) values[at]! *= d[i]!;
  const out = empty([left.shape[1]!, n], "f64");
  multiplyInto(out, turned(left), scaled);
  return narrowedTo(out, dtype);
}

/**
 * A = U·P with U m×n of orthonormal columns (rows, if m < n) and P n×n symmetric positive semidefinite, by the SVD.
 *
 * @example
 * const { U, P } = await polar(tensor([0, -2, 3, 0], [2, 2]));
 */
export async function polar(a: Tensor): Promise<{ U: Tensor; P: Tensor }> {
  return scope(() => {
    const { left, values, right } = singularRows(a, "polar");
    return {
      U: weighted(
        left,
        values.map(() => 1),
        right,
        a.dtype,
      ),
      P: weighted(right, values, right, a.dtype),
    };
  });
}

/**
 * Moore–Penrose inverse V·Σ⁺·Uᵀ, n×m; σ ≤ rtol·σ₁ count as zero. rtol defaults to max(m, n) times the dtype's epsilon.
 *
 * @example
 * const inverse = await pseudoInverse(tensor([1, 2, 3, 4, 5, 6], [3, 2]));
 */
export async function pseudoInverse(a: Tensor, { rtol }: { rtol?: number } = {}): Promise<Tensor> {
  return scope(() => {
    const { left, values, right } = singularRows(a, "pseudoInverse");
    const limit = (rtol ?? Math.max(...a.shape) * (a.dtype === "f64" ? 2 ** -52 : 2 ** -23)) * (values[0] ?? 0);
    return weighted(
      right,
      values.map((x) => (x > limit ? 1 / x : 0)),
      left,
      a.dtype,
    );
  });
}

/** V·diag(f(λ))·Vᵀ of a symmetric matrix without negative eigenvalues; rounding below zero counts as zero. */
function ofGram(gram: Tensor, what: string, f: (x: number, largest: number) => number): Tensor {
  return scope(() => {
    const n = squareExtent(gram, what);
    const { matrix, scale } = scaledDoubles(turned(gram), what);
    const { values, rows } = eighInPlace(matrix);
    const largest = Math.max(values[n - 1] ?? 0, 0);
    const rounding = 8 * n * (gram.dtype === "f64" ? 2 ** -52 : 2 ** -23) * Math.max(largest, -(values[0] ?? 0));
    if (values[0]! < -rounding)
      throw new StrutError("value", `${what}: the matrix has the eigenvalue ${values[0]! * scale}; none may be negative`, {
        hint: "Pass a symmetric positive semidefinite matrix, such as XᵀX.",
      });
    const mapped = values.map((x) => f(Math.max(x, 0) * scale, largest * scale));
    return weighted(rows, mapped, rows, gram.dtype);
  });
}

/** (G + damping·I)^½ of a symmetric positive semidefinite G; damping defaults to 0. */
export async function matrixSquareRoot(gram: Tensor, { damping = 0 }: { damping?: number } = {}): Promise<Tensor> {
  return ofGram(gram, "matrixSquareRoot", (x) => Math.sqrt(x + damping));
}

/**
 * (G + damping·I)^−½ of a symmetric positive semidefinite G. Eigenvalues (damped) up to tolerance·largest give 0, as in a
 * pseudo-inverse; damping defaults to 0, tolerance to n times the dtype's epsilon.
 *
 * @example
 * const whitening = await inverseSquareRoot(tensor([4, 0, 0, 9], [2, 2]), { damping: 1e-6 });
 */
export async function inverseSquareRoot(gram: Tensor, { damping = 0, tolerance }: { damping?: number; tolerance?: number } = {}): Promise<Tensor> {
  const relative = tolerance ?? (gram.shape[0] ?? 0) * (gram.dtype === "f64" ? 2 ** -52 : 2 ** -23);
  return ofGram(gram, "inverseSquareRoot", (x, largest) => (x + damping > relative * (largest + damping) ? 1 / Math.sqrt(x + damping) : 0));
}

export interface PowerIteration {
  sigma: number;
  /** rows, cols; both of length 1. */
  u: Tensor;
  v: Tensor;
  iterations: number;
  converged: boolean;
}

function normalized(x: Tensor): number {
  const values = doubles(x);
  let sum = 0;
  for (const value of values) sum += value * value;
  const norm = Math.sqrt(sum);
  if (norm > 0) for (let i = 0; i < values.length; i++) values[i]! /= norm;
  return norm;
}

/**
 * The largest singular triple by alternating products with A and Aᵀ, until σ changes by at most tolerance·σ.
 * `iterations` (at most) defaults to 100, `tolerance` to 1e-6, `rng` to seed 0.
 *
 * @example
 * const { sigma } = await powerIteration(tensor([2, 0, 0, 1], [2, 2]));
 */
export async function powerIteration(
  source: Tensor | ProductOperator,
  { iterations = 100, tolerance = 1e-6, rng = new Rng(0) }: { iterations?: number; tolerance?: number; rng?: Rng } = {},
): Promise<PowerIteration> {
  return scope(() => {
    const a = rowProducts(source, "powerIteration");
    const like = (x: Tensor): Tensor => narrowedTo(x, a.dtype);
    let v = widened(rng.normal([1, a.cols], 1, a.dtype));
    normalized(v);
    let u = empty([1, a.rows], "f64");
    let [sigma, done, converged] = [0, 0, false];
    while (done < iterations && !converged) {
      u = widened(a.forward(like(v)));
      largestMagnitude(u, "powerIteration");
      normalized(u);
      v = widened(a.backward(like(u)));
      const now = normalized(v);
      converged = Math.abs(now - sigma) <= tolerance * now;
      sigma = now;
      done++;
    }
    const vector = (x: Tensor): Tensor => tensor(doubles(x), [x.size], a.dtype);
    return { sigma, u: vector(u), v: vector(v), iterations: done, converged };
  });
}
