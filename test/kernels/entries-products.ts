import { referenceKernels } from "../../src/tensor/backends/reference.ts";
import type { KernelName } from "../../src/tensor/backends/signatures.ts";
import type { Allowed, Draw, Entry } from "./draw.ts";
import { U } from "./entries-elementwise.ts";

const reference = (name: KernelName, ...args: unknown[]): void => (referenceKernels[name] as (...args: unknown[]) => void)(...args);
const absolute = (values: ArrayLike<number>): Float64Array => Float64Array.from(values, Math.abs);

/** Row and column strides of a matrix: row-major or transposed, dense or with gaps; a step of 2 or 0 now and then. */
function layout(draw: Draw, rows: number, cols: number): [number, number] {
  const [gap, step] = [draw.one([0, 0, 1, 7]), draw.chance(0.15) ? 2 : 1];
  const [long, short] = draw.chance(0.5) ? [cols, rows] : [rows, cols];
  const strides: [number, number] = long === cols && short === rows ? [step * Math.max(1, cols) + gap, step] : [step, step * Math.max(1, rows) + gap];
  if (draw.chance(0.05)) strides[draw.integer(0, 1)] = 0;
  return strides;
}

const extent = (rows: number, cols: number, [row, col]: readonly number[]): number => (rows * cols === 0 ? 0 : 1 + (rows - 1) * row! + (cols - 1) * col!);

function sizes(draw: Draw): [number, number, number, number] {
  if (draw.large)
    return draw
      .one([
        [1, draw.integer(185, 205), draw.integer(500, 530), draw.integer(250, 270)],
        [1, draw.integer(600, 700), draw.integer(1, 20), draw.integer(250, 600)],
        [1, 1, draw.integer(900, 2000), draw.integer(200, 600)],
        [draw.integer(5, 12), draw.integer(60, 70), draw.integer(60, 70), draw.integer(30, 70)],
        [2, draw.integer(100, 130), draw.integer(100, 130), draw.integer(90, 130)],
      ] as const)
      .slice() as [number, number, number, number];
  const [m, n, k] = [draw.size(), draw.size(), draw.size()];
  return m * n * k > 1e6 ? [1, Math.min(m, 65), n, Math.min(k, 33)] : [draw.one([0, 1, 1, 1, 2, 3]), m, n, k];
}

const gemm: Entry = (draw) => {
  const [batch, m, n, k] = sizes(draw);
  const [alpha, beta] = [draw.one([1, 1, -0.5, 0, 2.5]), draw.one([0, 0, 1, 0.5, -1])];
  const [[aRow, aCol], [bRow, bCol]] = [layout(draw, m, k), layout(draw, k, n)];
  const apart = (size: number): number => (draw.chance(0.2) ? 0 : size + draw.one([0, 3]));
  const [aBatch, bBatch] = [apart(extent(m, k, [aRow, aCol])), apart(extent(k, n, [bRow, bCol]))];
  const cRow = n + draw.one([0, 0, 5]);
  const cBatch = m * cRow + draw.one([0, 2]);
  const a = draw.strided([batch, m, k], [aBatch, aRow, aCol]);
  const b = draw.strided([batch, k, n], [bBatch, bRow, bCol]);
  const c = draw.strided([batch, m, n], [cBatch, cRow, 1]);
  const bias = draw.chance(0.4) ? draw.numbers(n, 2) : null;
  const size = absolute(c);
  reference(
    "gemm",
    batch,
    m,
    n,
    k,
    Math.abs(alpha),
    absolute(a),
    aBatch,
    aRow,
    aCol,
    absolute(b),
    bBatch,
    bRow,
    bCol,
    Math.abs(beta),
    size,
    cBatch,
    cRow,
    bias && absolute(bias),
  );
  // k products and sums, alpha, beta and bias; the reference in f64 errs as much as an f64 kernel
  const unit = draw.real === "f32" ? U : 2 ** -52;
  const allowed: Allowed = (_, i) => (k + 3) * unit * size[i]!;
  return {
    kernel: "gemm",
    args: [
      batch,
      m,
      n,
      k,
      alpha,
      draw.input(a),
      aBatch,
      aRow,
      aCol,
      draw.input(b),
      bBatch,
      bRow,
      bCol,
      beta,
      beta === 0 ? draw.output(c.length, allowed) : draw.inout(c, allowed),
      cBatch,
      cRow,
      bias && draw.input(bias),
      "scratch",
    ],
  };
};

