import { StrutError } from "../errors.ts";
import { isReal } from "../tensor/dtype.ts";
import { hostNumbers, type Tensor } from "../tensor/tensor.ts";

export function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

/** to += factor·from */
export function addScaled(to: Float64Array, factor: number, from: Float64Array): void {
  for (let i = 0; i < to.length; i++) to[i]! += factor * from[i]!;
}

/** A copy of the numbers of an f32 or f64 tensor of a wanted shape. */
export function numbersOf(x: Tensor, shape: readonly number[], what: string): Float64Array {
  if (!isReal(x.dtype) || x.shape.join() !== shape.join())
    throw new StrutError("shape", `${what} is ${x.dtype}[${x.shape}]; expected is an f32 or f64 tensor of shape [${shape}]`);
  return Float64Array.from(hostNumbers(x) as Float64Array);
}
