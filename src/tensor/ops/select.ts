import { StrutError } from "../../errors.ts";
import { isReal } from "../dtype.ts";
import { topScratch } from "../backends/signatures-select.ts";
import { engine, kernels } from "../engine.ts";
import { noGrad, record } from "../tape.ts";
import { empty, full, hostView, sizeOf, Tensor, zeros } from "../tensor.ts";
import { add, equal, scale } from "./elementwise.ts";
import { max } from "./reduce.ts";
import { where } from "./scatter.ts";
import { axisOf, concat, contiguous, reshape, transpose } from "./shape.ts";

export interface Ordered {
  values: Tensor;
  /** i32 places along the axis. */
  indices: Tensor;
}

/** x with the axis last, as rows, and the way back for a result with k elements a row. */
function rowsAlong(x: Tensor, axis: number): { source: Tensor; rows: number; n: number; back: (out: Tensor, k: number) => Tensor } {
  if (!isReal(x.dtype)) throw new StrutError("dtype", `only f32 and f64 have an order here, this tensor is ${x.dtype}`, { hint: "Cast it first." });
  const at = axisOf(x, axis);
  const moved = transpose(x, at, -1);
  const n = x.shape[at]!;
  const lead = moved.shape.slice(0, -1);
  return { source: contiguous(moved), rows: sizeOf(lead), n, back: (out, k) => transpose(reshape(out, [...lead, k]), at, -1) };
}

/** Kernel output [rows, k] and its places, with the gradient put back there. */
function picked(source: Tensor, rows: number, n: number, k: number, run: (values: Tensor, indices: Tensor) => void): Ordered {
  const [values, indices] = [empty([rows, k], source.dtype), empty([rows, k], "i32")];
  run(values, indices);
  record(values, [source], (g) => {
    const dx = zeros(source.shape, source.dtype);
    kernels().scatter_add_along(dx, contiguous(g), indices, rows, k, n, 1);
    return [dx];
  });
  return { values, indices };
}

const numberIn = (x: Tensor): number => Number(hostView(x)[0]);
const lanesFor = (rows: number): number => Math.max(1, Math.min(rows, engine().backend.threads));
/** Working space that returns to the pool when the caller's scope closes. */
const scratchOf = (doubles: number): Tensor => empty([doubles], "f64");

/**
 * The elements along an axis in order and where they stood. Stable: equal elements keep their order; NaN comes last, −0 equals 0.
 *
 * @example
 * const { values, indices } = sort(tensor([3, 1, 2]), { descending: true }); // 3 2 1 at 0 2 1
 */
export function sort(x: Tensor, { axis = -1, descending = false }: { axis?: number; descending?: boolean } = {}): Ordered {
  const { source, rows, n, back } = rowsAlong(x, axis);
  const lanes = lanesFor(rows);
  const { values, indices } = picked(source, rows, n, n, (to, at) => {
    const scratch = scratchOf(lanes * 2 * n);
    kernels().sort_rows(to, at, source, scratch, rows, n, Number(descending), lanes);
    engine().pool.free(scratch.handle);
  });
  return { values: back(values, n), indices: back(indices, n) };
}

/** Where each place went: the order that undoes an order of 0…n−1. */
export function inverseOrder(order: ArrayLike<number>): Int32Array {
  const places = new Int32Array(order.length).fill(-1);
  for (let i = 0; i < order.length; i++) places[order[i]!] = i;
  return places;
}

/** The places along an axis in the order of their elements, i32; see `sort`. */
export const argsort = (x: Tensor, options: { axis?: number; descending?: boolean } = {}): Tensor => noGrad(() => contiguous(sort(x, options).indices));

/**
 * The k largest (or smallest) elements along an axis, best first; of equal ones those with the lower index. NaN is never preferred.
 *
 * @example
 * const { values, indices } = topk(tensor([1, 5, 5, 2]), 2); // 5 5 at 1 2
 */
