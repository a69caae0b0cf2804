import { referenceKernels } from "../../src/tensor/backends/reference.ts";
import type { KernelName } from "../../src/tensor/backends/signatures.ts";
import type { Allowed, Draw, Entry } from "./draw.ts";
import { U } from "./entries-elementwise.ts";

const reference = (name: KernelName, ...args: unknown[]): void => (referenceKernels[name] as (...args: unknown[]) => void)(...args);
const absolute = (values: ArrayLike<number>): Float64Array => Float64Array.from(values, Math.abs);

function threeAxes(draw: Draw): [number, number, number] {
  if (draw.large)
    return draw
      .one([
        [1, 30_000, 1],
        [1000, 60, 1],
        [1, 300, 400],
        [3, 100, 129],
      ] as const)
      .slice() as [number, number, number];
  return [draw.size(17), draw.size(draw.chance(0.2) ? 300 : 65), draw.one([1, 1, draw.size(65)])];
}

const reduce_sum: Entry = (draw) => {
  const [outer, count, inner] = threeAxes(draw);
  const x = draw.numbers(outer * count * inner);
  const size = new Float64Array(outer * inner);
  reference("reduce_sum", size, absolute(x), outer, count, inner);
  // kept in f64 and rounded once
  return {
    kernel: "reduce_sum",
    args: [draw.output(outer * inner, (expected, i) => U * Math.abs(expected) + count * 2 ** -52 * size[i]!), draw.input(x), outer, count, inner],
  };
};

const reduce_max: Entry = (draw) => {
  const [outer, count, inner] = threeAxes(draw);
  // whole numbers in a narrow range, so that the largest comes more than once
  const x = draw.numbers(outer * count * inner, 4).map((value) => (Number.isFinite(value) && !draw.special ? Math.round(value) : value));
  return { kernel: "reduce_max", args: [draw.output(outer * inner, () => 0), draw.output(outer * inner, "bits", "i32"), draw.input(x), outer, count, inner] };
};

/** Logits, with masked ones among them. */
function logits(draw: Draw, n: number): number[] {
  const spread = draw.one([1, 10]);
  const masked = draw.chance(0.3);
  return draw.numbers(n, spread).map((x) => (masked && draw.chance(0.3) ? draw.rounded(draw.one([-1e30, -Infinity])) : x));
}

const softmax: Entry = (draw) => {
  const [rows, cols] = draw.matrix();
  // x − top errs by U·20, and shifts the exponential by that; exp, sum, division
  return { kernel: "softmax", args: [draw.output(rows * cols, (expected) => 32 * U * Math.abs(expected)), draw.input(logits(draw, rows * cols)), rows, cols] };
};

const softmax_backward: Entry = (draw) => {
  const [rows, cols] = draw.matrix();
  const [y, g] = [new Float64Array(rows * cols), draw.numbers(rows * cols, 2)];
  reference("softmax", y, Float64Array.from(draw.numbers(rows * cols, 3)), rows, cols);
  const stored = Array.from(y, (value) => draw.rounded(value));
  const dots = new Float64Array(rows).map((_, r) =>
    stored.slice(r * cols, (r + 1) * cols).reduce((sum, value, c) => sum + Math.abs(value * g[r * cols + c]!), 0),
  );
  // products rounded once each, their sum once; a difference and a product
  const allowed: Allowed = (_, i) => 4 * U * stored[i]! * (Math.abs(g[i]!) + dots[Math.floor(i / cols)]!);
  return { kernel: "softmax_backward", args: [draw.output(rows * cols, allowed), draw.input(stored), draw.input(g), rows, cols] };
};

/** Rows of different means and sizes, some constant. */
function normInputs(draw: Draw, rows: number, cols: number): number[] {
  return Array.from({ length: rows }, () => {
    const [shift, spread] = [draw.one([0, 0, 3, -100]), draw.one([1, 1, 0.01, 30, 0])];
    return draw.numbers(cols, spread).map((x) => draw.rounded(x + shift));
  }).flat();
}

const layer_norm: Entry = (draw) => {
  const [rows, cols] = draw.matrix();
  const [eps, biased] = [draw.one([1e-5, 1e-12]), draw.chance(0.6)];
  const [x, w, b] = [normInputs(draw, rows, cols), draw.numbers(cols, 2), draw.numbers(cols)];
  const [y, mean, rstd] = [new Float64Array(rows * cols), new Float64Array(rows), new Float64Array(rows)];
  reference("layer_norm", y, mean, rstd, x, w, null, rows, cols, eps);
  const row = (i: number): number => Math.floor(i / cols);
  // f64 sums; then x − mean with a rounded mean, two products and a sum
  const ofY: Allowed = (expected, i) => 6 * U * Math.abs(y[i]!) + 2 * U * Math.abs(mean[row(i)]! * rstd[row(i)]! * w[i % cols]!) + U * Math.abs(expected);
  const ofMean: Allowed = (expected) => U * Math.abs(expected) + 1e-14 * Math.abs(expected);
  // of a constant row the variance is what its mean was rounded by
  const ofRstd: Allowed = (expected, r) => (2 * U + 1e-9) * expected + (mean[r]! * 2 ** -50) ** 2 * expected ** 3;
  return {
    kernel: "layer_norm",
    args: [
      draw.output(rows * cols, ofY),
      draw.output(rows, ofMean),
      draw.output(rows, ofRstd),
      draw.input(x),
      draw.input(w),
      biased ? draw.input(b) : null,
      rows,
      cols,
      eps,
    ],
  };
};