type Strides = [number, number, number];

interface Attention {
  tail: readonly number[];
  q: number[];
  k: number[];
  v: number[];
  strides: { q: Strides; k: Strides; v: Strides };
  batch: number;
  heads: number;
  kv: number;
  tq: number;
  tk: number;
  dim: number;
  scale: number;
  causal: number;
}

function attentionInputs(draw: Draw): Attention {
  const kv = draw.one([1, 1, 2, 3]);
  const heads = kv * draw.one([1, 1, 2, 4]);
  const batch = draw.one([1, 1, 2]);
  const dim = draw.large ? draw.one([32, 64, 260]) : draw.one([1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 65]);
  const edges = draw.large ? [63, 95, 97, 130] : [0, 1, 2, 3, 7, 8, 16, 17, 33];
  const [tq, tk] = draw.chance(0.4) ? ([1, 1].fill(draw.one(edges)) as [number, number]) : [draw.one(draw.chance(0.3) ? [1] : edges), draw.one(edges)];
  // tokens side by side as in a fused qkv row, or heads first as in a cache
  const strides = (tokens: number, count: number): Strides => {
    const gap = draw.one([0, 0, 5, 2 * count * dim]);
    return draw.chance(0.7) ? [tokens * (count * dim + gap), count * dim + gap, dim] : [count * (tokens * dim + gap), dim, tokens * dim + gap];
  };
  const s = { q: strides(tq, heads), k: strides(tk, kv), v: strides(tk, kv) };
  const spread = draw.one([1, 3]);
  const walk = (tokens: number, count: number, heads: Strides): number[] => draw.strided([batch, tokens, count, dim], [...heads, 1], spread);
  const [scale, causal] = [1 / Math.sqrt(dim), draw.one([0, 1])];
  return {
    q: walk(tq, heads, s.q),
    k: walk(tk, kv, s.k),
    v: walk(tk, kv, s.v),
    strides: s,
    batch,
    heads,
    kv,
    tq,
    tk,
    dim,
    scale,
    causal,
    tail: [batch, heads, kv, tq, tk, dim, scale, causal],
  };
}

const forward = (x: Attention, q = x.q, k = x.k, v = x.v): { out: Float64Array; lse: Float64Array } => {
  const [out, lse] = [new Float64Array(x.batch * x.tq * x.heads * x.dim), new Float64Array(x.batch * x.heads * x.tq)];
  reference("attention", out, lse, q, ...x.strides.q, k, ...x.strides.k, v, ...x.strides.v, ...x.tail);
  return { out, lse };
};

/** The largest Σ|q·k|·scale of a query, which bounds the error of its scores: dim products and sums and the scale. */
function scoreErrors(x: Attention): Float64Array {
  const errors = new Float64Array(x.batch * x.heads * x.tq);
  const {
    q: [qB, qT, qH],
    k: [kB, kT, kH],
  } = x.strides;
  for (let at = 0; at < errors.length; at++) {
    const [b, h, i] = [Math.floor(at / x.tq / x.heads), Math.floor(at / x.tq) % x.heads, at % x.tq];
    const g = Math.floor((h * x.kv) / x.heads);
    for (let j = 0; j < x.tk; j++) {
      let size = 0;
      for (let d = 0; d < x.dim; d++) size += Math.abs(x.q[b * qB + i * qT + h * qH + d]! * x.k[b * kB + j * kT + g * kH + d]!);
      errors[at] = Math.max(errors[at]!, (x.dim + 3) * U * size * x.scale);
    }
  }
  return errors;
}

/** Index into [batch, heads, tq] of an element of out. */
const queryOf = (x: Attention, i: number): number => {
  const [token, h] = [Math.floor(i / x.dim / x.heads), Math.floor(i / x.dim) % x.heads];
  return (Math.floor(token / x.tq) * x.heads + h) * x.tq + (token % x.tq);
};

