import { StrutError } from "../errors.ts";
import { kernels } from "../tensor/engine.ts";
import { scope } from "../tensor/scope.ts";
import { empty, hostView, type Tensor } from "../tensor/tensor.ts";
import { block, doubles, turned } from "./blocks.ts";
import { finiteDoubles, narrowedTo, squareExtent } from "./numbers.ts";
import { rightHandSides, solveTriangularInPlace, subtractProduct } from "./triangular.ts";

const BLOCK = 64;

/**
 * L of A = L·Lᵀ in place of a contiguous f64 matrix, with zeros above it; the lower triangle is read. Gives the first row without a
 * finite pivot above 0, where it ended, or −1 if there is none.
 */
export function choleskyInPlace(a: Tensor): number {
  const n = a.shape[0]!;
  return scope(() => {
    const info = empty([1], "i32");
    for (let from = 0; from < n; from += BLOCK) {
      const to = Math.min(n, from + BLOCK);
      const below = block(a, to, n, from, to);
      // everything the columns before contribute to these
      subtractProduct(block(a, from, n, from, to), block(a, from, n, 0, from), turned(block(a, from, to, 0, from)));
      kernels().cholesky(block(a, from, to, from, to), info, 1, to - from, 0, n);
      const failed = hostView(info)[0] as number;
      if (failed) return from + failed - 1;
      solveTriangularInPlace(block(a, from, to, from, to), turned(below));
    }
    const values = doubles(a);
    for (let i = 0; i < n; i++) values.fill(0, i * n + i + 1, (i + 1) * n);
    return -1;
  });
}

/** L in f64, or a StrutError. */
function factorOf(a: Tensor, what: string): Tensor {
  squareExtent(a, what);
  const factor = finiteDoubles(a, what);
  const failed = choleskyInPlace(factor);
  if (failed < 0) return factor;
  throw new StrutError("singular", `${what}: the matrix is not positive definite, its leading ${failed + 1} rows and columns are not`, {
    hint: "Add a small multiple of the identity, or use ldu or eigh.",
  });
}

/**
 * The lower triangular L of A = L·Lᵀ for a symmetric positive definite n×n matrix of any size; its lower triangle is read.
 * Computed in f64 and returned in a's dtype: before that rounding ‖A − L·Lᵀ‖ ≤ 10·n·2⁻⁵²·‖A‖. `cholesky` is the operation with a gradient.
 *
 * @example
 * const L = await choleskyFactor(tensor([4, 2, 2, 5], [2, 2])); // [2, 0, 1, 2]
 */
export async function choleskyFactor(a: Tensor): Promise<Tensor> {
  return scope(() => narrowedTo(factorOf(a, "choleskyFactor"), a.dtype));
}

/**
 * X of A·X = B for a symmetric positive definite A, of which the lower triangle is read, by Cholesky. Computed in f64 and returned in
 * a's dtype: before that rounding ‖A·X − B‖ ≤ 20·n·2⁻⁵²·‖A‖·‖X‖.
 *
 * @example
 * const x = await solvePositive(tensor([4, 2, 2, 5], [2, 2]), tensor([8, 12], [2, 1])); // [1, 2]
 */
export async function solvePositive(a: Tensor, b: Tensor): Promise<Tensor> {
  return scope(() => {
    const factor = factorOf(a, "solvePositive");
    const x = rightHandSides(b, a.shape[0]!, "solvePositive");
    solveTriangularInPlace(factor, x);
    solveTriangularInPlace(turned(factor), x, { upper: true });
    return narrowedTo(x, a.dtype);
  });
}
