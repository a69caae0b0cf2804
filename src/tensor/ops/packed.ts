import { StrutError } from "../../errors.ts";
import { kernels } from "../engine.ts";
import { record } from "../tape.ts";
import { empty, ones, tensor, zeros as zerosOf, type Tensor } from "../tensor.ts";
import { mul } from "./elementwise.ts";
import { sum } from "./reduce.ts";
import { concat, contiguous, reshape } from "./shape.ts";

/** Bytes of `count` numbers of `bits` bits. */
const packedBytes = (count: number, bits: number): number => Math.ceil((count * bits) / 8);

function checkBits(bits: number, least = 1): void {
  if (!(Number.isInteger(bits) && bits >= least && bits <= 8)) throw new StrutError("range", `a packed number has ${least} to 8 bits, not ${bits}`);
}

function checkPositive(name: string, value: number): void {
  if (!(Number.isInteger(value) && value > 0)) throw new StrutError("range", `${name} must be a positive whole number, got ${value}`);
}

function demand(x: Tensor, dtype: string, size: number, name: string): Tensor {
  if (x.dtype !== dtype || x.size !== size) throw new StrutError("shape", `${name} must be ${size} ${dtype}, got ${x.dtype}[${x.shape}]`);
  return contiguous(x);
}

/**
 * Whole numbers of 1 to 8 bits (i32) as bytes, the lowest bit first. Higher bits are dropped.
 *
 * @example
 * const mask = packBits(tensor([1, 0, 1, 1], [4], "i32"), 1);
 */
export function packBits(codes: Tensor, bits: number): Tensor {
  checkBits(bits);
  const source = demand(codes, "i32", codes.size, "codes");
  const out = empty([packedBytes(codes.size, bits)], "u8");
  kernels().pack_bits(out, source, codes.size, bits);
  return out;
}

/** The numbers (i32) that packBits wrote, in a shape. */
export function unpackBits(packed: Tensor, shape: readonly number[], bits: number): Tensor {
  checkBits(bits);
  const out = empty(shape, "i32");
  kernels().unpack_bits(out, demand(packed, "u8", packedBytes(out.size, bits), "packed"), out.size, bits);
  return out;
}

/** Σ over each run of `block` columns of x [rows, cols], the last one shorter: [rows, runs]. */
function blockSums(x: Tensor, block: number): Tensor {
  const [rows, cols] = x.shape as [number, number];
  const runs = Math.ceil(cols / block);
  const padded = runs * block === cols ? x : concat([x, zerosOf([rows, runs * block - cols])], 1);
  return sum(reshape(padded, [rows, runs, block]), { axes: [2] });
}

/** Numbers kept in groups along rows: codes [rows, bytes a row] u8, scales and zeros [rows, groups]. */
export interface Groups {
  readonly codes: Tensor;
  readonly scales: Tensor;
  /** The code of 0; without it 0 is the code 2^(bits−1). */
  readonly zeros?: Tensor;
}

/**
 * Rounds a matrix to the nearest of 2^bits steps in groups of `group` along its rows (ties to even).
 * Symmetric: scale = max|x|/(2^(bits−1) − 1); else scale = (max − min)/(2^bits − 1) with a code for 0.
 *
 * @example
 * const { codes, scales } = quantizeGroups(ones([4, 64]), { bits: 4, group: 32 });
 */
export function quantizeGroups(x: Tensor, { bits, group, symmetric = true }: { bits: number; group: number; symmetric?: boolean }): Groups {
  checkBits(bits, symmetric ? 2 : 1);
  checkPositive("group", group);
  const [rows, cols] = x.shape as [number, number];
  const source = demand(x, "f32", rows * cols, "x");
  const groups = Math.ceil(cols / group);
  const [codes, scales] = [empty([rows, packedBytes(cols, bits)], "u8"), empty([rows, groups])];
  const zeros = symmetric ? null : empty([rows, groups], "u8");
  kernels().quantize_groups(codes, scales, zeros, source, rows, cols, group, bits);
  return { codes, scales, ...(zeros ? { zeros } : {}) };
}

/** (code − zero)·scale, [rows, cols] f32; differentiable in the scales. */
export function dequantizeGroups({ codes, scales, zeros }: Groups, { cols, bits, group }: { cols: number; bits: number; group: number }): Tensor {
  checkBits(bits);
  checkPositive("group", group);
  const rows = codes.shape[0]!;
  const out = empty([rows, cols]);
  const count = rows * Math.ceil(cols / group);
  kernels().dequantize_groups(
    out,
    demand(codes, "u8", rows * packedBytes(cols, bits), "codes"),
    demand(scales, "f32", count, "scales"),
    zeros ? demand(zeros, "u8", count, "zeros") : null,
    rows,
    cols,
    group,
    bits,
  );
  return record(out, [scales], (g) => {
    const whole = dequantizeGroups({ codes, scales: ones(scales.shape), ...(zeros ? { zeros } : {}) }, { cols, bits, group });
    return [blockSums(mul(g, whole), group)];
  });
}

function dynamicMap(signed: boolean): readonly number[] {
  const levels = [0, 1];
  for (let decade = 0; decade < 7; decade++) {
    const steps = 2 ** (signed ? decade : decade + 1);
    for (let i = 0; i < steps; i++) {
      const level = 10 ** (decade - 6) * (0.1 + (0.9 * (i + 0.5)) / steps);
      levels.push(level);
      if (signed) levels.push(-level);
    }
  }
  return levels.sort((a, b) => a - b);
}

const maps = [dynamicMap(false), dynamicMap(true)] as const;

/**
 * The 256 levels of the dynamic 8-bit map of Dettmers et al. 2021, arXiv:2110.02861: seven decades, each decade
 * cut twice as finely as the one below. `signed: false` spends the sign's bit on the fraction, for second moments.
 */
export const dynamicLevels = (signed = true): Tensor => tensor(maps[signed ? 1 : 0]);

/** Numbers as bytes: codes u8 of the tensor's shape, and the largest |x| of each block, f32. */
export interface Blocks {
  readonly codes: Tensor;
  readonly largest: Tensor;
}

/**
 * Blocks of 8-bit numbers: the nearest level to x/max|x|. The block is 256 or 2048 in bitsandbytes.
 *
 * @example
 * const levels = dynamicLevels();
 * const again = dequantizeBlocks(quantizeBlocks(ones([8]), levels, 256), levels, 256);
 */
export function quantizeBlocks(x: Tensor, levels: Tensor, block: number): Blocks {
  checkPositive("block", block);
  const source = demand(x, "f32", x.size, "x");
  const [codes, largest] = [empty(x.shape, "u8"), empty([Math.ceil(x.size / block)])];
  kernels().quantize_blocks(codes, largest, source, demand(levels, "f32", 256, "levels"), x.size, block);
  return { codes, largest };
}

/** levels[code]·max|x|, f32; differentiable in the largest. */
export function dequantizeBlocks({ codes, largest }: Blocks, levels: Tensor, block: number): Tensor {
  checkPositive("block", block);
  const out = empty(codes.shape);
  kernels().dequantize_blocks(
    out,
    demand(codes, "u8", codes.size, "codes"),
    demand(largest, "f32", Math.ceil(codes.size / block), "largest"),
    demand(levels, "f32", 256, "levels"),
    codes.size,
    block,
  );
  return record(out, [largest], (g) => {
    const unit = dequantizeBlocks({ codes, largest: ones(largest.shape) }, levels, block);
    return [reshape(blockSums(reshape(mul(g, unit), [1, unit.size]), block), largest.shape)];
  });
}