const attention: Entry = (draw) => {
  const x = attentionInputs(draw);
  const size = forward(x, x.q, x.k, x.v.map(Math.abs)).out;
  const errors = scoreErrors(x);
  // each weight errs by twice the error of a score; exp, rescaling by block, the sum of tk products
  const ofOut: Allowed = (_, i) => size[i]! * (2 * errors[queryOf(x, i)]! + (x.tk + 12) * U);
  const ofLse: Allowed = (expected, i) => errors[i]! + U * (10 + Math.abs(expected));
  return {
    kernel: "attention",
    args: [
      draw.output(size.length, ofOut),
      draw.output(errors.length, ofLse),
      draw.input(x.q),
      ...x.strides.q,
      draw.input(x.k),
      ...x.strides.k,
      draw.input(x.v),
      ...x.strides.v,
      ...x.tail,
      "scratch",
    ],
  };
};

/** Bounds of the errors of dq, dk and dv: with M = Σ|dout·v| + Σ|dout·out|, ds errs by p·scale·M·(error of p + (dim + 8)U). */
function gradientErrors(x: Attention, dout: readonly number[], out: readonly number[], lse: readonly number[]) {
  const { batch, heads, kv, tq, tk, dim } = x;
  const [dq, dk, dv] = [new Float64Array(batch * tq * heads * dim), new Float64Array(batch * tk * kv * dim), new Float64Array(batch * tk * kv * dim)];
  const errors = scoreErrors(x);
  const {
    q: [qB, qT, qH],
    k: [kB, kT, kH],
    v: [vB, vT, vH],
  } = x.strides;
  for (let i = 0; i < dq.length; i += dim) {
    const at = queryOf(x, i);
    const [b, h, t] = [Math.floor(at / tq / heads), Math.floor(at / tq) % heads, at % tq];
    const g = Math.floor((h * kv) / heads);
    const [qAt, kAt, vAt] = [b * qB + t * qT + h * qH, b * kB + g * kH, b * vB + g * vH];
    const seen = x.causal ? Math.max(0, Math.min(tk, t + tk - tq + 1)) : tk;
    for (let j = 0; j < seen; j++) {
      let [score, size] = [0, 0];
      for (let d = 0; d < dim; d++) {
        score += x.q[qAt + d]! * x.k[kAt + j * kT + d]! * x.scale;
        size += Math.abs(dout[i + d]!) * (Math.abs(x.v[vAt + j * vT + d]!) + Math.abs(out[i + d]!));
      }
      const p = Math.exp(score - lse[at]!);
      const error = errors[at]! + U * (Math.abs(lse[at]!) + Math.abs(score) + 8);
      const to = ((b * tk + j) * kv + g) * dim;
      const ds = p * x.scale * size * (error + (dim + 8 + tk) * U);
      const dsForKeys = p * x.scale * size * (error + (dim + 8 + tq * (heads / kv)) * U);
      for (let d = 0; d < dim; d++) {
        dq[i + d]! += ds * Math.abs(x.k[kAt + j * kT + d]!);
        dk[to + d]! += dsForKeys * Math.abs(x.q[qAt + d]!);
        dv[to + d]! += p * Math.abs(dout[i + d]!) * (error + (tq * (heads / kv) + 4) * U);
      }
    }
  }
  return { dq, dk, dv };
}

const attention_backward: Entry = (draw) => {
  const x = attentionInputs(draw);
  const { out, lse } = forward(x);
  const [stored, storedLse] = [Array.from(out, (value) => draw.rounded(value)), Array.from(lse, (value) => draw.rounded(value))];
  const dout = draw.numbers(out.length);
  const errors = gradientErrors(x, dout, stored, storedLse);
  const outputs = [errors.dq, errors.dk, errors.dv].map((error) => draw.output(error.length, (_, i) => error[i]!));
  return {
    kernel: "attention_backward",
    args: [
      ...outputs,
      draw.input(dout),
      draw.input(stored),
      draw.input(storedLse),
      draw.input(x.q),
      ...x.strides.q,
      draw.input(x.k),
      ...x.strides.k,
      draw.input(x.v),
      ...x.strides.v,
      ...x.tail,
      "scratch",
    ],
  };
};

export const products = { gemm, attention, attention_backward };
