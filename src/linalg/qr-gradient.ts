import { StrutError } from "../errors.ts";
import { scope } from "../tensor/scope.ts";
import { copyOf, empty, zeros, type Tensor } from "../tensor/tensor.ts";
import { block, doubles, multiplyInto, turned } from "./blocks.ts";
import { finiteDoubles, narrowedTo } from "./numbers.ts";
import { checkPivots, solveTriangularInPlace } from "./triangular.ts";

/**
 * The gradient of A from those of Q and R (either may be null) for A = Q·R as `qr` gives it in mode "reduced", A m×n with linearly independent
 * first min(m, n) columns. For m ≥ n it is (gQ + Q·C)·R⁻ᵀ, where C is the symmetric matrix with the lower triangle of R·gRᵀ − gQᵀ·Q
 * (Walter and Lehmann 2010); of a wide A the first m columns are so factored, and R's other ones are Qᵀ·A.
 *
 * @example
 * const factors = await qr(tensor([3, 1, 4, 2], [2, 2]));
 * const gradient = qrBackward(factors, null, ones([2, 2])); // of the sum of R's entries
 */
export function qrBackward({ Q, R }: { Q: Tensor; R: Tensor }, gQ: Tensor | null, gR: Tensor | null): Tensor {
  const [m, k] = Q.shape as [number, number];
  const n = R.shape[1]!;
  if (k !== Math.min(m, n)) throw new StrutError("shape", `qrBackward needs the factors of mode "reduced"; Q is ${m}×${k} and R ${R.shape[0]}×${n}`);
  return scope(() => {
    const wide = (x: Tensor): Tensor => finiteDoubles(x, "qrBackward");
    const [q, r] = [wide(Q), wide(R)];
    checkPivots(block(r, 0, k, 0, k), "qrBackward");
    const dq = gQ ? wide(gQ) : zeros([m, k], "f64");
    const dr = gR ? wide(gR) : zeros([k, n], "f64");
    const out = empty([m, n], "f64");
    const [square, rest] = [block(r, 0, k, 0, k), block(r, 0, k, k, n)];
    if (n > k) {
      const beyond = block(dr, 0, k, k, n);
      multiplyInto(block(out, 0, m, k, n), q, beyond);
      // ∂/∂Q of Qᵀ·Y, where Y = Q·rest
      const y = empty([m, n - k], "f64");
      multiplyInto(y, q, rest);
      multiplyInto(dq, y, turned(beyond), 1, 1);
    }
    const middle = empty([k, k], "f64");
    multiplyInto(middle, square, turned(block(dr, 0, k, 0, k)));
    multiplyInto(middle, turned(dq), q, -1, 1);
    const values = doubles(middle);
    for (let i = 0; i < k; i++) for (let j = 0; j < i; j++) values[j * k + i] = values[i * k + j]!;
    const first = copyOf(dq);
    multiplyInto(first, q, middle, 1, 1);
    // X·Rᵀ = first
    solveTriangularInPlace(square, turned(first), { upper: true });
    place(block(out, 0, m, 0, k), first);
    return narrowedTo(out, R.dtype);
  });
}

/** Writes a matrix into a part of another. */
function place(to: Tensor, from: Tensor): void {
  const [rows, cols] = from.shape as [number, number];
  const [target, source] = [doubles(to), doubles(from)];
  for (let i = 0; i < rows; i++) target.set(source.subarray(i * cols, (i + 1) * cols), i * to.strides[0]!);
}
