import { referenceKernels } from "../../src/tensor/backends/reference.ts";
import { BINARY, UNARY } from "../../src/tensor/backends/signatures-core.ts";
import type { Allowed, Draw, Entry } from "./draw.ts";

/** Unit roundoff of f32: a correctly rounded operation errs by at most U relative. */
export const U = 2 ** -24;

/** Distance of subnormal numbers: what a gate of nearly 0 may err by. */
const GRAIN = 2 ** -149;

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
const tanhInner = (x: number): number => Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3);

/** Four extents and strides of an operand walked over them: contiguous, with gaps, transposed or broadcast. */
export function stridesOver(draw: Draw, extents: readonly number[]): number[] {
  const order = draw.chance(0.5)
    ? [0, 1, 2, 3]
    : draw.one([
        [0, 1, 3, 2],
        [3, 2, 1, 0],
        [0, 2, 1, 3],
        [2, 0, 3, 1],
      ]);
  const strides = [0, 0, 0, 0];
  let step = draw.one([1, 1, 1, 2, 3]);
  for (const axis of [...order].reverse()) {
    strides[axis] = draw.chance(0.15) ? 0 : step;
    step = Math.max(1, step) * Math.max(1, extents[axis]!) + draw.one([0, 0, 0, 1, 5]);
  }
  return strides;
}

function extents(draw: Draw): [number, number, number, number] {
  if (draw.large)
    return draw
      .one([
        [1, 1, 211, 307],
        [2, 3, 100, 120],
        [70_000, 1, 1, 1],
        [1, 40, 1, 2000],
      ] as const)
      .slice() as [number, number, number, number];
  return draw.one([
    [draw.size(3), draw.size(4), draw.size(5), draw.size(33)],
    [1, 1, draw.size(33), draw.size(129)],
    [1, 1, 1, draw.size()],
    [draw.size(17), 1, draw.size(33), 1],
  ]);
}

const binary: Entry = (draw) => {
  const op = draw.one(Object.values(BINARY));
  const shape = extents(draw);
  const [a, b] = [stridesOver(draw, shape), stridesOver(draw, shape)];
  const size = shape.reduce((x, y) => x * y, 1);
  // Each is one rounding of an exact result (f64 holds more than twice the bits), so nothing may differ but the sign of a zero maximum.
  const allowed: Allowed = op === BINARY.maximum || op === BINARY.minimum ? () => 0 : "bits";
  return {
    kernel: "binary",
    args: [op, draw.output(size, allowed), draw.input(draw.strided(shape, a, 3)), draw.input(draw.strided(shape, b, 3)), ...shape, ...a, ...b],
  };
};

const copy: Entry = (draw) => {
  const shape = extents(draw);
  const strides = stridesOver(draw, shape);
  return { kernel: "copy", args: [draw.output(shape.reduce((x, y) => x * y, 1)), draw.input(draw.strided(shape, strides)), ...shape, ...strides] };
};

/** Relative error allowed at x; functions by polynomial get 2 ulp (4U), and what their argument's own rounding costs. */
const unaryError: Record<number, (x: number) => number> = {
  [UNARY.neg]: () => 0,
  [UNARY.exp]: () => 4 * U,
  [UNARY.log]: () => 4 * U,
  [UNARY.sqrt]: () => 0,
  [UNARY.rsqrt]: () => 3 * U,
  [UNARY.tanh]: () => 6 * U,
  [UNARY.sigmoid]: () => 6 * U,
  [UNARY.silu]: () => 8 * U,
  [UNARY.gelu]: () => 16 * U,
  // σ(2u), u by three roundings of a value up to |2u| before the exponential
  [UNARY.geluTanh]: (x) => (8 + 10 * Math.abs(tanhInner(x))) * U,
  [UNARY.relu]: () => 0,
  [UNARY.abs]: () => 0,
  [UNARY.sign]: () => 0,
  [UNARY.square]: () => 0,
  [UNARY.reciprocal]: () => 0,
};

