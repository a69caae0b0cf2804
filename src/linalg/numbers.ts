import { StrutError } from "../errors.ts";
import { isReal } from "../tensor/dtype.ts";
import { copyOf, empty, hostView, Tensor } from "../tensor/tensor.ts";
import { doubles, turned } from "./blocks.ts";

/** Rows and columns of an f32 or f64 matrix. */
export function extents(a: Tensor, what: string): [number, number] {
  if (a.shape.length === 2 && isReal(a.dtype)) return a.shape as [number, number];
  throw new StrutError("shape", `${what} needs an f32 or f64 matrix, this is ${a.dtype}[${a.shape}]`, { hint: "Cast or reshape it first." });
}

/** Rows and columns of a square f32 or f64 matrix. */
export function squareExtent(a: Tensor, what: string): number {
  const [n, cols] = extents(a, what);
  if (n === cols) return n;
  throw new StrutError("shape", `${what} needs a square matrix, this one is ${n}×${cols}`);
}

/** The largest magnitude of some numbers, or a StrutError if one is not finite. */
function largest(values: Float64Array | Float32Array, from: number, to: number, what: string): number {
  let top = 0;
  for (let i = from; i < to; i++) {
    const size = Math.abs(values[i]!);
    if (size > top) top = size;
    if (!(size < Infinity))
      throw new StrutError("value", `${what}: the matrix holds ${values[i]}; every entry must be finite`, {
        hint: "Look for an overflow, or for a division by zero, in what made the matrix.",
      });
  }
  return top;
}

/** The largest magnitude, or a StrutError if an entry is not finite. */
export const largestMagnitude = (a: Tensor, what: string): number => largest(hostView(a.contiguous ? a : copyOf(a)) as Float64Array, 0, a.size, what);

/** The power of two next below, within what f64 can invert; multiplying by its inverse brings x into [1, 2) without rounding. */
const powerOfTwo = (x: number): number => (x === 0 ? 1 : 2 ** Math.max(-1021, Math.min(1021, Math.floor(Math.log2(x)))));

/** A copy in f64, times a factor; `a` may have any strides. */
export function widened(a: Tensor, factor = 1): Tensor {
  const source = a.contiguous ? a : copyOf(a);
  const out = empty(a.shape, "f64");
  const [to, from] = [doubles(out), hostView(source) as Float64Array];
  if (factor === 1) to.set(from);
  else for (let i = 0; i < to.length; i++) to[i] = from[i]! * factor;
  return out;
}

/** The rows of a in f64, each divided by a power of two that brings its largest entry into [1, 2); `scales` are those powers. */
export function scaledRows(a: Tensor, what: string): { rows: Tensor; scales: Float64Array } {
  const [n, m] = extents(a, what);
  const source = a.contiguous ? a : copyOf(a);
  const rows = empty([n, m], "f64");
  const [to, from] = [doubles(rows), hostView(source) as Float64Array];
  const scales = new Float64Array(n);
  for (let row = 0; row < n; row++) {
    const scale = powerOfTwo(largest(from, row * m, (row + 1) * m, what));
    const factor = 1 / scale;
    for (let i = row * m; i < (row + 1) * m; i++) to[i] = from[i]! * factor;
    scales[row] = scale;
  }
  return { rows, scales };
}

/** An f64 copy of a, divided by a power of two that brings its largest entry into [1, 2). */
export function scaledDoubles(a: Tensor, what: string): { matrix: Tensor; scale: number } {
  const scale = powerOfTwo(largestMagnitude(a, what));
  return { matrix: widened(a, 1 / scale), scale };
}

/** An f64 copy of a; every entry must be finite. */
export function finiteDoubles(a: Tensor, what: string): Tensor {
  extents(a, what);
  largestMagnitude(a, what);
  return widened(a);
}

/** The same numbers in the dtype asked for: f64 as they are, f32 rounded. */
export function narrowedTo(x: Tensor, dtype: Tensor["dtype"]): Tensor {
  if (dtype === "f64") return x;
  if (!x.contiguous && turned(x).contiguous) return turned(narrowedTo(turned(x), dtype));
  const source = x.contiguous ? x : copyOf(x);
  const out = empty(x.shape);
  (hostView(out) as Float32Array).set(doubles(source));
  return out;
}
