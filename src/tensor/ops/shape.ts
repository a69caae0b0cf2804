import { StrutError } from "../../errors.ts";
import { isReal, type DType } from "../dtype.ts";
import { kernels } from "../engine.ts";
import { noGrad, record } from "../tape.ts";
import { contiguousStrides, copyOf, empty, full, hostView, hostNumbers, sizeOf, Tensor, tensor } from "../tensor.ts";

const view = (x: Tensor, shape: readonly number[], strides: readonly number[], offset = x.offset): Tensor =>
  new Tensor(x.handle, x.dtype, shape, strides, offset);

/** Axis counted from the end if negative. */
export function axisOf(x: Tensor, axis: number): number {
  const at = axis < 0 ? axis + x.shape.length : axis;
  if (!(at >= 0 && at < x.shape.length)) throw new StrutError("shape", `axis ${axis} does not exist in shape [${x.shape}]`);
  return at;
}

/** Row-major elements without gaps: `x` itself if it has them, else a copy. */
export function contiguous(x: Tensor): Tensor {
  return x.contiguous ? x : record(copyOf(x), [x], (g) => [g]);
}

/** The same elements in another shape; one extent may be -1. */
export function reshape(x: Tensor, shape: readonly number[]): Tensor {
  const known = shape.reduce((product, n) => (n === -1 ? product : product * n), 1);
  const target = shape.map((n) => (n === -1 ? x.size / known : n));
  if (sizeOf(target) !== x.size || target.some((n) => !Number.isInteger(n)))
    throw new StrutError("shape", `shape [${x.shape}] cannot be reshaped to [${shape}]`);
  const source = contiguous(x);
  return record(view(source, target, contiguousStrides(target)), [source], (g) => [reshape(g, source.shape)]);
}

/** Axes in another order. */
export function permute(x: Tensor, order: readonly number[]): Tensor {
  if (order.length !== x.shape.length || new Set(order).size !== order.length)
    throw new StrutError("shape", `[${order}] is not an order of the axes of shape [${x.shape}]`);
  const out = view(
    x,
    order.map((axis) => x.shape[axis]!),
    order.map((axis) => x.strides[axis]!),
  );
  return record(out, [x], (g) => [
    permute(
      g,
      order.map((_, axis) => order.indexOf(axis)),
    ),
  ]);
}

/** Two axes exchanged; defaults to the last two. */
export function transpose(x: Tensor, first = -2, second = -1): Tensor {
  const order = x.shape.map((_, axis) => axis);
  const [a, b] = [axisOf(x, first), axisOf(x, second)];
  [order[a], order[b]] = [order[b]!, order[a]!];
  return permute(x, order);
}

/** Elements start ≤ index < end of one axis, as a view. */
export function slice(x: Tensor, axis: number, start: number, end: number): Tensor {
  const at = axisOf(x, axis);
  if (!(start >= 0 && start <= end && end <= x.shape[at]!))
    throw new StrutError("shape", `slice ${start}:${end} does not lie in axis ${axis} of shape [${x.shape}]`);
  const shape = x.shape.map((n, i) => (i === at ? end - start : n));
  // an empty slice must not begin behind the memory of an empty tensor
  const offset = sizeOf(shape) === 0 ? 0 : start * x.strides[at]!;
  return record(view(x, shape, x.strides, x.offset + offset), [x], (g) => {
    const out = empty(x.shape, x.dtype);
    kernels().fill(out, 0, out.size);
    place(out, contiguous(g), at, start);
    return [out];
  });
}

/** Writes `part` into `out` (contiguous) from `start` along an axis. */
function place(out: Tensor, part: Tensor, axis: number, start: number): void {
  const [to, from] = [hostView(out), hostView(part)];
  const inner = sizeOf(out.shape.slice(axis + 1));
  const chunk = part.shape[axis]! * inner;
  const step = out.shape[axis]! * inner;
  for (let o = 0; o * chunk < part.size; o++) to.set(from.subarray(o * chunk, (o + 1) * chunk) as never, o * step + start * inner);
}

/** Tensors joined along an axis. */
export function concat(parts: readonly Tensor[], axis = 0): Tensor {
  const first = parts[0];
  if (!first) throw new StrutError("shape", "concat needs at least one tensor");
  const at = axisOf(first, axis);
  for (const part of parts)
    if (part.dtype !== first.dtype || part.shape.length !== first.shape.length || part.shape.some((n, i) => i !== at && n !== first.shape[i]))
      throw new StrutError("shape", `concat along axis ${axis}: [${part.shape}] does not fit to [${first.shape}]`);
  const total = parts.reduce((sum, part) => sum + part.shape[at]!, 0);
  const out = empty(
    first.shape.map((n, i) => (i === at ? total : n)),
    first.dtype,
  );
  let start = 0;
  const starts = parts.map((part) => {
    place(out, part.contiguous ? part : copyOf(part), at, start);
    start += part.shape[at]!;
    return start - part.shape[at]!;
  });
  return record(out, parts, (g) => parts.map((part, i) => copyOf(slice(g, at, starts[i]!, starts[i]! + part.shape[at]!))));
}