/** Sizes of the terms of both norms' backward passes, to scale errors by. */
function normTerms(g: number[], x: number[], mean: ArrayLike<number> | null, rstd: ArrayLike<number>, w: number[], rows: number, cols: number) {
  const [dx, dw, db] = [new Float64Array(rows * cols), new Float64Array(cols), new Float64Array(cols)];
  for (let r = 0; r < rows; r++) {
    const size = (c: number): number => (Math.abs(x[r * cols + c]!) + Math.abs(mean?.[r] ?? 0)) * rstd[r]!;
    let [along, plain] = [0, 0];
    for (let c = 0; c < cols; c++) {
      const i = r * cols + c;
      along += Math.abs(g[i]! * w[c]!) * size(c);
      plain += mean ? Math.abs(g[i]! * w[c]!) : 0;
      dw[c]! += Math.abs(g[i]!) * size(c);
      db[c]! += Math.abs(g[i]!);
    }
    for (let c = 0; c < cols; c++) dx[r * cols + c] = rstd[r]! * (Math.abs(g[r * cols + c]! * w[c]!) + plain / cols + (size(c) * along) / cols);
  }
  return { dx, dw, db };
}

const layer_norm_backward: Entry = (draw) => {
  const [rows, cols] = draw.matrix();
  const [x, w, g] = [normInputs(draw, rows, cols), draw.numbers(cols, 2), draw.numbers(rows * cols)];
  const [y, means, rstds] = [new Float64Array(rows * cols), new Float64Array(rows), new Float64Array(rows)];
  reference("layer_norm", y, means, rstds, x, w, null, rows, cols, 1e-5);
  const [mean, rstd] = [Array.from(means, (value) => draw.rounded(value)), Array.from(rstds, (value) => draw.rounded(value))];
  const size = normTerms(g, x, mean, rstd, w, rows, cols);
  const [wanted, wantedBias] = [draw.chance(0.7), draw.chance(0.7)];
  const dw = wanted ? draw.output(cols, (_, c) => 4 * U * size.dw[c]!) : null;
  const db = wantedBias ? draw.output(cols, (_, c) => 2 * U * size.db[c]!) : null;
  return {
    kernel: "layer_norm_backward",
    args: [
      draw.output(rows * cols, (_, i) => 8 * U * size.dx[i]!),
      dw,
      db,
      draw.input(g),
      draw.input(x),
      draw.input(mean),
      draw.input(rstd),
      draw.input(w),
      rows,
      cols,
    ],
  };
};

const rms_norm: Entry = (draw) => {
  const [rows, cols] = draw.matrix();
  const relative: Allowed = (expected) => 4 * U * Math.abs(expected);
  return {
    kernel: "rms_norm",
    args: [
      draw.output(rows * cols, relative),
      draw.output(rows, relative),
      draw.input(normInputs(draw, rows, cols)),
      draw.reals(cols, 2),
      rows,
      cols,
      draw.one([1e-5, 1e-6]),
    ],
  };
};

const rms_norm_backward: Entry = (draw) => {
  const [rows, cols] = draw.matrix();
  const [x, w, g] = [normInputs(draw, rows, cols), draw.numbers(cols, 2), draw.numbers(rows * cols)];
  const [y, rstds] = [new Float64Array(rows * cols), new Float64Array(rows)];
  reference("rms_norm", y, rstds, x, w, rows, cols, 1e-5);
  const rstd = Array.from(rstds, (value) => draw.rounded(value));
  const size = normTerms(g, x, null, rstd, w, rows, cols);
  const dw = draw.chance(0.7) ? draw.output(cols, (_, c) => 4 * U * size.dw[c]!) : null;
  return {
    kernel: "rms_norm_backward",
    args: [draw.output(rows * cols, (_, i) => 8 * U * size.dx[i]!), dw, draw.input(g), draw.input(x), draw.input(rstd), draw.input(w), rows, cols],
  };
};

