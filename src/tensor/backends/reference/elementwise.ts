import { BINARY, UNARY } from "../signatures-core.ts";
import type { Ints, Reals } from "./types.ts";

export function gemm(
  batch: number,
  m: number,
  n: number,
  k: number,
  alpha: number,
  a: Reals,
  aBatch: number,
  aRow: number,
  aCol: number,
  b: Reals,
  bBatch: number,
  bRow: number,
  bCol: number,
  beta: number,
  c: Reals,
  cBatch: number,
  cRow: number,
  bias: Reals | null,
): void {
  for (let t = 0; t < batch; t++)
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let p = 0; p < k; p++) sum += a[t * aBatch + i * aRow + p * aCol]! * b[t * bBatch + p * bRow + j * bCol]!;
        const at = t * cBatch + i * cRow + j;
        c[at] = alpha * sum + (beta === 0 ? 0 : beta * c[at]!) + (bias ? bias[j]! : 0);
      }
}

const nan = (a: number, b: number): boolean => Number.isNaN(a) || Number.isNaN(b);

const binaries: Record<number, (a: number, b: number) => number> = {
  [BINARY.add]: (a, b) => a + b,
  [BINARY.sub]: (a, b) => a - b,
  [BINARY.mul]: (a, b) => a * b,
  [BINARY.div]: (a, b) => a / b,
  [BINARY.maximum]: (a, b) => (nan(a, b) ? NaN : Math.max(a, b)),
  [BINARY.minimum]: (a, b) => (nan(a, b) ? NaN : Math.min(a, b)),
  [BINARY.greater]: (a, b) => (a > b ? 1 : 0),
  [BINARY.equal]: (a, b) => (a === b ? 1 : 0),
};

export function binary(
  op: number,
  out: Reals,
  a: Reals,
  b: Reals,
  n0: number,
  n1: number,
  n2: number,
  n3: number,
  a0: number,
  a1: number,
  a2: number,
  a3: number,
  b0: number,
  b1: number,
  b2: number,
  b3: number,
): void {
  const f = binaries[op]!;
  let at = 0;
  for (let i = 0; i < n0; i++)
    for (let j = 0; j < n1; j++)
      for (let k = 0; k < n2; k++) for (let l = 0; l < n3; l++) out[at++] = f(a[i * a0 + j * a1 + k * a2 + l * a3]!, b[i * b0 + j * b1 + k * b2 + l * b3]!);
}

export function copy(out: Reals, x: Reals, n0: number, n1: number, n2: number, n3: number, s0: number, s1: number, s2: number, s3: number): void {
  let at = 0;
  for (let i = 0; i < n0; i++)
    for (let j = 0; j < n1; j++) for (let k = 0; k < n2; k++) for (let l = 0; l < n3; l++) out[at++] = x[i * s0 + j * s1 + k * s2 + l * s3]!;
}

/** Error function: Maclaurin series near 0, Legendre's continued fraction of erfc beyond; accurate to f64. */
export function erf(x: number): number {
  const z = Math.abs(x);
  if (z > 6) return Math.sign(x);
  if (z < 2.5) {
    let term = z;
    let sum = z;
    for (let n = 1; n < 80 && Math.abs(term) > 1e-18 * sum; n++) {
      term *= (-z * z) / n;
      sum += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let fraction = z;
  for (let n = 60; n >= 1; n--) fraction = z + n / 2 / fraction;
  return Math.sign(x) * (1 - Math.exp(-z * z) / (fraction * Math.sqrt(Math.PI)));
}

export const sigmoid = (x: number): number => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));
const GELU = Math.sqrt(2 / Math.PI);
const inner = (x: number): number => GELU * (x + 0.044715 * x * x * x);

