import { kernels } from "../engine.ts";
import { record } from "../tape.ts";
import { empty, hostView, Tensor, sizeOf } from "../tensor.ts";
import { scale } from "./elementwise.ts";
import { axisOf, contiguous, expand, reshape, sumAxes } from "./shape.ts";

export interface ReduceOptions {
  /** Axes to reduce; defaults to all. */
  axes?: readonly number[];
  /** Leave reduced axes as 1; defaults to false. */
  keepAxes?: boolean;
}

/** Sum over axes. */
export function sum(x: Tensor, { axes, keepAxes = false }: ReduceOptions = {}): Tensor {
  const reduced = (axes ?? x.shape.map((_, axis) => axis)).map((axis) => axisOf(x, axis)).sort((a, b) => a - b);
  const kept = x.shape.map((n, axis) => (reduced.includes(axis) ? 1 : n));
  const total = reduced.length === 0 ? scale(x, 1) : sumAxes(x, reduced);
  const out = new Tensor(total.handle, total.dtype, keepAxes ? kept : x.shape.filter((_, axis) => !reduced.includes(axis)), undefined, total.offset);
  return record(out, [x], (g) => [expand(reshape(g, kept), x.shape)]);
}

/** Mean over axes. */
export function mean(x: Tensor, options: ReduceOptions = {}): Tensor {
  const total = sum(x, options);
  return scale(total, total.size / Math.max(1, x.size));
}

/** Largest element along an axis and where it first stands; no gradient. */
export function max(x: Tensor, axis = -1): { values: Tensor; indices: Tensor } {
  const at = axisOf(x, axis);
  const shape = x.shape.filter((_, i) => i !== at);
  const [values, indices] = [empty(shape, x.dtype), empty(shape, "i32")];
  kernels().reduce_max(values, indices, contiguous(x), sizeOf(x.shape.slice(0, at)), x.shape[at]!, sizeOf(x.shape.slice(at + 1)));
  return { values, indices };
}

/** Σ x² in f64 over a list of tensors, read at once: for norms of gradients. */
export function sumSquares(tensors: Iterable<Tensor>): number {
  const out = empty([1], "f64");
  let total = 0;
  for (const x of tensors) {
    kernels().sum_squares(out, contiguous(x), x.size);
    total += (hostView(out) as Float64Array)[0]!;
  }
  return total;
}