/** Inputs of one operation, within its domain except where `special` adds the rest. */
const domain = (draw: Draw, op: number, n: number): number[] => {
  const spread = draw.one([0.01, 1, 4, 12, op === UNARY.exp || op === UNARY.sigmoid ? 80 : 5]);
  const positive = !draw.special && (op === UNARY.log || op === UNARY.sqrt || op === UNARY.rsqrt);
  return draw
    .numbers(n, spread)
    .map((x) => (positive ? Math.abs(x) + 2 ** -30 : x))
    .map((x) => draw.rounded(x));
};

const unary: Entry = (draw) => {
  const op = draw.one(Object.values(UNARY));
  const n = draw.count();
  const x = domain(draw, op, n);
  const limit = unaryError[op]!;
  // far left of zero the reference itself loses 1 + tanh and 1 + erf to cancellation
  const cancelled = op === UNARY.gelu || op === UNARY.geluTanh ? 2 ** -51 : 0;
  const allowed: Allowed = (expected, i) => (limit(x[i]!) === 0 ? 0 : limit(x[i]!) * Math.abs(expected) + (cancelled + GRAIN) * Math.abs(x[i]!));
  if (draw.chance(0.3)) {
    const both = draw.inout(x, allowed);
    return { kernel: "unary", args: [op, both, both, n] };
  }
  return { kernel: "unary", args: [op, draw.output(n, allowed), draw.input(x), n] };
};

/** Error of g·op′(x), over |g|: 4U relative, and absolute where the derivative is a difference (1 − y², s(1 + x(1 − s)) …). */
const derivativeError: Record<number, (x: number) => number> = {
  [UNARY.tanh]: () => 4 * U,
  [UNARY.sigmoid]: (x) => 2 * U * sigmoid(x),
  [UNARY.silu]: (x) => 10 * U * sigmoid(x) * (1 + Math.abs(x)),
  [UNARY.gelu]: () => 16 * U,
  // 1 − s errs by 2U until s rounds to 1, and is multiplied by the slope of 2u
  [UNARY.geluTanh]: (x) => (16 + (x < 6 ? 2 * Math.abs(x) * sigmoid(2 * tanhInner(x)) * (1.6 + 0.22 * x * x) : 0)) * U,
};

const unary_backward: Entry = (draw) => {
  const op = draw.one(Object.values(UNARY));
  const n = draw.count();
  const x = domain(draw, op, n);
  const y = new Array<number>(n).fill(0);
  (referenceKernels.unary as (...args: unknown[]) => void)(op, y, x, n);
  const g = draw.numbers(n, 2);
  // rsqrt′ may be written with y³ instead of y/x, which triples the rounding of y.
  const allowed: Allowed = (expected, i) => (op === UNARY.rsqrt ? 8 : 4) * U * Math.abs(expected) + Math.abs(g[i]!) * (derivativeError[op]?.(x[i]!) ?? 0);
  const rest = [draw.input(x), draw.input(y.map((value) => draw.rounded(value)))] as const;
  if (draw.chance(0.3)) {
    const both = draw.inout(g, allowed);
    return { kernel: "unary_backward", args: [op, both, ...rest, both, n] };
  }
  return { kernel: "unary_backward", args: [op, draw.output(n, allowed), ...rest, draw.input(g), n] };
};

const fill: Entry = (draw) => {
  const n = draw.count();
  return { kernel: "fill", args: [draw.output(n), draw.one([0, -0, 1, 0.1, -1e30, Infinity, NaN]), n] };
};

const axpby: Entry = (draw) => {
  const n = draw.count();
  const [a, b] = [draw.one([1, -1, 0.3, 0]), draw.one([0, 0, 1, -1, 0.9])];
  const [x, y] = [draw.numbers(n), draw.numbers(n)];
  // a and b are rounded to f32, then two products and a sum
  const allowed: Allowed = (expected, i) => 2 * U * (Math.abs(a * x[i]!) + Math.abs(b === 0 ? 0 : b * y[i]!)) + U * Math.abs(expected);
  return { kernel: "axpby", args: [b === 0 ? draw.output(n, allowed) : draw.inout(y, allowed), a, draw.input(x), b, n] };
};

const swiglu: Entry = (draw) => {
  const n = draw.count();
  return { kernel: "swiglu", args: [draw.output(n, (expected) => 10 * U * Math.abs(expected)), draw.reals(n, draw.one([1, 10])), draw.reals(n, 3), n] };
};

