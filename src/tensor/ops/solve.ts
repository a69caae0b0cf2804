import { StrutError } from "../../errors.ts";
import { isReal } from "../dtype.ts";
import { kernels } from "../engine.ts";
import { needsGradient, record } from "../tape.ts";
import { copyOf, empty, hostView, sizeOf, zeros, type Tensor } from "../tensor.ts";
import { gemmInto } from "./matmul.ts";
import { broadcastShape, contiguous, expand, reshape, selectSlices, transpose } from "./shape.ts";

/** Rows of the matrices that these operations take, which they solve one by one; `linalg` has those of any size. */
const MOST = 128;

/** Batch extents, batch size and rows of square matrices. */
function square(a: Tensor, what: string): { batchShape: readonly number[]; batch: number; n: number } {
  const [n, cols] = a.shape.slice(-2) as [number, number];
  if (a.shape.length < 2 || n !== cols || !isReal(a.dtype))
    throw new StrutError("shape", `${what} needs square f32 or f64 matrices, this is ${a.dtype}[${a.shape}]`);
  if (n > MOST)
    throw new StrutError("shape", `${what} takes matrices of up to ${MOST} rows, these have ${n}`, {
      hint: "strut/linalg has awaited factorisations and solves of any size.",
    });
  const batchShape = a.shape.slice(0, -2);
  return { batchShape, batch: sizeOf(batchShape), n };
}

/** alpha·a·b for batches that lie contiguous, or transposed. */
function product(a: Tensor, b: Tensor, alpha = 1): Tensor {
  const out = empty([...a.shape.slice(0, -1), b.shape.at(-1)!], a.dtype);
  gemmInto(out, a, b, { alpha });
  return out;
}

/** Which matrix of a batch, in words. */
const entry = (i: number, batchShape: readonly number[]): string => (batchShape.length === 0 ? "the matrix" : `matrix ${i} of the batch`);

/** Both operands with the same batch axes; `expand` sums their gradients. */
function sameBatch(a: Tensor, b: Tensor): [Tensor, Tensor] {
  const batchShape = broadcastShape(a.shape.slice(0, -2), b.shape.slice(0, -2));
  const spread = (x: Tensor): Tensor => {
    const shape = [...batchShape, ...x.shape.slice(-2)];
    return String(shape) === String(x.shape) ? x : expand(x, shape);
  };
  return [contiguous(spread(a)), contiguous(spread(b))];
}

/** Sets everything beyond a triangle to 0 and multiplies the diagonal, in place. */
function keepTriangle(x: Tensor, upper: boolean, diagonal: number): Tensor {
  const n = x.shape.at(-1)!;
  const values = hostView(x) as Float64Array;
  for (let row = 0; row * n < x.size; row++) {
    const i = row % n;
    if (upper) values.fill(0, row * n, row * n + i);
    else values.fill(0, row * n + i + 1, (row + 1) * n);
    values[row * n + i]! *= diagonal;
  }
  return x;
}

export interface TriangularSolveOptions {
  /** Whether the upper triangle is read; defaults to the lower one. */
  upper?: boolean;
  /** Solves with Aᵀ in A's place. */
  transpose?: boolean;
  /** Whether the diagonal counts as ones and is not read. */
  unitriangular?: boolean;
  /** Whether A stands on the left, A·X = B, as it does by default, or on the right, X·A = B. */
  left?: boolean;
}

/** A⁻¹·b, or A⁻ᵀ·b, in a new tensor; batches of contiguous matrices. */
function substituted(a: Tensor, b: Tensor, upper: boolean, transposed: boolean, unit: boolean): Tensor {
  const { batch, n } = square(a, "triangularSolve");
  const [rhs, out] = [b.shape.at(-1)!, copyOf(b)];
  const [row, col] = transposed ? [1, n] : [n, 1];
  kernels().triangular_solve(a, out, batch, n, rhs, n * n, row, col, n * rhs, rhs, 1, Number(upper !== transposed), Number(unit));
  return out;
}

/**
 * X of A·X = B for triangular matrices of up to 128 rows, of which one triangle is read; leading axes are batch and broadcast.
 * A zero on a diagonal is an error.
 *
 * @example
 * const x = triangularSolve(tensor([2, 0, 1, 4], [2, 2]), tensor([2, 9], [2, 1])); // [1, 2]
 */
export function triangularSolve(a: Tensor, b: Tensor, options: TriangularSolveOptions = {}): Tensor {
  const { upper = false, transpose: transposed = false, unitriangular = false, left = true } = options;
  if (!left) return transpose(triangularSolve(a, transpose(b), { upper, transpose: !transposed, unitriangular }));
  const { batchShape, n } = square(a, "triangularSolve");
  checkRows(a, b, "triangularSolve");
  if (!unitriangular) {
    const source = a.contiguous ? a : copyOf(a);
    const values = hostView(source);
    for (let row = 0; row * n < source.size; row++)
      if (values[row * n + (row % n)] === 0)
        throw new StrutError("singular", `triangularSolve: ${entry(Math.floor(row / n), batchShape)} is singular, entry ${row % n} of its diagonal is 0`);
  }
  const [matrix, rhs] = sameBatch(a, b);
  const out = substituted(matrix, rhs, upper, transposed, unitriangular);
  return record(out, [matrix, rhs], (g) => {
    const db = substituted(matrix, contiguous(g), upper, !transposed, unitriangular);
    if (!needsGradient(matrix)) return [null, db];
    const da = transposed ? product(out, transpose(db), -1) : product(db, transpose(out), -1);
    return [keepTriangle(da, upper, unitriangular ? 0 : 1), db];
  });
}

