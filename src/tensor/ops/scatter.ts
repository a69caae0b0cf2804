import { StrutError } from "../../errors.ts";
import { isReal, type Real } from "../dtype.ts";
import { kernels } from "../engine.ts";
import { needsGradient, noGrad, record } from "../tape.ts";
import { copyOf, empty, full, hostView, sizeOf, tensor, zeros, type Tensor } from "../tensor.ts";
import { broadcastShape, axisOf, cast, contiguous, expand, reshape, slice, sumTo } from "./shape.ts";

/** An i32 index as row-major elements, checked to lie in [0, limit). */
function checked(index: Tensor, limit: number): Tensor {
  const out = contiguous(index);
  if (out.dtype !== "i32") throw new StrutError("dtype", `an index must be i32, got ${out.dtype}`);
  const view = hostView(out) as Int32Array;
  for (let i = 0; i < view.length; i++)
    if (!(view[i]! >= 0 && view[i]! < limit)) throw new StrutError("range", `index ${view[i]} at position ${i} does not lie in 0…${limit - 1}`);
  return out;
}

/** outer, extent and inner of an axis. */
const parts = (x: Tensor, axis: number): [number, number, number] => [sizeOf(x.shape.slice(0, axis)), x.shape[axis]!, sizeOf(x.shape.slice(axis + 1))];

function fits(what: string, x: Tensor, at: number, index: Tensor): void {
  if (index.shape.length !== x.shape.length || index.shape.some((n, i) => i !== at && n !== x.shape[i]))
    throw new StrutError("shape", `${what}: an index of shape [${index.shape}] does not fit to [${x.shape}] along axis ${at}`, {
      hint: "All extents but that of the axis must agree; slice the tensor first.",
    });
}

/** out[…, i, …] = x[…, index[…, i, …], …] along an axis: torch's gather; index is i32 and has x's other extents. */
export function gather(x: Tensor, axis: number, index: Tensor): Tensor {
  const at = axisOf(x, axis);
  fits("gather", x, at, index);
  const source = contiguous(x);
  const [outer, extent, inner] = parts(x, at);
  const places = checked(index, extent);
  const out = empty(index.shape, x.dtype);
  kernels().gather_along(out, source, places, outer, index.shape[at]!, extent, inner);
  return record(out, [source], (g) => {
    const dx = zeros(x.shape, x.dtype);
    kernels().scatter_add_along(dx, contiguous(g), places, outer, index.shape[at]!, extent, inner);
    return [dx];
  });
}

/** A copy of x with x[…, index[…, i, …], …] += source[…, i, …] along an axis, in order of i: torch's scatter_add. */
export function scatterAdd(x: Tensor, axis: number, index: Tensor, source: Tensor): Tensor {
  const at = axisOf(x, axis);
  fits("scatterAdd", x, at, index);
  if (String(source.shape) !== String(index.shape))
    throw new StrutError("shape", `scatterAdd: the source has shape [${source.shape}], the index [${index.shape}]; they must agree`);
  const values = contiguous(source);
  const [outer, extent, inner] = parts(x, at);
  const places = checked(index, extent);
  const out = copyOf(x);
  kernels().scatter_add_along(out, values, places, outer, index.shape[at]!, extent, inner);
  return record(out, [x, values], (g) => {
    if (!needsGradient(values)) return [g, null];
    const dv = empty(values.shape, values.dtype);
    kernels().gather_along(dv, contiguous(g), places, outer, index.shape[at]!, extent, inner);
    return [g, dv];
  });
}

/**
 * Elements at flat row-major places, in the index's shape: torch's take, for sparse supports.
 *
 * @example
 * const chosen = take(tensor([5, 6, 7, 8], [2, 2]), tensor([3, 0], [2], "i32")); // 8 5
 */
export const take = (x: Tensor, index: Tensor): Tensor => reshape(gather(reshape(x, [-1]), 0, reshape(index, [-1])), index.shape);

