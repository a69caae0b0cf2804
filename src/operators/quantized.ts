import { cast, dequantizeBlocks, dequantizeGroups, dynamicLevels, linear, quantizeBlocks, quantizeGroups, transpose, type Tensor } from "../tensor/index.ts";
import { costOf, type LinearOperator } from "./operator.ts";

/** An operator whose matrix is made from codes when it is needed, in the type of x. */
function decoded(
  kind: string,
  [out, inner]: readonly [number, number],
  parts: LinearOperator["parts"],
  options: NonNullable<LinearOperator["options"]>,
  toDense: () => Tensor,
): LinearOperator {
  return {
    kind,
    out,
    in: inner,
    parts,
    options,
    apply: (x) => linear(x, cast(toDense(), x.dtype)),
    applyTransposed: (x) => linear(x, transpose(cast(toDense(), x.dtype))),
    toDense,
    cost: () => costOf(parts, 2 * out * inner, out * inner),
  };
}

/** How a matrix is kept in groups: 2…8 bits, groups of so many inputs. */
export interface GroupOptions {
  cols: number;
  bits: number;
  group: number;
}

/** W[i, j] = (code − zero)·scale of its group of inputs; codes and zeros are u8, scales f32. Differentiable in x and the scales. */
export function quantized(codes: Tensor, scales: Tensor, zeros: Tensor | null, { cols, bits, group }: GroupOptions): LinearOperator {
  const leaves = { codes, scales, ...(zeros ? { zeros } : {}) };
  return decoded("quantized", [codes.shape[0]!, cols], leaves, { cols, bits, group }, () => dequantizeGroups(leaves, { cols, bits, group }));
}

/**
 * A matrix rounded to nearest in groups along its inputs: bits 8 or 4 are the usual ones.
 *
 * @example
 * const w = quantize(ones([4, 64]), { bits: 4, group: 32 });
 */
export function quantize(weight: Tensor, { bits, group, symmetric = true }: { bits: number; group: number; symmetric?: boolean }): LinearOperator {
  const { codes, scales, zeros } = quantizeGroups(weight, { bits, group, symmetric });
  return quantized(codes, scales, zeros ?? null, { cols: weight.shape[1]!, bits, group });
}

/** W in blocks of 8-bit codes on the dynamic map; codes u8 out×in, one largest |w| (f32) a block. Differentiable in x and the largest. */
export function quantizedBlocks(codes: Tensor, largest: Tensor, block: number): LinearOperator {
  const [out, inner] = codes.shape as [number, number];
  const parts = { codes, largest };
  return decoded("quantized-blocks", [out, inner], parts, { block }, () => dequantizeBlocks(parts, dynamicLevels(), block));
}

/**
 * A matrix in 8-bit blocks.
 *
 * @example
 * const w = quantizeInBlocks(ones([4, 64]), 256);
 */
export function quantizeInBlocks(weight: Tensor, block = 256): LinearOperator {
  const { codes, largest } = quantizeBlocks(weight, dynamicLevels(), block);
  return quantizedBlocks(codes, largest, block);
}
