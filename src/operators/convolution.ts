import { add, conv2d, permute, positions, reshape, transpose, unfold, type Tensor } from "../tensor/index.ts";
import type { LinearOperator } from "./operator.ts";

/** How a convolution moves over its image; pairs are [y, x]. */
export interface ConvGeometry {
  readonly kernel: readonly [number, number];
  readonly stride: readonly [number, number];
  readonly padding: readonly [number, number];
  readonly dilation: readonly [number, number];
  readonly groups: number;
}

/**
 * Convolution by a matrix W, out × (in/groups·kh·kw), applied to the unfolded patches of x [batch, in, height, width]; a low-rank W is
 * a convolution by A and a 1×1 convolution by B. With groups W is made dense.
 *
 * @example
 * const geometry = { kernel: [3, 3], stride: [1, 1], padding: [1, 1], dilation: [1, 1], groups: 1 } as const;
 * const y = convolve(dense(ones([8, 27])), ones([1, 3, 6, 6]), geometry); // [1, 8, 6, 6]
 */
export function convolve(weight: LinearOperator, x: Tensor, { kernel, groups, ...patches }: ConvGeometry, bias: Tensor | null = null): Tensor {
  if (weight.kind === "dense" || groups > 1)
    return conv2d(x, reshape(weight.toDense(), [weight.out, weight.in / (kernel[0] * kernel[1]), ...kernel]), bias, { groups, ...patches });
  const rows = weight.apply(patchesOf(x, { kernel, groups, ...patches }));
  const y = permute(bias ? add(rows, bias) : rows, [0, 2, 1]);
  return reshape(y, [x.shape[0]!, weight.out, ...positions([x.shape[2]!, x.shape[3]!], { kernel, ...patches })]);
}

/** What a convolution's matrix sees as rows: x [batch, in, height, width] → [batch, places, in·kh·kw]. */
export const patchesOf = (x: Tensor, { kernel, groups: _groups, ...patches }: ConvGeometry): Tensor => transpose(unfold(x, kernel, patches));