/** Each operation and its derivative, given x and y. */
const unaries: Record<number, readonly [(x: number) => number, (x: number, y: number) => number]> = {
  [UNARY.neg]: [(x) => -x, () => -1],
  [UNARY.exp]: [Math.exp, (_, y) => y],
  [UNARY.log]: [Math.log, (x) => 1 / x],
  [UNARY.sqrt]: [Math.sqrt, (_, y) => 0.5 / y],
  [UNARY.rsqrt]: [(x) => 1 / Math.sqrt(x), (x, y) => (-0.5 * y) / x],
  [UNARY.tanh]: [Math.tanh, (_, y) => 1 - y * y],
  [UNARY.sigmoid]: [sigmoid, (_, y) => y * (1 - y)],
  [UNARY.silu]: [(x) => x * sigmoid(x), (x) => sigmoid(x) * (1 + x * (1 - sigmoid(x)))],
  [UNARY.gelu]: [(x) => 0.5 * x * (1 + erf(x / Math.SQRT2)), (x) => 0.5 * (1 + erf(x / Math.SQRT2)) + (x * Math.exp(-0.5 * x * x)) / Math.sqrt(2 * Math.PI)],
  [UNARY.geluTanh]: [
    (x) => 0.5 * x * (1 + Math.tanh(inner(x))),
    (x) => {
      const t = Math.tanh(inner(x));
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * GELU * (1 + 3 * 0.044715 * x * x);
    },
  ],
  [UNARY.relu]: [(x) => (x > 0 || Number.isNaN(x) ? x : 0), (x) => (x > 0 ? 1 : 0)],
  [UNARY.abs]: [Math.abs, (x) => Math.sign(x)],
  [UNARY.sign]: [Math.sign, () => 0],
  [UNARY.square]: [(x) => x * x, (x) => 2 * x],
  [UNARY.reciprocal]: [(x) => 1 / x, (_, y) => -y * y],
};

export function unary(op: number, y: Reals, x: Reals, n: number): void {
  const f = unaries[op]![0];
  for (let i = 0; i < n; i++) y[i] = f(x[i]!);
}

export function unary_backward(op: number, dx: Reals, x: Reals, y: Reals, g: Reals, n: number): void {
  const f = unaries[op]![1];
  for (let i = 0; i < n; i++) dx[i] = g[i]! * f(x[i]!, y[i]!);
}

export function fill(x: Reals, value: number, n: number): void {
  x.fill(value, 0, n);
}

export function axpby(y: Reals, a: number, x: Reals, b: number, n: number): void {
  for (let i = 0; i < n; i++) y[i] = a * x[i]! + (b === 0 ? 0 : b * y[i]!);
}

export function swiglu(y: Reals, gate: Reals, up: Reals, n: number): void {
  for (let i = 0; i < n; i++) y[i] = gate[i]! * sigmoid(gate[i]!) * up[i]!;
}

export function swiglu_backward(dgate: Reals, dup: Reals, g: Reals, gate: Reals, up: Reals, n: number): void {
  for (let i = 0; i < n; i++) {
    const [x, s] = [gate[i]!, sigmoid(gate[i]!)];
    const upstream = g[i]!;
    dgate[i] = upstream * up[i]! * s * (1 + x * (1 - s));
    dup[i] = upstream * x * s;
  }
}

export function reduce_sum(out: Reals, x: Reals, outer: number, reduced: number, innerSize: number): void {
  for (let o = 0; o < outer; o++)
    for (let i = 0; i < innerSize; i++) {
      let sum = 0;
      for (let r = 0; r < reduced; r++) sum += x[(o * reduced + r) * innerSize + i]!;
      out[o * innerSize + i] = sum;
    }
}

export function reduce_max(out: Reals, index: Ints, x: Reals, outer: number, reduced: number, innerSize: number): void {
  for (let o = 0; o < outer; o++)
    for (let i = 0; i < innerSize; i++) {
      let best = -Infinity;
      let at = 0;
      for (let r = 0; r < reduced; r++) {
        const value = x[(o * reduced + r) * innerSize + i]!;
        if (value > best || (Number.isNaN(value) && !Number.isNaN(best))) [best, at] = [value, r];
      }
      out[o * innerSize + i] = best;
      index[o * innerSize + i] = at;
    }
}

export function sum_squares(out: Float64Array<ArrayBufferLike>, x: Reals, n: number): void {
  let total = 0;
  for (let start = 0; start < n; start += 4096) {
    let block = 0;
    for (let i = start; i < Math.min(n, start + 4096); i++) block += x[i]! * x[i]!;
    total += block;
  }
  out[0] = total;
}