function checkRows(a: Tensor, b: Tensor, what: string): void {
  if (b.shape.length < 2 || b.shape.at(-2) !== a.shape.at(-1) || b.dtype !== a.dtype)
    throw new StrutError("shape", `${what}: matrices ${a.dtype}[${a.shape}] and right-hand sides ${b.dtype}[${b.shape}] do not fit`, {
      hint: "Both have the same dtype, and each right-hand side is a column.",
    });
}

/**
 * The lower triangular L of A = L·Lᵀ for symmetric positive definite matrices of up to 128 rows, of which the lower triangle is read;
 * leading axes are batch. The gradient is that of a symmetric A (Murray 2016, arXiv:1602.07527).
 *
 * @example
 * const L = cholesky(tensor([4, 2, 2, 5], [2, 2])); // [2, 0, 1, 2]
 */
export function cholesky(a: Tensor): Tensor {
  const { batchShape, batch, n } = square(a, "cholesky");
  const source = contiguous(a);
  const [out, info] = [copyOf(source), empty([batch], "i32")];
  kernels().cholesky(out, info, batch, n, n * n, n);
  const failed = (hostView(info) as Int32Array).findIndex((at) => at !== 0);
  if (failed >= 0)
    throw new StrutError("singular", `cholesky: ${entry(failed, batchShape)} is not positive definite, its leading ${hostView(info)[failed]} rows are not`, {
      hint: "Add a small multiple of the identity.",
    });
  return record(out, [source], (g) => {
    // L⁻ᵀ·Φ(Lᵀ·g)·L⁻¹, where Φ keeps the lower triangle with half the diagonal; then its symmetric part
    const inner = keepTriangle(product(transpose(out), contiguous(g)), false, 0.5);
    const left = substituted(out, inner, false, true, false);
    const both = transpose(substituted(out, contiguous(transpose(left)), false, true, false));
    return [symmetricPart(both)];
  });
}

/** (X + Xᵀ)/2 in a new tensor. */
function symmetricPart(x: Tensor): Tensor {
  const out = copyOf(x);
  kernels().axpby(out, 0.5, copyOf(transpose(x)), 0.5, out.size);
  return out;
}

/** L and U of each matrix, in one, and for each row of the batch the row it came from; a singular one is an error. */
function factored(a: Tensor, what: string): { factors: Tensor; order: Int32Array } {
  const { batchShape, batch, n } = square(a, what);
  const [factors, order, info] = [copyOf(a), empty([batch, n], "i32"), empty([batch], "i32")];
  kernels().lu(factors, order, info, batch, n, n, n * n, n);
  const failed = (hostView(info) as Int32Array).findIndex((at) => at !== 0);
  if (failed >= 0)
    throw new StrutError("singular", `${what}: ${entry(failed, batchShape)} is singular, it has no pivot in column ${(hostView(info)[failed]! as number) - 1}`);
  return { factors, order: (hostView(order) as Int32Array).map((row, i) => row + Math.floor(i / n) * n) };
}

/** A⁻¹·b, or A⁻ᵀ·b: with P·A = L·U, x = U⁻¹·L⁻¹·P·b and x = Pᵀ·L⁻ᵀ·U⁻ᵀ·b. */
function solved({ factors, order }: ReturnType<typeof factored>, b: Tensor, transposed: boolean): Tensor {
  const rows = (x: Tensor, index: Int32Array): Tensor => reshape(selectSlices(reshape(x, [index.length, x.shape.at(-1)!]), 0, index), x.shape);
  if (!transposed) return substituted(factors, substituted(factors, rows(b, order), false, false, true), true, false, false);
  const back = new Int32Array(order.length);
  order.forEach((from, to) => (back[from] = to));
  return rows(substituted(factors, substituted(factors, b, true, true, false), false, true, true), back);
}

/**
 * X of A·X = B for square matrices of up to 128 rows, by LU with partial pivoting; leading axes are batch and broadcast.
 * A singular matrix is an error.
 *
 * @example
 * const x = solve(tensor([0, 1, 2, 0], [2, 2]), tensor([1, 2], [2, 1])); // [1, 1]
 */
export function solve(a: Tensor, b: Tensor): Tensor {
  return solveBy("solve", a, b);
}

function solveBy(what: string, a: Tensor, b: Tensor): Tensor {
  square(a, what);
  checkRows(a, b, what);
  const [matrix, rhs] = sameBatch(a, b);
  const lu = factored(matrix, what);
  const out = solved(lu, rhs, false);
  return record(
    out,
    [matrix, rhs],
    (g) => {
      const db = solved(lu, contiguous(g), true);
      return [needsGradient(matrix) ? product(db, transpose(out), -1) : null, db];
    },
    [lu.factors],
  );
}

/**
 * A⁻¹ of square matrices of up to 128 rows, by LU with partial pivoting; leading axes are batch. A singular matrix is an error.
 *
 * @example
 * const b = inverse(tensor([2, 0, 0, 4], [2, 2])); // [0.5, 0, 0, 0.25]
 */
export function inverse(a: Tensor): Tensor {
  const { n } = square(a, "inverse");
  const identity = zeros([n, n], a.dtype);
  const values = hostView(identity);
  for (let i = 0; i < n; i++) values[i * (n + 1)] = 1;
  return solveBy("inverse", a, identity);
}
