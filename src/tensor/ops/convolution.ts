import { StrutError } from "../../errors.ts";
import { kernels } from "../engine.ts";
import { needsGradient, record, stopGradient } from "../tape.ts";
import { copyOf, empty, Tensor, zeros } from "../tensor.ts";
import { gemmInto } from "./matmul.ts";
import { contiguous, expand, reshape, slice, sumAxes, transpose } from "./shape.ts";

/** One number for both axes, or [y, x]. */
export type Pair = number | readonly [number, number];

export interface PatchOptions {
  /** Defaults to 1. */
  stride?: Pair;
  /** Zeros around the image; defaults to 0. */
  padding?: Pair;
  /** Distance of the kernel's taps; defaults to 1. */
  dilation?: Pair;
}

export interface ConvolutionOptions extends PatchOptions {
  /** Blocks of channels that do not see each other; defaults to 1. */
  groups?: number;
}

export const both = (value: Pair): readonly [number, number] => (typeof value === "number" ? [value, value] : value);

interface Geometry {
  readonly batch: number;
  readonly channels: number;
  readonly kernel: readonly [number, number];
  /** Height and width of the output. */
  readonly out: readonly [number, number];
  /** What the kernels take after batch and channels. */
  readonly rest: readonly [number, number, number, number, number, number, number, number, number, number, number, number];
}

/** Rows and columns of places that a kernel takes on an image of [height, width]. */
export function positions(
  size: readonly [number, number],
  { kernel, stride, padding, dilation }: Record<"kernel" | "stride" | "padding" | "dilation", readonly [number, number]>,
): readonly [number, number] {
  const along = (axis: 0 | 1): number => Math.floor((size[axis] + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) / stride[axis]) + 1;
  return [along(0), along(1)];
}

function geometry(name: string, shape: readonly number[], kernel: Pair, { stride = 1, padding = 0, dilation = 1 }: PatchOptions): Geometry {
  if (shape.length !== 4) throw new StrutError("shape", `${name}: images must be [batch, channels, height, width], got [${shape}]`);
  const [batch, channels, height, width] = shape as [number, number, number, number];
  const [k, s, p, d] = [both(kernel), both(stride), both(padding), both(dilation)];
  for (const [what, pair, least] of [
    ["kernel", k, 1],
    ["stride", s, 1],
    ["padding", p, 0],
    ["dilation", d, 1],
  ] as const)
    if (!pair.every((n) => Number.isInteger(n) && n >= least))
      throw new StrutError("option", `${name}: ${what} is [${pair}]; it must be whole numbers of at least ${least}`, { path: what });
  const out = positions([height, width], { kernel: k, stride: s, padding: p, dilation: d });
  if (out[0] < 1 || out[1] < 1)
    throw new StrutError("shape", `${name}: a kernel of ${k.join("×")} with dilation [${d}] does not fit into ${height}×${width} with padding [${p}]`);
  return { batch, channels, kernel: k, out, rest: [height, width, ...out, ...k, ...s, ...p, ...d] };
}

/**
 * Patches of images as columns: x [batch, channels, height, width] → [batch, channels·kh·kw, positions], as torch's unfold.
 *
 * @example
 * const columns = unfold(ones([1, 3, 8, 8]), 3, { padding: 1 }); // [1, 27, 64]
 */
export function unfold(x: Tensor, kernel: Pair, options: PatchOptions = {}): Tensor {
  const source = contiguous(x);
  const g = geometry("unfold", x.shape, kernel, options);
  const columns = empty([g.batch, g.channels * g.kernel[0] * g.kernel[1], g.out[0] * g.out[1]], x.dtype);
  kernels().unfold(columns, source, g.batch, g.channels, ...g.rest);
  return record(columns, [source], (gradient) => [fold(gradient, [x.shape[2]!, x.shape[3]!], kernel, options)]);
}

/**
 * Images of the given size from columns [batch, channels·kh·kw, positions]; where patches overlap they are summed, as torch's fold.
 *
 * @example
 * const image = fold(ones([1, 27, 64]), [8, 8], 3, { padding: 1 }); // [1, 3, 8, 8]
 */
export function fold(columns: Tensor, size: readonly [number, number], kernel: Pair, options: PatchOptions = {}): Tensor {
  const source = contiguous(columns);
  const [kh, kw] = both(kernel);
  const shape = [columns.shape[0]!, columns.shape[1]! / (kh * kw), ...size];
  const g = geometry("fold", shape, kernel, options);
  if (columns.shape.length !== 3 || !Number.isInteger(shape[1]) || columns.shape[2] !== g.out[0] * g.out[1])
    throw new StrutError("shape", `fold: columns [${columns.shape}] do not fit ${kh}×${kw} patches at ${g.out.join("×")} positions`);
  const x = empty(shape, columns.dtype);
  kernels().fold(x, source, g.batch, g.channels, ...g.rest);
  return record(x, [source], (gradient) => [unfold(gradient, kernel, options)]);
}