const rotary: Entry = (draw) => {
  const [seq, heads, dim] = draw.large ? [100, 7, 66] : [draw.one([1, 2, 5, 17]), draw.one([1, 2, 3, 8]), draw.one([2, 4, 6, 8, 16, 30, 32, 34, 64, 130])];
  const rows = seq * draw.one([0, 1, 1, 2, 3]);
  const xRow = heads * dim + draw.one([0, 0, 3, heads * dim]);
  const angles = Array.from({ length: (seq * dim) / 2 }, () => draw.next() * 6.3);
  const [cos, sin] = [angles.map((a) => draw.rounded(Math.cos(a))), angles.map((a) => draw.rounded(Math.sin(a)))];
  const x = draw.strided([rows, heads * dim], [xRow, 1], 2);
  // two products and a sum of numbers below 2
  const size = (i: number): number => {
    const at = Math.floor(i / (heads * dim)) * xRow + (Math.floor(i / dim) % heads) * dim + (i % (dim / 2));
    return Math.abs(x[at]!) + Math.abs(x[at + dim / 2]!);
  };
  return {
    kernel: "rotary",
    args: [
      draw.output(rows * heads * dim, (_, i) => 2 * U * size(i)),
      draw.input(x),
      draw.input(cos),
      draw.input(sin),
      rows,
      seq,
      heads,
      dim,
      xRow,
      draw.one([0, 1]),
    ],
  };
};

function lookup(draw: Draw): [number, number, number, number[]] {
  const [n, dim, rows] = draw.large ? [draw.integer(200, 400), draw.integer(150, 300), 50] : [draw.size(65), draw.size(129), draw.one([1, 2, 7, 40])];
  return [n, dim, rows, Array.from({ length: n }, () => draw.integer(0, rows - 1))];
}

const gather_rows: Entry = (draw) => {
  const [n, dim, rows, ids] = lookup(draw);
  return { kernel: "gather_rows", args: [draw.output(n * dim), draw.reals(rows * dim), draw.integers(ids), n, dim, rows] };
};

const scatter_add_rows: Entry = (draw) => {
  const [n, dim, rows, ids] = lookup(draw);
  const [table, g] = [draw.numbers(rows * dim), draw.numbers(n * dim)];
  const size = absolute(table);
  reference("scatter_add_rows", size, absolute(g), ids, n, dim);
  const count = (row: number): number => ids.filter((id) => id === row).length;
  // one addition for each time that the row comes up
  return {
    kernel: "scatter_add_rows",
    args: [draw.inout(table, (_, i) => count(Math.floor(i / dim)) * U * size[i]!), draw.input(g), draw.integers(ids), n, dim, rows],
  };
};

function targets(draw: Draw, rows: number, cols: number): number[] {
  return Array.from({ length: rows }, () => (draw.chance(0.2) || cols === 0 ? draw.one([-1, -100]) : draw.integer(0, cols - 1)));
}

const cross_entropy: Entry = (draw) => {
  const [rows, cols] = draw.matrix();
  const x = logits(draw, rows * cols);
  const ids = targets(draw, rows, cols);
  const lse = new Float64Array(rows);
  reference("cross_entropy", new Float64Array(rows), lse, Float64Array.from(x), ids, rows, cols);
  // exponentials to 8U relative, so their log to 8U absolute; sums with top and logit
  const ofLse: Allowed = (expected) => U * (8 + 2 * Math.abs(expected));
  const ofLoss: Allowed = (expected, r) => U * (24 + 2 * Math.abs(lse[r]!) + 2 * Math.abs(expected));
  return { kernel: "cross_entropy", args: [draw.output(rows, ofLoss), draw.output(rows, ofLse), draw.input(x), draw.integers(ids), rows, cols] };
};

const cross_entropy_backward: Entry = (draw) => {
  const [rows, cols] = draw.matrix();
  const x = logits(draw, rows * cols);
  const ids = targets(draw, rows, cols);
  const lses = new Float64Array(rows);
  reference("cross_entropy", new Float64Array(rows), lses, Float64Array.from(x), ids, rows, cols);
  const lse = Array.from(lses, (value) => draw.rounded(value));
  const scale = draw.numbers(rows);
  const allowed: Allowed = (expected, i) => {
    const [r, c] = [Math.floor(i / cols), i % cols];
    const p = Math.exp(x[i]! - lse[r]!);
    // l − lse errs by U of itself and p by as much; exp, difference, product
    return U * Math.abs(scale[r]!) * ((p > 0 ? p * (6 + Math.abs(x[i]! - lse[r]!)) : 0) + (ids[r] === c ? 1 : 0)) + U * Math.abs(expected);
  };
  const rest = [draw.input(lse), draw.integers(ids), draw.input(scale), rows, cols] as const;
  if (draw.chance(0.4)) {
    const both = draw.inout(x, allowed);
    return { kernel: "cross_entropy_backward", args: [both, both, ...rest] };
  }
  return { kernel: "cross_entropy_backward", args: [draw.output(rows * cols, allowed), draw.input(x), ...rest] };
};

export const rows = {
  reduce_sum,
  reduce_max,
  softmax,
  softmax_backward,
  layer_norm,
  layer_norm_backward,
  rms_norm,
  rms_norm_backward,
  rotary,
  gather_rows,
  scatter_add_rows,
  cross_entropy,
  cross_entropy_backward,
};