/** The shape two operands broadcast to. */
export function broadcastShape(a: readonly number[], b: readonly number[]): number[] {
  const length = Math.max(a.length, b.length);
  return Array.from({ length }, (_, i) => {
    const [m, n] = [a[a.length - length + i] ?? 1, b[b.length - length + i] ?? 1];
    if (m !== n && m !== 1 && n !== 1) throw new StrutError("shape", `shapes [${a}] and [${b}] do not broadcast`);
    return m === 1 ? n : m;
  });
}

/** Strides that walk `x` over a larger shape, 0 where it repeats. */
export function broadcastStrides(x: Tensor, shape: readonly number[]): number[] {
  const lead = shape.length - x.shape.length;
  return shape.map((n, i) => (i < lead || (x.shape[i - lead] === 1 && n !== 1) ? 0 : x.strides[i - lead]!));
}

/** `x` repeated to a larger shape, without copying. */
export function expand(x: Tensor, shape: readonly number[]): Tensor {
  broadcastShape(x.shape, shape);
  return record(view(x, shape, broadcastStrides(x, shape)), [x], (g) => [sumTo(g, x.shape)]);
}

/** Sums the axes that were broadcast, so that the result has the given shape. */
export function sumTo(x: Tensor, shape: readonly number[]): Tensor {
  const lead = x.shape.length - shape.length;
  const axes = x.shape.flatMap((n, axis) => (axis < lead || (shape[axis - lead] === 1 && n !== 1) ? [axis] : []));
  return axes.length === 0 && lead === 0 ? x : reshape(sumAxes(x, axes), shape);
}

/** Sum over axes (ascending), which become 1. Neighbouring axes are summed in one pass. */
export function sumAxes(x: Tensor, axes: readonly number[]): Tensor {
  let out = x.contiguous ? x : copyOf(x);
  for (let last = axes.length - 1; last >= 0;) {
    let first = last;
    while (first > 0 && axes[first - 1] === axes[first]! - 1) first--;
    const [from, to] = [axes[first]!, axes[last]!];
    const next = empty(
      out.shape.map((n, axis) => (axis >= from && axis <= to ? 1 : n)),
      x.dtype,
    );
    kernels().reduce_sum(next, out, sizeOf(out.shape.slice(0, from)), sizeOf(out.shape.slice(from, to + 1)), sizeOf(out.shape.slice(to + 1)));
    out = next;
    last = first - 1;
  }
  return out;
}

/** The same values as another dtype. Gradients flow between f32, f64, bf16 and f16. */
export function cast(x: Tensor, dtype: DType): Tensor {
  if (x.dtype === dtype) return x;
  const source = x.contiguous ? x : copyOf(x);
  let out: Tensor;
  if (x.dtype === "f32" && (dtype === "bf16" || dtype === "f16"))
    kernels()[dtype === "bf16" ? "f32_to_bf16" : "f32_to_f16"]((out = empty(x.shape, dtype)), source, x.size);
  else if (dtype === "f32" && (x.dtype === "bf16" || x.dtype === "f16"))
    kernels()[x.dtype === "bf16" ? "bf16_to_f32" : "f16_to_f32"]((out = empty(x.shape, dtype)), source, x.size);
  else out = tensor(hostNumbers(source) as ArrayLike<number>, x.shape, dtype);
  return record(out, [x], (g) => [isReal(x.dtype) || x.dtype === "bf16" || x.dtype === "f16" ? cast(g, x.dtype) : null]);
}

/** Slices of x along an axis, in the order of `index` (torch's index_select), unrecorded; −1 gives `missing`. */
export function selectSlices(x: Tensor, axis: number, index: ArrayLike<number>, missing = 0): Tensor {
  const source = x.contiguous ? x : copyOf(x);
  const out = empty(
    x.shape.map((n, i) => (i === axis ? index.length : n)),
    x.dtype,
  );
  const [to, from] = [hostView(out), hostView(source)];
  const [outer, inner, extent] = [sizeOf(x.shape.slice(0, axis)), sizeOf(x.shape.slice(axis + 1)), x.shape[axis]!];
  for (let o = 0; o < outer; o++)
    for (let i = 0; i < index.length; i++) {
      const [at, start] = [index[i]!, (o * index.length + i) * inner];
      if (at < 0) to.fill(missing as never, start, start + inner);
      else to.set(from.subarray((o * extent + at) * inner, (o * extent + at + 1) * inner) as never, start);
    }
  return out;
}

/** A copy of x whose slices at `index` along an axis are those of `values` (torch's index_copy); the index has no duplicates. */
export function indexCopy(x: Tensor, axis: number, index: readonly number[], values: Tensor): Tensor {
  const at = axisOf(x, axis);
  const expected = x.shape.map((n, i) => (i === at ? index.length : n));
  if (String(values.shape) !== String(expected) || index.some((i) => !(i >= 0 && i < x.shape[at]!)))
    throw new StrutError("shape", `indexCopy: values of shape [${values.shape}] do not fit ${index.length} places along axis ${axis} of [${x.shape}]`);
  const write = (out: Tensor, part: Tensor): Tensor => {
    index.forEach((to, i) => place(out, copyOf(slice(part, at, i, i + 1)), at, to));
    return out;
  };
  return record(
    noGrad(() => write(copyOf(x), values)),
    [x, values],
    (g) => {
      const dx = write(copyOf(g), full(expected, 0, x.dtype));
      return [dx, selectSlices(g, at, index)];
    },
  );
}
