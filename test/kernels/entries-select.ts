import { referenceKernels } from "../../src/tensor/backends/reference.ts";
import { topScratch } from "../../src/tensor/backends/signatures-select.ts";
import type { Draw, Entry, Piece } from "./draw.ts";
import { U } from "./entries-elementwise.ts";

/** Numbers of which many are equal, and some are zeros of both signs, infinities or NaN. */
function tied(draw: Draw, n: number): Piece {
  const levels = draw.one([1, 3, 50, 1e6]);
  const odd = draw.chance(0.5);
  return draw.input(
    Array.from({ length: n }, () =>
      odd && draw.chance(0.15) ? draw.one([0, -0, Infinity, -Infinity, NaN, 1e-42, -3e38]) : draw.rounded(draw.integer(-levels, levels) / levels),
    ),
  );
}

/** Rows and columns, with rows long enough for every way of sorting. */
const rowsAndColumns = (draw: Draw): [number, number] =>
  draw.large
    ? draw.one([
        [1, 30_000],
        [7, 3000],
        [400, 60],
      ])
    : draw.chance(0.15)
      ? [draw.one([1, 2]), draw.one([700, 2100])]
      : draw.matrix();

const scratchOf = (draw: Draw, doubles: number): Piece => draw.output(doubles, "anything", "f64");

const sort_rows: Entry = (draw) => {
  const [rows, n] = rowsAndColumns(draw);
  const lanes = draw.one([1, 2, 5]);
  return {
    kernel: "sort_rows",
    args: [draw.output(rows * n), draw.output(rows * n, "bits", "i32"), tied(draw, rows * n), scratchOf(draw, lanes * 2 * n), rows, n, draw.one([0, 1]), lanes],
  };
};

const top_rows: Entry = (draw) => {
  const [rows, n] = rowsAndColumns(draw);
  const k = draw.one([0, n, Math.min(n, 1), Math.min(n, 10), draw.integer(0, n)]);
  const lanes = draw.one([1, 2, 5]);
  return {
    kernel: "top_rows",
    args: [
      draw.output(rows * k),
      draw.output(rows * k, "bits", "i32"),
      tied(draw, rows * n),
      scratchOf(draw, lanes * topScratch(k)),
      rows,
      n,
      k,
      draw.one([0, 1]),
      lanes,
    ],
  };
};

const kth_rows: Entry = (draw) => {
  const [rows, wide] = rowsAndColumns(draw);
  const n = Math.max(1, wide);
  const k = draw.one([0, n - 1, draw.integer(0, n - 1)]);
  return { kernel: "kth_rows", args: [draw.output(rows), draw.output(rows, "bits", "i32"), tied(draw, rows * n), rows, n, k, draw.one([0, 1])] };
};

const rank_mask: Entry = (draw) => {
  const n = draw.count();
  const x = tied(draw, n);
  return { kernel: "rank_mask", args: [draw.output(n), x, n, draw.integer(0, n), draw.one([0, 1]), n > 0 ? draw.one([...x.values]) : 0] };
};

/** outer, count, extent, inner of an indexed axis, with an index into it. */
function along(draw: Draw): { size: [number, number, number, number]; index: number[] } {
  const [outer, count, extent, inner] = draw.large
    ? draw.one([
        [1, 50_000, 999, 1],
        [30, 40, 7, 50],
        [1, 300, 5, 200],
      ] as const)
    : ([draw.size(5), draw.size(33), draw.one([1, 2, 9, 40]), draw.one([1, 1, draw.size(33)])] as const);
  return { size: [outer, count, extent, inner], index: Array.from({ length: outer * count * inner }, () => draw.integer(0, extent - 1)) };
}

const gather_along: Entry = (draw) => {
  const { size, index } = along(draw);
  const [outer, , extent, inner] = size;
  return { kernel: "gather_along", args: [draw.output(index.length), draw.reals(outer * extent * inner), draw.integers(index), ...size] };
};

const scatter_add_along: Entry = (draw) => {
  const { size, index } = along(draw);
  const [outer, count, extent, inner] = size;
  const [start, x] = [draw.numbers(outer * extent * inner), draw.numbers(index.length)];
  const [terms, total] = [new Float64Array(start.length), Float64Array.from(start, Math.abs)];
  referenceKernels.scatter_add_along(...([terms, new Float64Array(x.length).fill(1), index, ...size] as never[]));
  referenceKernels.scatter_add_along(...([total, x.map(Math.abs), index, ...size] as never[]));
  // one rounded addition for each term
  const allowed = (_: number, i: number): number => terms[i]! * U * total[i]!;
  return { kernel: "scatter_add_along", args: [draw.inout(start, allowed), draw.input(x), draw.integers(index), outer, count, extent, inner] };
};

const where: Entry = (draw) => {
  const n = draw.count();
  const condition = Array.from({ length: n }, () => draw.one([0, -0, 1, -2.5, NaN, 1e-42]));
  return { kernel: "where", args: [draw.output(n), draw.input(condition), tied(draw, n), tied(draw, n), n] };
};

const cumulative_sum: Entry = (draw) => {
  const [outer, count, inner] = draw.large
    ? draw.one([
        [3, 9000, 1],
        [30, 40, 70],
      ] as const)
    : ([draw.size(17), draw.size(), draw.one([1, 1, draw.size(129)])] as const);
  const x = draw.numbers(outer * count * inner);
  const reverse = draw.one([0, 1]);
  const size = new Float64Array(x.length);
  referenceKernels.cumulative_sum(...([size, x.map(Math.abs), outer, count, inner, reverse] as never[]));
  // kept in f64 and rounded once
  const allowed = (expected: number, i: number): number => U * Math.abs(expected) + count * 2 ** -52 * size[i]!;
  return { kernel: "cumulative_sum", args: [draw.output(x.length, allowed), draw.input(x), outer, count, inner, reverse] };
};

const segment_sum: Entry = (draw) => {
  const [rows, dim] = draw.matrix();
  const segments = draw.one([0, 1, 3, 40]);
  const cuts = Array.from({ length: Math.max(0, segments - 1) }, () => draw.integer(0, rows)).sort((a, b) => a - b);
  const offsets = segments === 0 ? [0] : [0, ...cuts, rows];
  const x = draw.numbers(rows * dim);
  const size = new Float64Array(segments * dim);
  referenceKernels.segment_sum(...([size, x.map(Math.abs), offsets, segments, dim] as never[]));
  const allowed = (expected: number, i: number): number => U * Math.abs(expected) + rows * 2 ** -52 * size[i]!;
  return { kernel: "segment_sum", args: [draw.output(segments * dim, allowed), draw.input(x), draw.integers(offsets), segments, dim, rows] };
};

export const select = {
  sort_rows,
  top_rows,
  kth_rows,
  rank_mask,
  gather_along,
  scatter_add_along,
  where,
  cumulative_sum,
  segment_sum,
} satisfies Record<string, Entry>;
