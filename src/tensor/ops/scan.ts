import { StrutError } from "../../errors.ts";
import { kernels } from "../engine.ts";
import { noGrad, record } from "../tape.ts";
import { empty, full, sizeOf, type Tensor } from "../tensor.ts";
import { add, div, equal, exp, log, scale, sqrt, square, sub } from "./elementwise.ts";
import { gemmInto } from "./matmul.ts";
import { max, sum, type ReduceOptions } from "./reduce.ts";
import { maskedFill, where } from "./scatter.ts";
import { axisOf, contiguous, reshape, transpose } from "./shape.ts";

/** Running sums along an axis: out[i] = Σ_{j ≤ i} x[j], or Σ_{j ≥ i} x[j] in reverse; kept in f64. */
export function cumulativeSum(x: Tensor, { axis = -1, reverse = false }: { axis?: number; reverse?: boolean } = {}): Tensor {
  const at = axisOf(x, axis);
  const [outer, inner] = [sizeOf(x.shape.slice(0, at)), sizeOf(x.shape.slice(at + 1))];
  const run = (value: Tensor, backwards: boolean): Tensor => {
    const out = empty(x.shape, x.dtype);
    kernels().cumulative_sum(out, contiguous(value), outer, x.shape[at]!, inner, Number(backwards));
    return out;
  };
  return record(run(x, reverse), [x], (g) => [run(g, !reverse)]);
}

/** √x whose gradient at 0 is 0. */
function guardedRoot(x: Tensor): Tensor {
  const root = noGrad(() => sqrt(x));
  return record(root, [x], (g) => [maskedFill(div(scale(g, 0.5), root), equal(root, full([1], 0, x.dtype)), 0)]);
}

/** Euclidean norm over axes, √Σx²; its gradient where the norm is 0 is 0. */
export const norm = (x: Tensor, options: ReduceOptions = {}): Tensor => guardedRoot(sum(square(x), options));

/**
 * Norms of the beginnings of an axis, out[i] = √Σ_{j ≤ i} x[j]², or of its ends in reverse; the gradient where a norm is 0 is 0.
 *
 * @example
 * const norms = cumulativeNorm(tensor([3, 4, 12]), { reverse: true }); // 13, √160, 12
 */
export const cumulativeNorm = (x: Tensor, options: { axis?: number; reverse?: boolean } = {}): Tensor => guardedRoot(cumulativeSum(square(x), options));

/** log Σ exp(x) along an axis, without overflow; −∞ where all are −∞. */
export function logsumexp(x: Tensor, { axis = -1, keepAxes = false }: { axis?: number; keepAxes?: boolean } = {}): Tensor {
  const at = axisOf(x, axis);
  if (x.shape[at] === 0) throw new StrutError("shape", `logsumexp: axis ${axis} of shape [${x.shape}] is empty`);
  const kept = x.shape.map((n, i) => (i === at ? 1 : n));
  const top = noGrad(() => {
    const { values } = max(x, at);
    // ±∞ would give ∞ − ∞
    return reshape(where(equal(sub(values, values), full([1], 0, x.dtype)), values, full([1], 0, x.dtype)), kept);
  });
  const out = add(log(sum(exp(sub(x, top)), { axes: [at], keepAxes: true })), top);
  return keepAxes
    ? out
    : reshape(
        out,
        x.shape.filter((_, i) => i !== at),
      );
}

/**
 * What a linear layer's weight gets as its gradient, as a value: gᵀ·x, out×in, summed over all leading axes of
 * x […, in] and g […, out]. Differentiable in both.
 *
 * @example
 * const dW = weightGradient(ones([2, 5, 3]), ones([2, 5, 4])); // 4×3, each element 10
 */
export function weightGradient(x: Tensor, g: Tensor): Tensor {
  const [lead, other] = [x.shape.slice(0, -1), g.shape.slice(0, -1)];
  if (x.shape.length === 0 || String(lead) !== String(other) || x.dtype !== g.dtype)
    throw new StrutError(
      "shape",
      `weightGradient: x is ${x.dtype}[${x.shape}] and g ${g.dtype}[${g.shape}]; all axes but the last, and the dtypes, must agree`,
    );
  const [rows, inner] = [reshape(x, [sizeOf(lead), x.shape.at(-1)!]), reshape(g, [sizeOf(lead), g.shape.at(-1)!])];
  const out = empty([inner.shape[1]!, rows.shape[1]!], x.dtype);
  gemmInto(out, transpose(inner), rows);
  return record(out, [rows, inner], (d) => {
    const [dx, dg] = [empty(rows.shape, x.dtype), empty(inner.shape, x.dtype)];
    gemmInto(dx, inner, d);
    gemmInto(dg, rows, transpose(d));
    return [dx, dg];
  });
}