const swiglu_backward: Entry = (draw) => {
  const n = draw.count();
  const [g, gate, up] = [draw.numbers(n, 2), draw.numbers(n, draw.one([1, 10])), draw.numbers(n, 3)];
  const toGate: Allowed = (expected, i) => 4 * U * Math.abs(expected) + 10 * U * Math.abs(g[i]! * up[i]!) * sigmoid(gate[i]!) * (1 + Math.abs(gate[i]!));
  const toUp: Allowed = (expected) => 10 * U * Math.abs(expected);
  return { kernel: "swiglu_backward", args: [draw.output(n, toGate), draw.output(n, toUp), draw.input(g), draw.input(gate), draw.input(up), n] };
};

const sum_squares: Entry = (draw) => {
  const n = draw.large ? draw.integer(50_000, 200_000) : draw.chance(0.3) ? draw.integer(4090, 8200) : draw.size();
  // squares of f32 are exact in f64; n additions there, in another order
  return { kernel: "sum_squares", args: [draw.output(1, (expected) => n * 2 ** -52 * expected, "f64"), draw.reals(n, 2), n] };
};

const key = (draw: Draw): [number, number, number] => [
  draw.integer(-(2 ** 31), 2 ** 31 - 1),
  draw.integer(-(2 ** 31), 2 ** 31 - 1),
  draw.integer(-5, 2 ** 31 - 1),
];

const random_uniform: Entry = (draw) => {
  const n = draw.count();
  return { kernel: "random_uniform", args: [draw.output(n), n, draw.one([0, -1, -0.1]), draw.one([1, 0.3]), ...key(draw)] };
};

const random_normal: Entry = (draw) => {
  const n = draw.count();
  return { kernel: "random_normal", args: [draw.output(n), n, draw.one([0, 0, 1.5]), draw.one([1, 0.02]), ...key(draw)] };
};

const dropout: Entry = (draw) => {
  const n = draw.count();
  return { kernel: "dropout", args: [draw.output(n), draw.reals(n), n, draw.one([0.1, 0.5, 0.99, 0]), ...key(draw)] };
};

const adamw: Entry = (draw) => {
  const n = draw.count();
  const [lr, beta1, beta2, eps, decay, step, gradScale] = [
    draw.one([1e-3, 3e-4, 0.1]),
    0.9,
    draw.one([0.999, 0.95]),
    draw.one([1e-8, 1e-6]),
    draw.one([0, 0.01]),
    draw.integer(1, 1000),
    draw.one([1, 0.37]),
  ];
  const [c1, c2] = [1 - beta1 ** step, 1 - beta2 ** step];
  const [w, g, m, v] = [draw.numbers(n), draw.numbers(n), draw.numbers(n, 0.3), draw.numbers(n, 0.3).map((x) => draw.rounded(Math.abs(x)))];
  const size = (i: number): number => Math.abs(m[i]!) + 2 * (1 - beta1) * (Math.abs(g[i]! * gradScale) + Math.abs(m[i]!));
  // m: the scalars, g·scale, a difference, a product, a sum. v: the same without difference. w: both, a root, two divisions.
  const root = (i: number): number => Math.sqrt(beta2 * v[i]! + (1 - beta2) * (g[i]! * gradScale) ** 2) / Math.sqrt(c2) + eps;
  const ofM: Allowed = (_, i) => 5 * U * size(i);
  const ofV: Allowed = (expected) => 7 * U * Math.abs(expected);
  const ofW: Allowed = (_, i) => 4 * U * Math.abs(w[i]!) + ((16 * U * lr) / c1) * (size(i) / root(i));
  return {
    kernel: "adamw",
    args: [draw.inout(w, ofW), draw.input(g), draw.inout(m, ofM), draw.inout(v, ofV), n, lr, beta1, beta2, eps, decay, c1, c2, gradScale],
  };
};