/** Images at a time, so that their columns (about 2 MiB) stay in the cache. */
const imagesAtOnce = ({ batch, channels, kernel, out }: Geometry): number =>
  Math.max(1, Math.min(batch, Math.floor(2 ** 19 / (channels * kernel[0] * kernel[1] * out[0] * out[1]))));

/** Consecutive matrices of a contiguous tensor, seen as a batch. */
const matrices = (x: Tensor, first: number, count: number, rows: number, cols: number): Tensor =>
  new Tensor(x.handle, x.dtype, [count, rows, cols], undefined, x.offset + first * rows * cols);

/**
 * Convolution of x [batch, in, height, width] with weight [out, in/groups, kh, kw]:
 * y[b, o, i, j] = bias[o] + Σ weight[o, c, ky, kx]·x[b, c, i·stride − padding + ky·dilation, …], as torch's conv2d.
 * Columns are made for a few images at a time and never kept.
 *
 * @example
 * const y = conv2d(ones([1, 3, 8, 8]), ones([16, 3, 3, 3]), null, { padding: 1 }); // [1, 16, 8, 8]
 */
export function conv2d(x: Tensor, weight: Tensor, bias: Tensor | null = null, { groups = 1, ...options }: ConvolutionOptions = {}): Tensor {
  const [filters, inner, kh, kw] = weight.shape as [number, number, number, number];
  if (weight.shape.length !== 4 || x.shape.length !== 4 || x.dtype !== weight.dtype || x.shape[1] !== inner * groups || filters % groups !== 0)
    throw new StrutError(
      "shape",
      `conv2d: x is ${x.dtype}[${x.shape}], the weight ${weight.dtype}[${weight.shape}] with ${groups} groups; x must be [batch, in, height, width] and the weight [out, in/groups, kh, kw], with groups dividing out`,
    );
  const [source, w] = [contiguous(x), contiguous(weight)];
  const g = geometry("conv2d", x.shape, [kh, kw], options);
  const [places, taps, rows] = [g.out[0] * g.out[1], inner * kh * kw, filters / groups];
  const together = imagesAtOnce(g);
  const columnsOf = (start: number, images: number, columns: Tensor): void =>
    kernels().unfold(columns, matrices(source, start * g.channels, 1, x.shape[2]!, x.shape[3]!), images, g.channels, ...g.rest);
  const columns = (): Tensor => empty([together * groups, taps, places], x.dtype);
  /** Calls `body` for batches of products: the matrix of the part and of the whole that it starts with, and how many. */
  const inBatches = (start: number, images: number, body: (part: number, whole: number, count: number) => void): void => {
    if (groups === 1) body(0, start, images);
    else for (let i = 0; i < images; i++) body(i * groups, (start + i) * groups, groups);
  };
  const inParts = (body: (start: number, images: number) => void): void => {
    for (let start = 0; start < g.batch; start += together) body(start, Math.min(together, g.batch - start));
  };
  const bank = matrices(w, 0, groups, rows, taps);

  const shape = [g.batch, filters, ...g.out];
  const out = bias ? copyOf(expand(reshape(stopGradient(bias), [filters, 1, 1]), shape)) : empty(shape, x.dtype);
  const held = columns();
  inParts((start, images) => {
    columnsOf(start, images, held);
    inBatches(start, images, (part, whole, count) =>
      gemmInto(matrices(out, whole, count, rows, places), bank, matrices(held, part, count, taps, places), { beta: bias ? 1 : 0 }),
    );
  });

  return record(out, [source, w, ...(bias ? [bias] : [])], (gradient) => {
    const dy = contiguous(gradient);
    const dx = needsGradient(source) ? empty(x.shape, x.dtype) : null;
    const dw = needsGradient(w) ? zeros(weight.shape, x.dtype) : null;
    const part = columns();
    const shares = dw && empty([together, ...weight.shape], x.dtype);
    inParts((start, images) => {
      if (dw && shares) {
        columnsOf(start, images, part);
        inBatches(start, images, (from, whole, count) =>
          gemmInto(matrices(shares, from, count, rows, taps), matrices(dy, whole, count, rows, places), transpose(matrices(part, from, count, taps, places))),
        );
        kernels().axpby(dw, 1, sumAxes(slice(shares, 0, 0, images), [0]), 1, dw.size);
      }
      if (!dx) return;
      inBatches(start, images, (from, whole, count) =>
        gemmInto(matrices(part, from, count, taps, places), transpose(bank), matrices(dy, whole, count, rows, places)),
      );
      kernels().fold(matrices(dx, start * g.channels, 1, x.shape[2]!, x.shape[3]!), part, images, g.channels, ...g.rest);
    });
    return [dx, dw, ...(bias ? [needsGradient(bias) ? reshape(sumAxes(dy, [0, 2, 3]), bias.shape) : null] : [])];
  });
}
