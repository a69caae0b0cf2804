import { StrutError } from "../errors.ts";
import { mul } from "../tensor/ops/elementwise.ts";
import { permute, reshape } from "../tensor/ops/shape.ts";
import { tensor, type Tensor } from "../tensor/tensor.ts";
import { doubles } from "./blocks.ts";
import { extents } from "./numbers.ts";
import { singularRows } from "./svd.ts";

/**
 * a ⊗ b: (m·p)×(n·q) for a m×n and b p×q. Differentiable.
 *
 * @example
 * const k = kronecker(tensor([1, 2], [1, 2]), tensor([1, 0, 0, 1], [2, 2])); // 2×4
 */
export function kronecker(a: Tensor, b: Tensor): Tensor {
  const [[m, n], [p, q]] = [extents(a, "kronecker"), extents(b, "kronecker")];
  return reshape(mul(reshape(a, [m, 1, n, 1]), reshape(b, [1, p, 1, q])), [m * p, n * q]);
}

/**
 * The left (of the given shape) and right whose left ⊗ right is nearest to a in the Frobenius norm, with equal norms;
 * `error` is relative. Van Loan & Pitsianis 1993: the largest singular triple of a's blocks as rows.
 *
 * @example
 * const { left, right, error } = await nearestKronecker(ones([4, 6]), [2, 2]); // right is 2×3, error 0
 */
export async function nearestKronecker(a: Tensor, shape: readonly [number, number]): Promise<{ left: Tensor; right: Tensor; error: number }> {
  const [rows, cols] = extents(a, "nearestKronecker");
  const [m, n] = shape;
  if (!(m > 0 && n > 0 && rows % m === 0 && cols % n === 0))
    throw new StrutError("shape", `nearestKronecker: ${m}×${n} does not divide ${rows}×${cols}; each extent of the left factor must divide a's`);
  const [p, q] = [rows / m, cols / n];
  const blocks = reshape(permute(reshape(a, [m, p, n, q]), [0, 2, 1, 3]), [m * n, p * q]);
  const { left, values, right } = singularRows(blocks, "nearestKronecker");
  const root = Math.sqrt(values[0]!);
  const total = Math.hypot(...values);
  return {
    left: tensor(
      doubles(left)
        .slice(0, m * n)
        .map((x) => x * root),
      [m, n],
      a.dtype,
    ),
    right: tensor(
      doubles(right)
        .slice(0, p * q)
        .map((x) => x * root),
      [p, q],
      a.dtype,
    ),
    error: total === 0 ? 0 : Math.hypot(...values.slice(1)) / total,
  };
}
