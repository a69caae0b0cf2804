import type { Ints, Reals } from "./types.ts";

type Bytes = Uint8Array<ArrayBufferLike>;

export function csr_product(
  out: Reals,
  values: Reals,
  order: Ints | null,
  columns: Ints,
  pointers: Ints,
  x: Reals,
  rows: number,
  _cols: number,
  _count: number,
  dim: number,
): void {
  for (let r = 0; r < rows; r++)
    for (let j = 0; j < dim; j++) {
      let total = 0;
      for (let k = pointers[r]!; k < pointers[r + 1]!; k++) total += values[order ? order[k]! : k]! * x[columns[k]! * dim + j]!;
      out[r * dim + j] = total;
    }
}

export function sampled_product(out: Reals, rows: Ints, columns: Ints, a: Reals, b: Reals, count: number, _aRows: number, _bRows: number, dim: number): void {
  for (let k = 0; k < count; k++) {
    let total = 0;
    for (let j = 0; j < dim; j++) total += a[rows[k]! * dim + j]! * b[columns[k]! * dim + j]!;
    out[k] = total;
  }
}

/** The number of `bits` bits that begins at bit `at`. */
function readBits(packed: Bytes, at: number, bits: number): number {
  let code = 0;
  for (let b = 0; b < bits; b++) code |= ((packed[(at + b) >> 3]! >> ((at + b) & 7)) & 1) << b;
  return code;
}

/** Sets bits of memory that is 0. */
function writeBits(packed: Bytes, at: number, bits: number, code: number): void {
  for (let b = 0; b < bits; b++) packed[(at + b) >> 3]! |= ((code >> b) & 1) << ((at + b) & 7);
}

export function pack_bits(out: Bytes, codes: Ints, count: number, bits: number): void {
  out.fill(0, 0, Math.ceil((count * bits) / 8));
  for (let i = 0; i < count; i++) writeBits(out, i * bits, bits, codes[i]!);
}

export function unpack_bits(codes: Ints, packed: Bytes, count: number, bits: number): void {
  for (let i = 0; i < count; i++) codes[i] = readBits(packed, i * bits, bits);
}

/** Nearest whole number, halves to the even one. */
function nearest(x: number): number {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

/** A code in 0…top; a quotient that is no number gives 0. */
const code = (x: number, scale: number, zero: number, top: number): number => {
  const quotient = scale > 0 ? nearest(x / scale) + zero : zero;
  return quotient >= 0 ? Math.min(top, quotient) : 0;
};

export function quantize_groups(
  packed: Bytes,
  scales: Float32Array,
  zeros: Bytes | null,
  x: Float32Array,
  rows: number,
  cols: number,
  group: number,
  bits: number,
): void {
  const [top, middle] = [2 ** bits - 1, 2 ** (bits - 1)];
  const [groups, rowBytes] = [Math.ceil(cols / group), Math.ceil((cols * bits) / 8)];
  packed.fill(0, 0, rows * rowBytes);
  for (let r = 0; r < rows; r++)
    for (let g = 0; g < groups; g++) {
      const values = x.subarray(r * cols + g * group, r * cols + Math.min(cols, (g + 1) * group));
      const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
      const at = r * groups + g;
      scales[at] = zeros ? (high - low) / top : Math.max(high, -low) / (middle - 1);
      const zero = zeros ? code(-low, scales[at]!, 0, top) : middle;
      if (zeros) zeros[at] = zero;
      values.forEach((value, i) => writeBits(packed, r * rowBytes * 8 + (g * group + i) * bits, bits, code(value, scales[at]!, zero, top)));
    }
}

export function dequantize_groups(
  out: Float32Array,
  packed: Bytes,
  scales: Float32Array,
  zeros: Bytes | null,
  rows: number,
  cols: number,
  group: number,
  bits: number,
): void {
  const [groups, rowBytes] = [Math.ceil(cols / group), Math.ceil((cols * bits) / 8)];
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++) {
      const at = r * groups + Math.floor(c / group);
      out[r * cols + c] = (readBits(packed, r * rowBytes * 8 + c * bits, bits) - (zeros ? zeros[at]! : 2 ** (bits - 1))) * scales[at]!;
    }
}

export function quantize_blocks(codes: Bytes, largest: Float32Array, x: Float32Array, levels: Float32Array, count: number, block: number): void {
  for (let b = 0; b * block < count; b++) {
    const values = x.subarray(b * block, Math.min(count, (b + 1) * block));
    const top = Math.max(0, ...values.map(Math.abs));
    largest[b] = top;
    values.forEach((value, i) => {
      const wanted = top > 0 ? Math.fround(value / top) : 0;
      let best = 0;
      for (let l = 1; l < 256; l++) if (wanted > Math.fround((levels[l - 1]! + levels[l]!) / 2)) best = l;
      codes[b * block + i] = best;
    });
  }
}

export function dequantize_blocks(out: Float32Array, codes: Bytes, largest: Float32Array, levels: Float32Array, count: number, block: number): void {
  for (let i = 0; i < count; i++) out[i] = levels[codes[i]!]! * largest[Math.floor(i / block)]!;
}
