import { StrutError } from "../errors.ts";
import { kernels } from "../tensor/engine.ts";
import { scope } from "../tensor/scope.ts";
import { copyOf, hostView, type Tensor } from "../tensor/tensor.ts";
import { block, doubles, multiplyInto, turned } from "./blocks.ts";
import { extents, finiteDoubles, narrowedTo, squareExtent } from "./numbers.ts";

/** Rows that one call of the kernel solves; larger systems are halved. */
const BLOCK = 64;

export interface Triangle {
  /** Whether the upper triangle is read; defaults to the lower one. */
  upper?: boolean;
  /** Whether the diagonal counts as ones and is not read. */
  unitriangular?: boolean;
}

/** c −= a·b, where c has unit strides along its rows or along its columns. */
export function subtractProduct(c: Tensor, a: Tensor, b: Tensor): void {
  if (c.size === 0 || a.shape[1] === 0) return;
  if (c.strides[1] === 1) multiplyInto(c, a, b, -1, 1);
  else multiplyInto(turned(c), turned(b), turned(a), -1, 1);
}

/** b becomes A⁻¹·b, for f64 views A n×n and b n×k of any strides, of which one of b's is 1. Unchecked. */
export function solveTriangularInPlace(a: Tensor, b: Tensor, { upper = false, unitriangular = false }: Triangle = {}): void {
  const [n, k] = b.shape as [number, number];
  if (b.size === 0) return;
  if (n <= BLOCK) {
    const [aRow, aCol, bRow, bCol] = [...a.strides, ...b.strides] as [number, number, number, number];
    kernels().triangular_solve(a, b, 1, n, k, 0, aRow, aCol, 0, bRow, bCol, Number(upper), Number(unitriangular));
    return;
  }
  const half = Math.ceil(n / BLOCK / 2) * BLOCK;
  const [low, high] = [
    [0, half],
    [half, n],
  ] as const;
  const [[f0, f1], [s0, s1]] = upper ? [high, low] : [low, high];
  const [first, second] = [block(b, f0, f1, 0, k), block(b, s0, s1, 0, k)];
  solveTriangularInPlace(block(a, f0, f1, f0, f1), first, { upper, unitriangular });
  subtractProduct(second, block(a, s0, s1, f0, f1), first);
  solveTriangularInPlace(block(a, s0, s1, s0, s1), second, { upper, unitriangular });
}

/** A StrutError if an entry of the diagonal is zero. */
export function checkPivots(a: Tensor, what: string): void {
  const values = doubles(a);
  const step = a.strides[0]! + a.strides[1]!;
  for (let i = 0; i < a.shape[0]!; i++)
    if (values[i * step] === 0)
      throw new StrutError("singular", `${what}: the matrix is singular, its pivot ${i} is 0`, { hint: "leastSquares gives the solution of least norm." });
}

/** An f64 copy of b, which must have n rows. */
export function rightHandSides(b: Tensor, n: number, what: string): Tensor {
  if (extents(b, what)[0] === n) return finiteDoubles(b, what);
  throw new StrutError("shape", `${what}: the right-hand side has shape [${b.shape}]; it must have ${n} rows, one for each of the matrix`);
}

export interface TriangularOptions extends Triangle {
  /** Solves with Aᵀ in A's place. */
  transpose?: boolean;
  /** Whether A stands on the left, A·X = B, as it does by default, or on the right, X·A = B. */
  left?: boolean;
}

/**
 * X of A·X = B, or X·A = B, for a triangular n×n matrix of any size; what is beyond its triangle is not read. Computed in f64 and
 * returned in a's dtype: before that rounding ‖A·X − B‖ ≤ 10·n·2⁻⁵²·‖A‖·‖X‖. A zero on the diagonal is an error.
 *
 * @example
 * const x = await solveTriangular(tensor([2, 0, 1, 4], [2, 2]), tensor([2, 9], [2, 1])); // [1, 2]
 */
export async function solveTriangular(
  a: Tensor,
  b: Tensor,
  { upper = false, unitriangular = false, transpose = false, left = true }: TriangularOptions = {},
): Promise<Tensor> {
  const n = squareExtent(a, "solveTriangular");
  return scope(() => {
    const matrix = triangleOf(a, { upper, unitriangular });
    if (!unitriangular) checkPivots(matrix, "solveTriangular");
    const x = rightHandSides(left ? b : turned(b), n, "solveTriangular");
    if (transpose === left) solveTriangularInPlace(turned(matrix), x, { upper: !upper, unitriangular });
    else solveTriangularInPlace(matrix, x, { upper, unitriangular });
    return narrowedTo(left ? x : turned(x), a.dtype);
  });
}

/** An f64 copy with zeros beyond the triangle, so that only what is read must be finite. */
function triangleOf(a: Tensor, { upper, unitriangular }: Triangle): Tensor {
  const n = a.shape[0]!;
  const source = copyOf(a);
  const values = hostView(source) as Float64Array;
  for (let i = 0; i < n; i++) {
    if (upper) values.fill(0, i * n, i * n + i);
    else values.fill(0, i * n + i + 1, (i + 1) * n);
    if (unitriangular) values[i * (n + 1)] = 1;
  }
  return finiteDoubles(source, "solveTriangular");
}
