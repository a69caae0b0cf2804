import {
  add,
  cast,
  customGradient,
  dequantizeBlocks,
  dynamicLevels,
  hostNumbers,
  linear,
  mul,
  packBits,
  quantizeBlocks,
  reshape,
  scope,
  slice,
  take,
  tensor,
  transpose,
  unpackBits,
  type Tensor,
} from "../tensor/index.ts";
import { costOf, type LinearOperator } from "./operator.ts";

/** The sixteen levels of NormalFloat: quantiles of N(0, 1), the outermost at ±1, with an exact 0 (Dettmers et al. 2023, arXiv:2305.14314, appendix E). */
const levels = [
  -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534,
  0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
];
/** Largest numbers that share a second scale. */
const SECOND = 256;

/** codes: two a byte, of whole blocks; largest: the |w| that a block is scaled by, as 8-bit codes less their mean, `scales` one for 256 of them. */
export interface Nf4Parts {
  readonly codes: Tensor;
  readonly largest: Tensor;
  readonly scales: Tensor;
  readonly mean: Tensor;
}

/** A matrix of 4-bit NormalFloat codes in blocks along its rows; decoded for each product and again in backward, never kept whole. */
export function nf4(parts: Nf4Parts, [out, inner]: readonly [number, number], block = 64): LinearOperator {
  const { codes, largest, scales, mean } = parts;
  const count = largest.size;
  const toDense = (): Tensor => {
    const units = take(tensor(levels), unpackBits(codes, [count, block], 4));
    const sizes = add(dequantizeBlocks({ codes: largest, largest: scales }, dynamicLevels(), SECOND), mean);
    return reshape(slice(reshape(mul(units, reshape(sizes, [count, 1])), [count * block]), 0, 0, out * inner), [out, inner]);
  };
  const product = (x: Tensor, transposed: boolean): Tensor =>
    scope(() => {
      const W = cast(toDense(), x.dtype);
      return linear(x, transposed ? transpose(W) : W);
    });
  const apply = (x: Tensor, transposed: boolean): Tensor =>
    customGradient(
      [x],
      (input) => product(input, transposed),
      (g) => [product(g, !transposed)],
    );
  return {
    kind: "nf4",
    out,
    in: inner,
    parts: { ...parts },
    options: { shape: [out, inner], block },
    apply: (x) => apply(x, false),
    applyTransposed: (x) => apply(x, true),
    toDense,
    cost: () => costOf({ ...parts }, 2 * out * inner, out * inner + count),
  };
}

/**
 * A matrix in 4-bit NormalFloat with doubly quantised scales, as QLoRA keeps a frozen base: about .52 bytes a weight. Differentiable in x alone.
 *
 * @example
 * const w = quantizeNf4(ones([4, 64]));
 */
export function quantizeNf4(weight: Tensor, block = 64): LinearOperator {
  const values = hostNumbers(weight) as Float32Array;
  const count = Math.ceil(values.length / block);
  const codes = new Int32Array(count * block);
  const largest = new Float32Array(count);
  for (let b = 0; b < count; b++) {
    const own = values.subarray(b * block, (b + 1) * block);
    const most = own.reduce((a, x) => Math.max(a, Math.abs(x)), 0);
    largest[b] = most;
    for (const [i, x] of own.entries()) codes[b * block + i] = most === 0 ? 7 : nearestLevel(x / most);
  }
  const mean = largest.reduce((a, x) => a + x, 0) / Math.max(1, count);
  const second = quantizeBlocks(tensor(largest.map((x) => x - mean)), dynamicLevels(), SECOND);
  const parts = { codes: packBits(tensor(codes, [codes.length], "i32"), 4), largest: second.codes, scales: second.largest, mean: tensor([mean]) };
  return nf4(parts, weight.shape as [number, number], block);
}

/** The lower of two that are as near. */
function nearestLevel(x: number): number {
  let code = 0;
  while (code < 15 && x > (levels[code]! + levels[code + 1]!) / 2) code++;
  return code;
}
