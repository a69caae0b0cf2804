import { engine, kernels } from "../tensor/engine.ts";
import { hostView, Tensor } from "../tensor/tensor.ts";

/** Rows r0 … r1−1 and columns c0 … c1−1 of a matrix, in place. */
export const block = (x: Tensor, r0: number, r1: number, c0: number, c1: number): Tensor =>
  new Tensor(x.handle, x.dtype, [r1 - r0, c1 - c0], x.strides, x.offset + r0 * x.strides[0]! + c0 * x.strides[1]!);

export const turned = (x: Tensor): Tensor => new Tensor(x.handle, x.dtype, [x.shape[1]!, x.shape[0]!], [x.strides[1]!, x.strides[0]!], x.offset);

/** c = alpha·a·b + beta·c for matrices of any strides, c with its columns side by side. Unrecorded. */
export function multiplyInto(c: Tensor, a: Tensor, b: Tensor, alpha = 1, beta = 0): void {
  const [m, k] = a.shape as [number, number];
  const n = b.shape[1]!;
  const [aRow, aCol] = a.strides as [number, number];
  const [bRow, bCol] = b.strides as [number, number];
  kernels().gemm(1, m, n, k, alpha, a, 0, aRow, aCol, b, 0, bRow, bCol, beta, c, 0, c.strides[0]!, null, engine().scratch);
}

/** The numbers of an f64 tensor, in place; valid until the next allocation. */
export const doubles = (x: Tensor): Float64Array => hostView(x) as Float64Array;
