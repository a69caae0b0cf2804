import { StrutError } from "../../errors.ts";
import { kernels } from "../engine.ts";
import { record } from "../tape.ts";
import { empty, tensor, type Tensor } from "../tensor.ts";
import { both, type Pair } from "./convolution.ts";
import { contiguous } from "./shape.ts";

export interface PoolOptions {
  /** Defaults to the kernel. */
  stride?: Pair;
  /** At most half of the kernel; defaults to 0. */
  padding?: Pair;
}

/** Bounds of the windows along one axis; both lie inside of the image. */
interface Windows {
  readonly start: number[];
  readonly end: number[];
}

/** Windows of a kernel that moves by a stride over `extent` elements with padding. */
function slidingWindows(name: string, extent: number, kernel: number, stride: number, padding: number): Windows {
  const count = Math.floor((extent + 2 * padding - kernel) / stride) + 1;
  if (![kernel, stride, padding].every(Number.isInteger) || kernel < 1 || stride < 1 || padding < 0 || 2 * padding > kernel || count < 1)
    throw new StrutError(
      "option",
      `${name}: a kernel of ${kernel} with stride ${stride} and padding ${padding} does not fit ${extent} elements; padding may be half of the kernel`,
    );
  const start = Array.from({ length: count }, (_, i) => i * stride - padding);
  return { start: start.map((at) => Math.max(0, at)), end: start.map((at) => Math.min(extent, at + kernel)) };
}

function slidingAxes(name: string, x: Tensor, kernel: Pair, { stride = kernel, padding = 0 }: PoolOptions): [Windows, Windows] {
  if (x.shape.length !== 4) throw new StrutError("shape", `${name}: images must be [batch, channels, height, width], got [${x.shape}]`);
  const [k, s, p] = [both(kernel), both(stride), both(padding)];
  return [slidingWindows(name, x.shape[2]!, k[0], s[0], p[0]), slidingWindows(name, x.shape[3]!, k[1], s[1], p[1])];
}

/** The arguments of the kernels, from the bounds of rows to the extents. */
function windowArguments(x: Tensor, [rows, columns]: readonly [Windows, Windows]) {
  const bounds = (values: number[]): Tensor => tensor(values, [values.length], "i32");
  const [batch, channels, height, width] = x.shape as [number, number, number, number];
  const size = [batch * channels, height, width, rows.start.length, columns.start.length] as const;
  return [bounds(rows.start), bounds(rows.end), bounds(columns.start), bounds(columns.end), ...size] as const;
}

const pooledShape = (x: Tensor, [rows, columns]: readonly [Windows, Windows]): number[] => [x.shape[0]!, x.shape[1]!, rows.start.length, columns.start.length];

/**
 * Largest element of each window of x [batch, channels, height, width]; the first of several equal ones gets the gradient, as in torch.
 *
 * @example
 * const y = maxPool2d(ones([1, 3, 8, 8]), 2); // [1, 3, 4, 4]
 */
export function maxPool2d(x: Tensor, kernel: Pair, options: PoolOptions = {}): Tensor {
  const axes = slidingAxes("maxPool2d", x, kernel, options);
  const source = contiguous(x);
  const out = empty(pooledShape(x, axes), x.dtype);
  const index = empty(out.shape, "i32");
  kernels().max_pool(out, index, source, ...windowArguments(x, axes));
  const backward = (g: Tensor): Tensor[] => {
    const dx = empty(x.shape, x.dtype);
    kernels().max_pool_backward(dx, contiguous(g), index, x.shape[0]! * x.shape[1]!, x.shape[2]! * x.shape[3]!, out.shape[2]! * out.shape[3]!);
    return [dx];
  };
  return record(out, [source], backward, [index]);
}

/** Means of windows; a divisor of 0 stands for each window's own size. */
function averageWindows(x: Tensor, axes: readonly [Windows, Windows], divisor: number): Tensor {
  const source = contiguous(x);
  const out = empty(pooledShape(x, axes), x.dtype);
  kernels().average_pool(out, source, ...windowArguments(x, axes), divisor);
  return record(out, [source], (g) => {
    const dx = empty(x.shape, x.dtype);
    kernels().average_pool_backward(dx, contiguous(g), ...windowArguments(x, axes), divisor);
    return [dx];
  });
}

/**
 * Mean of each window of x [batch, channels, height, width]. `countIncludePad` (default true) divides by the kernel's size also
 * where a window reaches over the edge, as torch does.
 *
 * @example
 * const y = averagePool2d(ones([1, 3, 8, 8]), 2); // [1, 3, 4, 4]
 */
export function averagePool2d(x: Tensor, kernel: Pair, { countIncludePad = true, ...options }: PoolOptions & { countIncludePad?: boolean } = {}): Tensor {
  const [kh, kw] = both(kernel);
  return averageWindows(x, slidingAxes("averagePool2d", x, kernel, options), countIncludePad ? kh * kw : 0);
}

/**
 * Means over windows ⌊i·n/out⌋ … ⌈(i+1)·n/out⌉, so that the output has the given size whatever the input's, as in torch.
 *
 * @example
 * const y = adaptiveAveragePool2d(ones([1, 3, 7, 9]), 1); // [1, 3, 1, 1]
 */
export function adaptiveAveragePool2d(x: Tensor, size: Pair): Tensor {
  if (x.shape.length !== 4 || !both(size).every((n) => Number.isInteger(n) && n >= 1))
    throw new StrutError(
      "shape",
      `adaptiveAveragePool2d: images must be [batch, channels, height, width] and the size whole, got [${x.shape}] and [${both(size)}]`,
    );
  const axis = (extent: number, out: number): Windows => ({
    start: Array.from({ length: out }, (_, i) => Math.floor((i * extent) / out)),
    end: Array.from({ length: out }, (_, i) => Math.ceil(((i + 1) * extent) / out)),
  });
  return averageWindows(x, [axis(x.shape[2]!, both(size)[0]), axis(x.shape[3]!, both(size)[1])], 0);
}
