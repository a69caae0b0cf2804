import { dequantize_blocks, quantize_blocks } from "./sparse.ts";
import type { Reals } from "./types.ts";

type Bytes = Uint8Array<ArrayBufferLike>;

export function adamw(
  w: Reals,
  g: Reals,
  m: Reals,
  v: Reals,
  n: number,
  lr: number,
  beta1: number,
  beta2: number,
  eps: number,
  decay: number,
  c1: number,
  c2: number,
  gradScale: number,
): void {
  for (let i = 0; i < n; i++) {
    const gradient = g[i]! * gradScale;
    m[i] = m[i]! + (1 - beta1) * (gradient - m[i]!);
    v[i] = beta2 * v[i]! + (1 - beta2) * gradient * gradient;
    w[i] = w[i]! * (1 - lr * decay) - ((lr / c1) * m[i]!) / (Math.sqrt(v[i]!) / Math.sqrt(c2) + eps);
  }
}

export function adam_blocks(
  out: Float32Array,
  g: Float32Array,
  mCodes: Bytes,
  mLargest: Float32Array,
  vCodes: Bytes,
  vLargest: Float32Array,
  mLevels: Float32Array,
  vLevels: Float32Array,
  n: number,
  beta1: number,
  beta2: number,
  eps: number,
  c1: number,
  c2: number,
): void {
  const [m, v] = [new Float32Array(n), new Float32Array(n)];
  dequantize_blocks(m, mCodes, mLargest, mLevels, n, 256);
  dequantize_blocks(v, vCodes, vLargest, vLevels, n, 256);
  // a weight of 0 that moves at the rate −1 becomes the direction
  out.fill(0, 0, n);
  adamw(out, g, m, v, n, -1, beta1, beta2, eps, 0, c1, c2, 1);
  quantize_blocks(mCodes, mLargest, m, mLevels, n, 256);
  quantize_blocks(vCodes, vLargest, v, vLevels, n, 256);
}