const adam_blocks: Entry = (draw) => {
  const n = draw.count();
  const blocks = Math.ceil(n / 256);
  const [beta1, beta2, eps, step] = [0.9, draw.one([0.999, 0.95]), draw.one([1e-8, 1e-6]), draw.integer(1, 1000)];
  const [c1, c2] = [1 - beta1 ** step, 1 - beta2 ** step];
  const levels = (low: number): number[] => Array.from({ length: 256 }, () => draw.rounded(low + (1 - low) * draw.next())).sort((a, b) => a - b);
  const books = { m: levels(-1), v: levels(0) };
  const codes = { m: Uint8Array.from({ length: n }, () => draw.integer(0, 255)), v: Uint8Array.from({ length: n }, () => draw.integer(0, 255)) };
  const tops = { m: draw.numbers(blocks).map(Math.abs), v: draw.numbers(blocks, 0.3).map(Math.abs) };
  const g = draw.numbers(n, draw.one([1, 1e-3, 0]));
  const old = (of: "m" | "v", i: number): number => books[of][codes[of][i]!]! * tops[of][Math.floor(i / 256)]!;
  const first = g.map((x, i) => beta1 * old("m", i) + (1 - beta1) * x);
  const second = g.map((x, i) => beta2 * old("v", i) + (1 - beta2) * x * x);
  const size = (i: number): number => Math.abs(old("m", i)) + 2 * (1 - beta1) * (Math.abs(g[i]!) + Math.abs(old("m", i)));
  const largest = (x: readonly number[], b: number): number => Math.max(...x.slice(256 * b, 256 * b + 256).map(Math.abs));
  const [mTop, vTop] = [tops.m.map((_, b) => largest(first, b)), tops.v.map((_, b) => largest(second, b))];
  // Another code only where the number is that close to the middle of two levels.
  const nearMiddle = (x: number, top: number, book: readonly number[], slack: number): number =>
    book.some((level, k) => k > 0 && Math.abs(x / top - (level + book[k - 1]!) / 2) <= slack) ? 1 : 0;
  const root = (i: number): number => Math.sqrt(second[i]! / c2) + eps;
  return {
    kernel: "adam_blocks",
    args: [
      draw.output(n, (_, i) => (20 * U * size(i)) / c1 / root(i)),
      draw.input(g),
      draw.inout(codes.m, (_, i) => nearMiddle(first[i]!, mTop[Math.floor(i / 256)]!, books.m, (20 * U * size(i)) / mTop[Math.floor(i / 256)]!), "u8"),
      draw.inout(tops.m, (_, b) => 6 * U * Math.max(...g.slice(256 * b, 256 * b + 256).map((_g, i) => size(256 * b + i))), "f32"),
      draw.inout(codes.v, (_, i) => nearMiddle(second[i]!, vTop[Math.floor(i / 256)]!, books.v, 20 * U), "u8"),
      draw.inout(tops.v, (expected) => 8 * U * expected, "f32"),
      draw.input(books.m),
      draw.input(books.v),
      n,
      beta1,
      beta2,
      eps,
      c1,
      c2,
    ],
  };
};

const random_round: Entry = (draw) => {
  const n = draw.count();
  return { kernel: "random_round", args: [draw.output(n), draw.reals(n, draw.one([1e-40, 1, 1e30])), n, ...key(draw)] };
};

const narrow =
  (kernel: "f32_to_bf16" | "f32_to_f16"): Entry =>
  (draw) => {
    const n = draw.count();
    return { kernel, args: [draw.output(n, "bits", kernel === "f32_to_bf16" ? "bf16" : "f16"), draw.reals(n, draw.one([1e-7, 1, 1e5])), n] };
  };

const widen =
  (kernel: "bf16_to_f32" | "f16_to_f32"): Entry =>
  (draw) => {
    const n = draw.count();
    const words = Uint16Array.from({ length: n }, () => draw.integer(0, 65535));
    return { kernel, args: [draw.output(n), draw.halves(words, kernel === "bf16_to_f32" ? "bf16" : "f16"), n] };
  };

export const elementwise = {
  binary,
  copy,
  unary,
  unary_backward,
  fill,
  axpby,
  swiglu,
  swiglu_backward,
  sum_squares,
  random_uniform,
  random_normal,
  dropout,
  adamw,
  adam_blocks,
  random_round,
  f32_to_bf16: narrow("f32_to_bf16"),
  bf16_to_f32: widen("bf16_to_f32"),
  f32_to_f16: narrow("f32_to_f16"),
  f16_to_f32: widen("f16_to_f32"),
};
