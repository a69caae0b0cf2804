import { kernels } from "../tensor/engine.ts";
import { scope } from "../tensor/scope.ts";
import { copyOf, empty, hostView, zeros, type Tensor } from "../tensor/tensor.ts";
import { selectSlices } from "../tensor/ops/shape.ts";
import { block, doubles, turned } from "./blocks.ts";
import { extents, narrowedTo, scaledDoubles } from "./numbers.ts";
import { applyReflectors, householder, type Reflectors } from "./householder.ts";
import { rightHandSides, solveTriangularInPlace } from "./triangular.ts";

/** Q in reflectors and R, k×k upper triangular, as a view, of the tall matrix whose columns are the rows of `columns`. */
function factored(columns: Tensor): { reflectors: Reflectors; R: Tensor } {
  const reflectors = householder(columns);
  const n = columns.shape[0]!;
  return { reflectors, R: turned(block(columns, 0, n, 0, n)) };
}

const norm = (a: Tensor): number => Math.sqrt(doubles(copyOf(a)).reduce((sum, x) => sum + x * x, 0));

/** Whether σ_min > rcond·σ_max for certain: ‖R‖·‖R⁻¹‖ bounds their ratio. */
function wellConditioned(R: Tensor, rcond: number): boolean {
  const n = R.shape[0]!;
  const inverse = zeros([n, n], "f64");
  const values = doubles(inverse);
  for (let i = 0; i < n; i++) values[i * (n + 1)] = 1;
  solveTriangularInPlace(R, inverse, { upper: true });
  return norm(R) * norm(inverse) * rcond < 1;
}

/** The rows of `part` as the first ones of a matrix of zeros. */
function padded(part: Tensor, rows: number): Tensor {
  const [out, source] = [zeros([rows, part.shape[1]!], "f64"), copyOf(part)];
  doubles(out).set(doubles(source));
  return out;
}

/** Columns of a matrix are rows of `columns` here and below: Q·x or Qᵀ·x of the columns of x. */
function applied(reflectors: Reflectors, x: Tensor, transpose: boolean): Tensor {
  const columns = copyOf(turned(x));
  applyReflectors(columns, reflectors, transpose);
  return copyOf(turned(columns));
}

/** x of least norm among those that minimise ‖S·x − c‖, for a square S, and its rank, by QR with column pivoting and QR of what is left. */
function leastNorm(S: Tensor, c: Tensor, rcond: number): { x: Tensor; rank: number } {
  const n = S.shape[0]!;
  const [columns, order, norms] = [copyOf(turned(S)), empty([n], "i32"), empty([n], "f64")];
  kernels().pivot_order(copyOf(columns), order, norms, n, n, n);
  const places = (hostView(order) as Int32Array).slice();
  const pivoted = selectSlices(columns, 0, places);
  const { reflectors, R } = factored(pivoted);
  const diagonal = Array.from({ length: n }, (_, i) => Math.abs(doubles(pivoted)[i * (n + 1)]!));
  const small = diagonal.findIndex((x) => !(x > rcond * diagonal[0]!));
  const rank = small < 0 ? n : small;
  const right = block(applied(reflectors, c, true), 0, rank, 0, c.shape[1]!);
  // the first rows of R are T'·Zᵀ, so the solution is Z·T'⁻¹·right
  const across = copyOf(block(R, 0, rank, 0, n));
  const { reflectors: Z, R: T } = factored(across);
  const y = copyOf(right);
  solveTriangularInPlace(turned(T), y);
  const x = applied(Z, padded(y, n), false);
  const back = new Int32Array(n);
  places.forEach((from, to) => (back[from] = to));
  return { x: selectSlices(x, 0, back), rank };
}

export interface LeastSquares {
  /** n×k */
  solution: Tensor;
  /** How many singular values of A count. */
  rank: number;
}

/**
 * X that minimises ‖A·X − B‖ for an m×n matrix A and B m×k, the one of least norm where there are many, by Householder QR of A or of Aᵀ.
 * Where their condition exceeds 1/rcond, QR with column pivoting of the triangle decides on the rank: a diagonal entry of at most
 * rcond times the first ends it; rcond defaults to max(m, n) times a's epsilon. Computed in f64 and returned in a's dtype.
 *
 * @example
 * const { solution, rank } = await leastSquares(tensor([1, 1, 1, 2, 1, 3], [3, 2]), tensor([1, 2, 3], [3, 1])); // [0, 1]
 */
export async function leastSquares(a: Tensor, b: Tensor, { rcond }: { rcond?: number } = {}): Promise<LeastSquares> {
  const [m, n] = extents(a, "leastSquares");
  const limit = rcond ?? Math.max(m, n) * (a.dtype === "f32" ? 2 ** -23 : 2 ** -52);
  return scope(() => {
    const { matrix, scale } = scaledDoubles(m < n ? turned(a) : a, "leastSquares");
    const right = rightHandSides(b, m, "leastSquares");
    const { reflectors, R } = factored(copyOf(turned(matrix)));
    const k = R.shape[0]!;
    // S is R, of A = Q·R, or Rᵀ, of Aᵀ = Q·R
    const S = m < n ? turned(R) : R;
    const c = m < n ? right : copyOf(block(applied(reflectors, right, true), 0, k, 0, right.shape[1]!));
    let rank = k;
    let x = c;
    if (wellConditioned(R, limit)) solveTriangularInPlace(S, x, { upper: m >= n });
    else ({ x, rank } = leastNorm(S, c, limit));
    const solution = m < n ? applied(reflectors, padded(x, n), false) : x;
    const values = doubles(solution);
    for (let i = 0; i < values.length; i++) values[i]! /= scale;
    return { solution: narrowedTo(solution, a.dtype), rank };
  });
}
