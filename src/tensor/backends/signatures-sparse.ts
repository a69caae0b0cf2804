import { signature } from "./signature.ts";

/** Bytes of `rows` rows of `cols` numbers of `bits` bits, each row on a byte of its own. */
const packedBytes = (rows: number, cols: number, bits: number): number => rows * Math.ceil((cols * bits) / 8);

const groupExtents = (rows: number, cols: number, group: number): number => rows * Math.ceil(cols / group);

/** Products with structured, sparse and quantised matrices. */
export const sparse = {
  /**
   * out[r,:] = Σ_k values[order[k]]·x[columns[k],:] over k from pointers[r] up to pointers[r+1]; order null is 0, 1, 2 …
   * out values order? columns pointers x | rows cols count dim. Indices are checked by the caller.
   */
  csr_product: signature(["real*", "real*", "i32*?", "i32*", "i32*", "real*", "i32", "i32", "i32", "i32"], (rows, cols, count, dim) => [
    rows! * dim!,
    count!,
    count!,
    count!,
    rows! + 1,
    cols! * dim!,
  ]),
  /** out[k] = Σ_j a[rows[k],j]·b[columns[k],j]: out rows columns a b | count aRows bRows dim. Indices are checked by the caller. */
  sampled_product: signature(["real*", "i32*", "i32*", "real*", "real*", "i32", "i32", "i32", "i32"], (count, aRows, bRows, dim) => [
    count!,
    count!,
    count!,
    aRows! * dim!,
    bRows! * dim!,
  ]),
  /** Numbers of 1 to 8 bits, the lowest bit first; higher bits of a number are dropped: out codes | count bits */
  pack_bits: signature(["u8*", "i32*", "i32", "i32"], (count, bits) => [packedBytes(1, count!, bits!), count!]),
  /** codes packed | count bits */
  unpack_bits: signature(["i32*", "u8*", "i32", "i32"], (count, bits) => [count!, packedBytes(1, count!, bits!)]),
  /**
   * Round to nearest (ties to even) in groups along a row, codes packed by rows. Without zeros: scale = max|x|/(2^(bits−1) − 1), code 2^(bits−1) is 0.
   * With zeros: scale = (max(x, 0) − min(x, 0))/(2^bits − 1) and zeros holds the code of 0. packed scales zeros? x | rows cols group bits
   */
  quantize_groups: signature(["u8*", "f32*", "u8*?", "f32*", "i32", "i32", "i32", "i32"], (rows, cols, group, bits) => [
    packedBytes(rows!, cols!, bits!),
    groupExtents(rows!, cols!, group!),
    groupExtents(rows!, cols!, group!),
    rows! * cols!,
  ]),
  /** out = (code − zero)·scale: out packed scales zeros? | rows cols group bits */
  dequantize_groups: signature(["f32*", "u8*", "f32*", "u8*?", "i32", "i32", "i32", "i32"], (rows, cols, group, bits) => [
    rows! * cols!,
    packedBytes(rows!, cols!, bits!),
    groupExtents(rows!, cols!, group!),
    groupExtents(rows!, cols!, group!),
  ]),
  /** codes = the nearest of 256 ascending levels to x/max|x| of its block (the lower of two equally near): codes largest x levels | count block */
  quantize_blocks: signature(["u8*", "f32*", "f32*", "f32*", "i32", "i32"], (count, block) => [count!, Math.ceil(count! / block!), count!, 256]),
  /** out = levels[code]·largest of its block: out codes largest levels | count block */
  dequantize_blocks: signature(["f32*", "u8*", "f32*", "f32*", "i32", "i32"], (count, block) => [count!, count!, Math.ceil(count! / block!), 256]),
} as const;