/** A copy of x with x.flat[index] += values, in order: torch's put with accumulate. */
export const putAdd = (x: Tensor, index: Tensor, values: Tensor): Tensor =>
  reshape(scatterAdd(reshape(x, [-1]), 0, reshape(index, [-1]), reshape(values, [-1])), x.shape);

/** Slices of x along an axis at the places of a one-dimensional i32 index: torch's index_select. */
export function indexSelect(x: Tensor, axis: number, index: Tensor): Tensor {
  const at = axisOf(x, axis);
  const [outer, extent, inner] = parts(x, at);
  const source = contiguous(x);
  const chosen = checked(index, extent);
  const n = chosen.size;
  const ids = empty([outer * n], "i32");
  const [to, from] = [hostView(ids), hostView(chosen)];
  for (let o = 0; o < outer; o++) for (let i = 0; i < n; i++) to[o * n + i] = o * extent + Number(from[i]);
  const out = empty(
    x.shape.map((size, i) => (i === at ? n : size)),
    x.dtype,
  );
  kernels().gather_rows(out, source, ids, outer * n, inner, outer * extent);
  return record(out, [source], (g) => {
    const dx = zeros(x.shape, x.dtype);
    kernels().scatter_add_rows(dx, contiguous(g), ids, outer * n, inner, outer * extent);
    return [dx];
  });
}

/** Sums of consecutive slices of axis 0: out[s] = Σ x[r] over offsets[s] ≤ r < offsets[s+1]; empty segments give 0. */
export function segmentSum(x: Tensor, offsets: readonly number[] | Int32Array): Tensor {
  const rows = x.shape[0] ?? 0;
  const segments = offsets.length - 1;
  if (segments < 0 || offsets.some((at, i) => !(at >= (i === 0 ? 0 : offsets[i - 1]!) && at <= rows)))
    throw new StrutError("range", `segmentSum: offsets must ascend from 0 to at most ${rows}, the extent of axis 0`);
  const source = contiguous(x);
  const dim = sizeOf(x.shape.slice(1));
  const bounds = empty([segments + 1], "i32");
  (hostView(bounds) as Int32Array).set(offsets);
  const out = empty([segments, ...x.shape.slice(1)], x.dtype);
  kernels().segment_sum(out, source, bounds, segments, dim, rows);
  return record(out, [source], (g) => {
    const dx = zeros(x.shape, x.dtype);
    const [first, end] = [offsets[0] ?? 0, offsets[segments] ?? 0];
    const segmentOf = new Int32Array(end - first);
    for (let s = 0; s < segments; s++) segmentOf.fill(s, offsets[s]! - first, offsets[s + 1]! - first);
    kernels().gather_rows(slice(dx, 0, first, end), contiguous(g), tensor(segmentOf, [segmentOf.length], "i32"), end - first, dim, segments);
    return [dx];
  });
}

/** condition ? a : b elementwise, with broadcasting; what is not chosen leaves no NaN behind. The condition may be bool or any number. */
export function where(condition: Tensor, a: Tensor, b: Tensor): Tensor {
  if (a.dtype !== b.dtype || !isReal(a.dtype)) throw new StrutError("dtype", `where of ${a.dtype} and ${b.dtype}: both must be f32, or both f64`);
  const shape = broadcastShape(condition.shape, broadcastShape(a.shape, b.shape));
  const all = (x: Tensor): Tensor => contiguous(expand(x, shape));
  const mask = noGrad(() => all(cast(condition, a.dtype)));
  const pick = (yes: Tensor, no: Tensor): Tensor => {
    const out = empty(shape, a.dtype);
    kernels().where(out, mask, yes, no, out.size);
    return out;
  };
  return record(pick(all(a), all(b)), [a, b], (g) => {
    const [gradient, zero] = [contiguous(g), zeros(shape, a.dtype)];
    return [needsGradient(a) ? sumTo(pick(gradient, zero), a.shape) : null, needsGradient(b) ? sumTo(pick(zero, gradient), b.shape) : null];
  });
}

/** x with `value` where the mask is not 0. */
export const maskedFill = (x: Tensor, mask: Tensor, value: number): Tensor => where(mask, full([1], value, x.dtype as Real), x);
