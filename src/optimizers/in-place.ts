import { kernels } from "../tensor/engine.ts";
import { contiguous, type Tensor } from "../tensor/index.ts";

/** y ← a·x + b·y, in the memory of y (contiguous, f32 or f64). */
export function accumulate(y: Tensor, a: number, x: Tensor, b = 1): void {
  kernels().axpby(y, a, contiguous(x), b, y.size);
}

/** y ← x */
export const overwrite = (y: Tensor, x: Tensor): void => accumulate(y, 1, x, 0);

/** y ← factor·y */
export const scaleInPlace = (y: Tensor, factor: number): void => kernels().axpby(y, factor, y, 0, y.size);
