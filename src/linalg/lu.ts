import { StrutError } from "../errors.ts";
import { kernels } from "../tensor/engine.ts";
import { scope } from "../tensor/scope.ts";
import { copyOf, empty, hostView, tensor, zeros, type Tensor } from "../tensor/tensor.ts";
import { block, doubles } from "./blocks.ts";
import { extents, narrowedTo, scaledDoubles } from "./numbers.ts";
import { solveTriangularInPlace, subtractProduct } from "./triangular.ts";

/** Columns that the kernel eliminates by itself. */
const PANEL = 32;

/** Puts row order[i] of a view at row i. */
function permuteRows(a: Tensor, order: Int32Array): void {
  const cols = a.shape[1]!;
  if (cols === 0) return;
  scope(() => {
    const before = copyOf(a);
    const [to, from] = [doubles(a), doubles(before)];
    order.forEach((source, i) => {
      if (source !== i) to.set(from.subarray(source * cols, (source + 1) * cols), i * a.strides[0]!);
    });
  });
}

/** L and U in place of an f64 view with unit column stride (Toledo 1997), and the row each row came from. */
export function luInPlace(a: Tensor): Int32Array {
  const [m, n] = a.shape as [number, number];
  if (n <= PANEL) {
    return scope(() => {
      const [order, info] = [empty([m], "i32"), empty([1], "i32")];
      kernels().lu(a, order, info, 1, m, n, 0, a.strides[0]!);
      return (hostView(order) as Int32Array).slice();
    });
  }
  // what is wider than tall has no pivots beyond column m
  const half = n > m ? m : Math.floor(n / 2);
  const order = luInPlace(block(a, 0, m, 0, half));
  permuteRows(block(a, 0, m, half, n), order);
  const top = block(a, 0, half, half, n);
  solveTriangularInPlace(block(a, 0, half, 0, half), top, { unitriangular: true });
  if (n > m) return order;
  const rest = block(a, half, m, half, n);
  subtractProduct(rest, block(a, half, m, 0, half), top);
  const later = luInPlace(rest);
  permuteRows(block(a, half, m, 0, half), later);
  return order.map((source, i) => (i < half ? source : order[half + later[i - half]!]!));
}

/** Entries of the factors, by row and column of the matrix that holds both. */
function part(a: Tensor, rows: number, cols: number, value: (x: number, i: number, j: number) => number): Tensor {
  const n = a.shape[1]!;
  const out = zeros([rows, cols], "f64");
  const [to, from] = [doubles(out), doubles(a)];
  for (let i = 0; i < rows; i++) for (let j = 0; j < cols; j++) to[i * cols + j] = value(from[i * n + j]!, i, j);
  return out;
}

const unitLower = (x: number, i: number, j: number): number => (i > j ? x : i === j ? 1 : 0);

/**
 * Rows P of A are L·U: partial pivoting, L m×k with a unit diagonal and entries of at most 1, U k×n, k = min(m, n). A may be singular, of any
 * size. Computed in f64 and returned in a's dtype: before that rounding ‖A[P] − L·U‖ ≤ 10·k·2⁻⁵²·‖L‖·‖U‖.
 *
 * @example
 * const { P, L, U } = await lu(tensor([1, 2, 4, 2], [2, 2])); // P = [1, 0], L = [1, 0, 0.25, 1], U = [4, 2, 0, 1.5]
 */
export async function lu(a: Tensor): Promise<{ P: Tensor; L: Tensor; U: Tensor }> {
  const [m, n] = extents(a, "lu");
  return scope(() => {
    const { matrix, scale } = scaledDoubles(a, "lu");
    const order = luInPlace(matrix);
    const k = Math.min(m, n);
    const U = part(matrix, k, n, (x, i, j) => (j < i ? 0 : x * scale));
    return { P: tensor(order, [m], "i32"), L: narrowedTo(part(matrix, m, k, unitLower), a.dtype), U: narrowedTo(U, a.dtype) };
  });
}

export interface Ldu {
  /** Row of A at each row of the product. */
  P: Tensor;
  /** m×k, lower triangular with ones on its diagonal. */
  L: Tensor;
  /** The k pivots. */
  D: Tensor;
  /** k×n, upper triangular with ones on its diagonal. */
  U: Tensor;
  /** Column of A at each column of the product; 0, 1, 2 … with partial pivoting. */
  Q: Tensor;
}

/**
 * Rows P and columns Q of A are L·diag(D)·U, k = min(m, n), L and U with unit diagonals. Partial pivoting exchanges rows alone and bounds
 * the entries of L by 1; rook pivoting (Foster 1997) bounds those of U too, takes every singular matrix, and is slower. Computed in f64:
 * ‖A[P, Q] − L·diag(D)·U‖ ≤ 10·k·2⁻⁵²·‖L‖·‖diag(D)·U‖.
 *
 * @example
 * const { P, L, D, U } = await ldu(tensor([1, 2, 4, 2], [2, 2])); // D = [4, 1.5], U = [1, 0.5, 0, 1]
 */
export async function ldu(a: Tensor, { pivoting = "partial" }: { pivoting?: "partial" | "rook" } = {}): Promise<Ldu> {
  const [m, n] = extents(a, "ldu");
  return scope(() => {
    const { matrix, scale } = scaledDoubles(a, "ldu");
    const columns = tensor(
      Array.from({ length: n }, (_, j) => j),
      [n],
      "i32",
    );
    let rows: Tensor;
    if (pivoting === "partial") rows = tensor(luInPlace(matrix), [m], "i32");
    else kernels().lu_rook(matrix, (rows = empty([m], "i32")), columns, m, n, n);
    const k = Math.min(m, n);
    const pivots = Float64Array.from({ length: k }, (_, i) => doubles(matrix)[i * (n + 1)]!);
    const U = part(matrix, k, n, (x, i, j) => {
      if (j <= i || x === 0) return i === j ? 1 : 0;
      if (pivots[i] !== 0) return x / pivots[i]!;
      throw new StrutError("singular", `ldu: pivot ${i} is 0 and the rest of its row is not, so the row cannot be divided by it`, {
        hint: 'Use { pivoting: "rook" }, which takes singular matrices.',
      });
    });
    const D = tensor(
      pivots.map((x) => x * scale),
      [k],
      a.dtype,
    );
    return { P: rows, L: narrowedTo(part(matrix, m, k, unitLower), a.dtype), D, U: narrowedTo(U, a.dtype), Q: columns };
  });
}
