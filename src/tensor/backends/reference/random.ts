import { normalPair, philox, unit } from "../../philox.ts";
import type { Halves, Reals } from "./types.ts";

/** Calls `visit` with four words for every four elements. */
function blocks(n: number, key0: number, key1: number, counter: number, visit: (at: number, words: readonly number[]) => void): void {
  for (let at = 0; at < n; at += 4) visit(at, philox(key0, key1, at / 4, counter));
}

export function random_uniform(out: Reals, n: number, low: number, high: number, key0: number, key1: number, counter: number): void {
  blocks(n, key0, key1, counter, (at, words) => {
    for (let i = 0; i < 4 && at + i < n; i++) out[at + i] = low + (high - low) * unit(words[i]!);
  });
}

export function random_normal(out: Reals, n: number, mean: number, std: number, key0: number, key1: number, counter: number): void {
  blocks(n, key0, key1, counter, (at, [a, b, c, d]) => {
    const normals = [...normalPair(a!, b!), ...normalPair(c!, d!)];
    for (let i = 0; i < 4 && at + i < n; i++) out[at + i] = mean + std * normals[i]!;
  });
}

export function dropout(y: Reals, x: Reals, n: number, p: number, key0: number, key1: number, counter: number): void {
  blocks(n, key0, key1, counter, (at, words) => {
    for (let i = 0; i < 4 && at + i < n; i++) y[at + i] = unit(words[i]!) >= p ? x[at + i]! / (1 - p) : 0;
  });
}

const pattern = new DataView(new ArrayBuffer(4));

/** x as an f32, whose lower sixteen bits make up the chance of being rounded away from 0. */
export function random_round(y: Reals, x: Reals, n: number, key0: number, key1: number, counter: number): void {
  blocks(n, key0, key1, counter, (at, words) => {
    for (let i = 0; i < 4 && at + i < n; i++) {
      pattern.setFloat32(0, x[at + i]!);
      if (Number.isFinite(x[at + i]!)) pattern.setUint32(0, (pattern.getUint32(0) + (words[i]! >>> 16)) & 0xffff0000);
      y[at + i] = pattern.getFloat32(0);
    }
  });
}

const word = new Uint32Array(1);
const float = new Float32Array(word.buffer);

export function f32_to_bf16(out: Halves, x: Float32Array<ArrayBufferLike>, n: number): void {
  for (let i = 0; i < n; i++) {
    float[0] = x[i]!;
    const bits = word[0]!;
    out[i] = Number.isNaN(x[i]!) ? (bits >>> 16) | 0x40 : (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
  }
}

export function bf16_to_f32(out: Float32Array<ArrayBufferLike>, x: Halves, n: number): void {
  for (let i = 0; i < n; i++) {
    word[0] = x[i]! << 16;
    out[i] = float[0]!;
  }
}

/** Ties to even at a power-of-two grid. */
function roundEven(x: number): number {
  const low = Math.floor(x);
  const rest = x - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 === 1) ? low + 1 : low;
}

export function f32_to_f16(out: Halves, x: Float32Array<ArrayBufferLike>, n: number): void {
  for (let i = 0; i < n; i++) {
    const value = x[i]!;
    const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
    const size = Math.abs(value);
    if (Number.isNaN(value)) {
      float[0] = value;
      out[i] = ((word[0]! >>> 16) & 0x8000) | 0x7e00 | ((word[0]! >>> 13) & 0x1ff);
    } else if (size >= 65520) out[i] = sign | 0x7c00;
    else {
      const exponent = Math.max(-14, Math.floor(Math.log2(Math.max(size, 2 ** -149))));
      const scaled = roundEven(size * 2 ** (10 - exponent));
      out[i] = sign | (scaled < 1024 ? scaled : scaled + ((exponent + 14) << 10));
    }
  }
}

export function f16_to_f32(out: Float32Array<ArrayBufferLike>, x: Halves, n: number): void {
  for (let i = 0; i < n; i++) {
    const [sign, exponent, fraction] = [x[i]! & 0x8000 ? -1 : 1, (x[i]! >>> 10) & 31, x[i]! & 1023];
    if (exponent === 31) {
      word[0] = ((x[i]! & 0x8000) << 16) | 0x7f800000 | (fraction << 13) | (fraction ? 0x400000 : 0);
      out[i] = float[0]!;
    } else out[i] = sign * (exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25));
  }
}
