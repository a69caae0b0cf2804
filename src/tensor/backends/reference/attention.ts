import type { Reals } from "./types.ts";

interface Sizes {
  batch: number;
  heads: number;
  kv: number;
  tq: number;
  tk: number;
  dim: number;
  scale: number;
  causal: number;
}
type Strides = readonly [number, number, number];

/** Number of keys that query i may see. */
const visible = (i: number, { tq, tk, causal }: Sizes): number => (causal ? Math.max(0, Math.min(tk, i + tk - tq + 1)) : tk);

/** scale·q·k of one query with every visible key. */
function scores(q: Reals, qAt: number, k: Reals, kAt: number, kT: number, count: number, { dim, scale }: Sizes): Float64Array {
  const out = new Float64Array(count);
  for (let j = 0; j < count; j++) {
    let dot = 0;
    for (let d = 0; d < dim; d++) dot += q[qAt + d]! * k[kAt + j * kT + d]!;
    out[j] = dot * scale;
  }
  return out;
}

function forEachQuery(sizes: Sizes, visit: (b: number, h: number, g: number, i: number) => void): void {
  const { batch, heads, kv, tq } = sizes;
  for (let b = 0; b < batch; b++) for (let h = 0; h < heads; h++) for (let i = 0; i < tq; i++) visit(b, h, Math.floor((h * kv) / heads), i);
}

export function attention(
  out: Reals,
  lse: Reals,
  q: Reals,
  qB: number,
  qT: number,
  qH: number,
  k: Reals,
  kB: number,
  kT: number,
  kH: number,
  v: Reals,
  vB: number,
  vT: number,
  vH: number,
  batch: number,
  heads: number,
  kv: number,
  tq: number,
  tk: number,
  dim: number,
  scale: number,
  causal: number,
): void {
  const sizes = { batch, heads, kv, tq, tk, dim, scale, causal };
  forEachQuery(sizes, (b, h, g, i) => {
    const at = ((b * tq + i) * heads + h) * dim;
    const s = scores(q, b * qB + i * qT + h * qH, k, b * kB + g * kH, kT, visible(i, sizes), sizes);
    const top = s.reduce((a, c) => Math.max(a, c), -Infinity);
    const sum = s.reduce((a, c) => a + Math.exp(c - top), 0);
    lse[(b * heads + h) * tq + i] = s.length === 0 ? -Infinity : top + Math.log(sum);
    for (let d = 0; d < dim; d++) {
      let total = 0;
      for (let j = 0; j < s.length; j++) total += (Math.exp(s[j]! - top) / sum) * v[b * vB + j * vT + g * vH + d]!;
      out[at + d] = total;
    }
  });
}

export function attention_backward(
  dq: Reals,
  dk: Reals,
  dv: Reals,
  dout: Reals,
  out: Reals,
  lse: Reals,
  q: Reals,
  qB: number,
  qT: number,
  qH: number,
  k: Reals,
  kB: number,
  kT: number,
  kH: number,
  v: Reals,
  vB: number,
  vT: number,
  vH: number,
  batch: number,
  heads: number,
  kv: number,
  tq: number,
  tk: number,
  dim: number,
  scale: number,
  causal: number,
): void {
  const sizes = { batch, heads, kv, tq, tk, dim, scale, causal };
  const strides: { k: Strides; v: Strides } = { k: [kB, kT, kH], v: [vB, vT, vH] };
  const sums = { dk: new Float64Array(batch * tk * kv * dim), dv: new Float64Array(batch * tk * kv * dim) };
  forEachQuery(sizes, (b, h, g, i) => {
    const at = ((b * tq + i) * heads + h) * dim;
    const qAt = b * qB + i * qT + h * qH;
    const s = scores(q, qAt, k, b * strides.k[0] + g * kH, kT, visible(i, sizes), sizes);
    let delta = 0;
    for (let d = 0; d < dim; d++) delta += dout[at + d]! * out[at + d]!;
    const row = new Float64Array(dim);
    for (let j = 0; j < s.length; j++) {
      const p = Math.exp(s[j]! - lse[(b * heads + h) * tq + i]!);
      const to = ((b * tk + j) * kv + g) * dim;
      let dp = 0;
      for (let d = 0; d < dim; d++) dp += dout[at + d]! * v[b * vB + j * strides.v[1] + g * vH + d]!;
      const ds = p * (dp - delta) * scale;
      for (let d = 0; d < dim; d++) {
        row[d]! += ds * k[b * kB + j * kT + g * kH + d]!;
        sums.dk[to + d]! += ds * q[qAt + d]!;
        sums.dv[to + d]! += p * dout[at + d]!;
      }
    }
    dq.set(row, at);
  });
  dk.set(sums.dk);
  dv.set(sums.dv);
}
