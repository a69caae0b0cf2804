import type { Ints, Reals } from "./types.ts";

/** Places 0 … n−1 in the order of their elements: NaN last, ties by place. */
function orderOf(x: Reals, down: number): number[] {
  const before = (a: number, b: number): number =>
    Number.isNaN(a) || Number.isNaN(b) ? Number(Number.isNaN(a)) - Number(Number.isNaN(b)) : down ? b - a || 0 : a - b || 0;
  return Array.from(x, (_, i) => i).sort((i, j) => (x[i] === x[j] ? 0 : before(x[i]!, x[j]!)) || i - j);
}

/** Elements from ≤ place < to of each row's order. */
function ordered(values: Reals, index: Ints, x: Reals, rows: number, n: number, from: number, to: number, down: number): void {
  for (let r = 0; r < rows; r++) {
    const row = x.subarray(r * n, (r + 1) * n);
    orderOf(row, down)
      .slice(from, to)
      .forEach((place, i) => {
        values[r * (to - from) + i] = row[place]!;
        index[r * (to - from) + i] = place;
      });
  }
}

export function sort_rows(values: Reals, index: Ints, x: Reals, _scratch: Reals, rows: number, n: number, down: number): void {
  ordered(values, index, x, rows, n, 0, n, down);
}

export function top_rows(values: Reals, index: Ints, x: Reals, _scratch: Reals, rows: number, n: number, k: number, down: number): void {
  ordered(values, index, x, rows, n, 0, k, down);
}

export function kth_rows(values: Reals, index: Ints, x: Reals, rows: number, n: number, k: number, down: number): void {
  ordered(values, index, x, rows, n, k, k + 1, down);
}

export function rank_mask(out: Reals, x: Reals, n: number, ties: number, down: number, edge: number): void {
  for (let i = 0; i < n; i++) {
    const same = x[i] === edge || (Number.isNaN(x[i]) && Number.isNaN(edge));
    const ahead = Number.isNaN(edge) ? !Number.isNaN(x[i]) : down ? x[i]! > edge : x[i]! < edge;
    out[i] = ahead || (same && i < ties) ? 1 : 0;
  }
}

export function gather_along(out: Reals, x: Reals, index: Ints, outer: number, count: number, extent: number, inner: number): void {
  for (let o = 0; o < outer; o++)
    for (let c = 0; c < count; c++)
      for (let i = 0; i < inner; i++) {
        const at = (o * count + c) * inner + i;
        out[at] = x[(o * extent + index[at]!) * inner + i]!;
      }
}

export function scatter_add_along(out: Reals, x: Reals, index: Ints, outer: number, count: number, extent: number, inner: number): void {
  for (let o = 0; o < outer; o++)
    for (let c = 0; c < count; c++)
      for (let i = 0; i < inner; i++) {
        const at = (o * count + c) * inner + i;
        out[(o * extent + index[at]!) * inner + i]! += x[at]!;
      }
}

export function where(out: Reals, condition: Reals, a: Reals, b: Reals, n: number): void {
  for (let i = 0; i < n; i++) out[i] = condition[i] !== 0 ? a[i]! : b[i]!;
}

export function cumulative_sum(out: Reals, x: Reals, outer: number, count: number, inner: number, reverse: number): void {
  for (let o = 0; o < outer; o++)
    for (let i = 0; i < inner; i++) {
      let sum = 0;
      for (let step = 0; step < count; step++) {
        const at = (o * count + (reverse ? count - 1 - step : step)) * inner + i;
        out[at] = sum += x[at]!;
      }
    }
}

export function segment_sum(out: Reals, x: Reals, offsets: Ints, segments: number, dim: number): void {
  for (let s = 0; s < segments; s++)
    for (let d = 0; d < dim; d++) {
      let sum = 0;
      for (let r = offsets[s]!; r < offsets[s + 1]!; r++) sum += x[r * dim + d]!;
      out[s * dim + d] = sum;
    }
}