export function topk(x: Tensor, k: number, { axis = -1, largest = true }: { axis?: number; largest?: boolean } = {}): Ordered {
  const { source, rows, n, back } = rowsAlong(x, axis);
  if (!(Number.isInteger(k) && k >= 0 && k <= n)) throw new StrutError("range", `topk: k is ${k}; the axis has ${n} elements, so k must lie in 0…${n}`);
  const lanes = lanesFor(rows);
  const { values, indices } = picked(source, rows, n, k, (to, at) => {
    const scratch = scratchOf(lanes * topScratch(k));
    kernels().top_rows(to, at, source, scratch, rows, n, k, Number(largest), lanes);
    engine().pool.free(scratch.handle);
  });
  return { values: back(values, k), indices: back(indices, k) };
}

/** The k-th smallest element along an axis (k from 1, as in torch), or the k-th largest; the axis is dropped. NaN comes last. */
export function kthValue(x: Tensor, k: number, { axis = -1, largest = false }: { axis?: number; largest?: boolean } = {}): Ordered {
  const { source, rows, n, back } = rowsAlong(x, axis);
  if (!(Number.isInteger(k) && k >= 1 && k <= n)) throw new StrutError("range", `kthValue: k is ${k}; the axis has ${n} elements, so k must lie in 1…${n}`);
  const { values, indices } = picked(source, rows, n, 1, (to, at) => kernels().kth_rows(to, at, source, rows, n, k - 1, Number(largest)));
  const shape = x.shape.filter((_, i) => i !== axisOf(x, axis));
  return { values: reshape(back(values, 1), shape), indices: reshape(back(indices, 1), shape) };
}

/** The q-quantile along an axis, by linear interpolation between neighbours (torch's default); NaN if one is NaN. The axis is dropped. */
export function quantile(x: Tensor, q: number, axis = -1): Tensor {
  const n = x.shape[axisOf(x, axis)]!;
  if (!(q >= 0 && q <= 1)) throw new StrutError("range", `quantile: q is ${q}; it must lie in [0, 1]`);
  if (n === 0) throw new StrutError("shape", `quantile: axis ${axis} of shape [${x.shape}] is empty`);
  const place = q * (n - 1);
  const low = Math.floor(place);
  const below = kthValue(x, low + 1, { axis }).values;
  const share = place - low;
  const value = share === 0 ? below : add(scale(below, 1 - share), scale(kthValue(x, low + 2, { axis }).values, share));
  const top = max(x, axis).values;
  return where(equal(top, top), value, top);
}

/** The k-th largest (or smallest) of all elements of several tensors: its value, which tensor holds it, and where (row-major). */
export function globalKthValue(tensors: readonly Tensor[], k: number, { largest = true } = {}): { value: number; tensor: number; index: number } {
  const count = tensors.reduce((sum, { size }) => sum + size, 0);
  if (!(Number.isInteger(k) && k >= 1 && k <= count))
    throw new StrutError("range", `k is ${k}; the tensors have ${count} elements together, so k must lie in 1…${count}`);
  const all = noGrad(() => concat(tensors.map((x) => reshape(x, [-1]))));
  const { values, indices } = noGrad(() => kthValue(all, k, { largest }));
  let index = numberIn(indices);
  const value = numberIn(values);
  let tensor = 0;
  while (index >= tensors[tensor]!.size) index -= tensors[tensor++]!.size;
  return { value, tensor, index };
}

/**
 * Masks (1 or 0) of the k largest (or smallest) elements of several tensors together: exactly k ones, ties to earlier tensors and places.
 *
 * @example
 * const masks = globalMasks([tensor([1, 4]), tensor([4, 2])], 2); // [0, 1] and [1, 0]
 */
export function globalMasks(tensors: readonly Tensor[], k: number, { largest = true } = {}): Tensor[] {
  if (k === 0) return tensors.map((x) => zeros(x.shape, x.dtype));
  const edge = globalKthValue(tensors, k, { largest });
  return tensors.map((x, t) => {
    const out = full(x.shape, 0, x.dtype);
    const ties = t < edge.tensor ? x.size : t === edge.tensor ? edge.index + 1 : 0;
    kernels().rank_mask(
      out,
      noGrad(() => contiguous(x)),
      x.size,
      ties,
      Number(largest),
      edge.value,
    );
    return out;
  });
}
