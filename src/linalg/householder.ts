import { kernels } from "../tensor/engine.ts";
import { scope } from "../tensor/scope.ts";
import { empty, zeros, type Tensor } from "../tensor/tensor.ts";
import { block, doubles, multiplyInto, turned } from "./blocks.ts";

/** Columns of one panel. */
const PANEL = 32;

/** Q = H₁·H₂⋯ in blocks I − V·T·Vᵀ of `PANEL` reflectors, or of what is left. */
export interface Reflectors {
  /** One reflector a row (k×m), with its leading zeros and its one. */
  v: Tensor;
  /** T of each block, upper triangular, one after the other along the first axis. */
  t: Tensor;
}

const panels = (count: number): { from: number; to: number }[] =>
  Array.from({ length: Math.ceil(count / PANEL) }, (_, i) => ({ from: i * PANEL, to: Math.min(count, (i + 1) * PANEL) }));

/** The part of V that a block needs, and its T. */
function blockOf({ v, t }: Reflectors, from: number, to: number): { own: Tensor; factor: Tensor } {
  const m = v.shape[1]!;
  const width = to - from;
  const factor = block(t, from, from + width, 0, width);
  factor.strides = [width, 1];
  return { own: block(v, from, to, from, m), factor };
}

/** rows −= ((rows·Vᵀ)·T)·V, which applies I − V·T·Vᵀ from the right. */
function reflectRows(rows: Tensor, own: Tensor, factor: Tensor): void {
  if (rows.shape[0] === 0) return;
  scope(() => {
    const [dots, mixed] = [empty([rows.shape[0]!, own.shape[0]!], "f64"), empty([rows.shape[0]!, own.shape[0]!], "f64")];
    multiplyInto(dots, rows, turned(own));
    multiplyInto(mixed, dots, factor);
    multiplyInto(rows, mixed, own, -1, 1);
  });
}

/**
 * Householder QR in place of the matrix whose columns are the rows of `columns` (n×m, f64, entries about 1 at most: what
 * is below 1e-140 counts as zero). Row j keeps column j of R, then zeros; R's diagonal may have either sign.
 */
export function householder(columns: Tensor): Reflectors {
  const [n, m] = columns.shape as [number, number];
  const count = Math.min(n, m);
  const reflectors = { v: zeros([count, m], "f64"), t: empty([count, PANEL], "f64") };
  for (const { from, to } of panels(count)) {
    const { own, factor } = blockOf(reflectors, from, to);
    kernels().householder_panel(block(columns, from, to, from, m), own, factor, m - from, to - from, columns.strides[0]!, m);
    reflectRows(block(columns, to, n, from, m), own, factor);
  }
  return reflectors;
}

/** Q·C, or Qᵀ·C if `transpose`, in place, for the matrix C whose columns are the rows of `columns` (f64). */
export function applyReflectors(columns: Tensor, reflectors: Reflectors, transpose = false): void {
  const [rows, m] = columns.shape as [number, number];
  const all = panels(reflectors.v.shape[0]!);
  for (const { from, to } of transpose ? all : all.toReversed()) {
    const { own, factor } = blockOf(reflectors, from, to);
    reflectRows(block(columns, 0, rows, from, m), own, transpose ? factor : turned(factor));
  }
}

/** The first `count` columns of Q, as the rows of a matrix. */
export function orthogonalRows(reflectors: Reflectors, count: number): Tensor {
  const m = reflectors.v.shape[1]!;
  const out = zeros([count, m], "f64");
  const values = doubles(out);
  for (let i = 0; i < count; i++) values[i * (m + 1)] = 1;
  for (const { from, to } of panels(reflectors.v.shape[0]!).toReversed()) {
    const { own, factor } = blockOf(reflectors, from, to);
    // the rows before are those of the identity still, which end where the block begins
    reflectRows(block(out, from, count, from, m), own, turned(factor));
  }
  return out;
}
