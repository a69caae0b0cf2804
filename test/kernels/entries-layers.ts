import { referenceKernels } from "../../src/tensor/backends/reference.ts";
import type { KernelName } from "../../src/tensor/backends/signatures.ts";
import type { Allowed, Draw, Entry } from "./draw.ts";
import { U } from "./entries-elementwise.ts";

const reference = (name: KernelName, ...args: unknown[]): void => (referenceKernels[name] as (...args: unknown[]) => void)(...args);
const absolute = (values: ArrayLike<number>): Float64Array => Float64Array.from(values, Math.abs);

/** batch channels height width | outHeight outWidth | kernel stride padding dilation, all for y and x. */
function geometry(draw: Draw): number[] {
  const axis = (most: number): [number, number, number, number, number, number] => {
    const [kernel, stride, dilation, padding] = [draw.integer(1, 4), draw.one([1, 1, 2, 3]), draw.one([1, 1, 2]), draw.integer(0, 3)];
    const least = Math.max(1, dilation * (kernel - 1) + 1 - 2 * padding);
    const extent = draw.integer(least, least + most);
    return [extent, Math.floor((extent + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1, kernel, stride, padding, dilation];
  };
  const [batch, channels] = draw.large ? [draw.integer(4, 9), draw.integer(4, 9)] : [draw.one([0, 1, 2, 3]), draw.integer(1, 3)];
  const [y, x] = [axis(draw.large ? 20 : 8), axis(draw.large ? 40 : 33)];
  return [batch, channels, y[0], x[0], ...[1, 2, 3, 4, 5].flatMap((i) => [y[i]!, x[i]!])];
}

const imageSize = ([b, c, h, w]: readonly number[]): number => b! * c! * h! * w!;
const columnSize = ([b, c, , , oh, ow, kh, kw]: readonly number[]): number => b! * c! * oh! * ow! * kh! * kw!;

const unfold: Entry = (draw) => {
  const g = geometry(draw);
  return { kernel: "unfold", args: [draw.output(columnSize(g)), draw.reals(imageSize(g)), ...g] };
};

const fold: Entry = (draw) => {
  const g = geometry(draw);
  const columns = draw.numbers(columnSize(g));
  const size = new Float64Array(imageSize(g));
  reference("fold", size, absolute(columns), ...g);
  // one addition for each patch that holds the pixel
  return { kernel: "fold", args: [draw.output(imageSize(g), (_, i) => g[6]! * g[7]! * U * size[i]!), draw.input(columns), ...g] };
};

/** Windows that overlap, leave gaps and differ in size. */
function pools(draw: Draw): { planes: number; extents: number[]; bounds: number[][] } {
  const axis = (extent: number): [number[], number[]] => {
    const starts = Array.from({ length: draw.integer(1, 6) }, () => draw.integer(0, extent - 1));
    return [starts, starts.map((start) => draw.integer(start + 1, Math.min(extent, start + 5)))];
  };
  const [height, width] = draw.large ? [draw.integer(20, 40), draw.integer(20, 40)] : [draw.integer(1, 9), draw.integer(1, 20)];
  const bounds = [...axis(height), ...axis(width)];
  return { planes: draw.large ? 60 : draw.integer(0, 4), extents: [height, width, bounds[0]!.length, bounds[2]!.length], bounds };
}

const average_pool: Entry = (draw) => {
  const { planes, extents, bounds } = pools(draw);
  const [h, w, oh, ow] = extents as [number, number, number, number];
  const divisor = draw.one([0, 4]);
  const x = draw.numbers(planes * h * w);
  const size = new Float64Array(planes * oh * ow);
  reference("average_pool", size, absolute(x), ...bounds, planes, h, w, oh, ow, divisor);
  // kept in f64 and rounded once
  const allowed: Allowed = (expected, i) => U * Math.abs(expected) + 1e-14 * size[i]!;
  return {
    kernel: "average_pool",
    args: [draw.output(planes * oh * ow, allowed), draw.input(x), ...bounds.map((b) => draw.integers(b)), planes, ...extents, divisor],
  };
};

const average_pool_backward: Entry = (draw) => {
  const { planes, extents, bounds } = pools(draw);
  const [h, w, oh, ow] = extents as [number, number, number, number];
  const divisor = draw.one([0, 4]);
  const g = draw.numbers(planes * oh * ow);
  const size = new Float64Array(planes * h * w);
  reference("average_pool_backward", size, absolute(g), ...bounds, planes, h, w, oh, ow, divisor);
  // each window rounds its share and adds it
  const allowed: Allowed = (_, i) => (1 + oh * ow) * U * size[i]!;
  return {
    kernel: "average_pool_backward",
    args: [draw.output(planes * h * w, allowed), draw.input(g), ...bounds.map((b) => draw.integers(b)), planes, ...extents, divisor],
  };
};

const max_pool: Entry = (draw) => {
  const { planes, extents, bounds } = pools(draw);
  const [h, w, oh, ow] = extents as [number, number, number, number];
  // whole numbers in a narrow range, so that the largest comes more than once
  const x = draw.numbers(planes * h * w, 4).map((value) => (Number.isFinite(value) && !draw.special ? Math.round(value) || 0 : value));
  return {
    kernel: "max_pool",
    args: [
      draw.output(planes * oh * ow, () => 0),
      draw.output(planes * oh * ow, "bits", "i32"),
      draw.input(x),
      ...bounds.map((b) => draw.integers(b)),
      planes,
      ...extents,
    ],
  };
};

const max_pool_backward: Entry = (draw) => {
  const [planes, size, out] = draw.large ? [50, 300, 500] : [draw.integer(0, 4), draw.integer(1, 40), draw.size(65)];
  const g = draw.numbers(planes * out);
  const index = Array.from({ length: planes * out }, () => draw.integer(0, size - 1));
  const sizes = new Float64Array(planes * size);
  reference("max_pool_backward", sizes, absolute(g), index, planes, size, out);
  return {
    kernel: "max_pool_backward",
    args: [draw.output(planes * size, (_, i) => out * U * sizes[i]!), draw.input(g), draw.integers(index), planes, size, out],
  };
};

interface Channels {
  batch: number;
  channels: number;
  inner: number;
  /** Of each channel another shift and spread, some constant. */
  x: number[];
  mean: number[];
  rstd: number[];
}

function channelsOf(draw: Draw): Channels {
  const [batch, channels, inner] = draw.large
    ? [draw.integer(4, 8), draw.integer(5, 17), draw.integer(300, 900)]
    : [draw.integer(1, 4), draw.integer(1, 5), draw.one([1, 2, 5, 15, 16, 17, 33, 64, 130])];
  const kinds = Array.from({ length: channels }, () => [draw.one([0, 0, 3, -100]), draw.one([1, 1, 0.01, 30])] as const);
  const x = Array.from({ length: batch * channels * inner }, (_, i) => {
    const [shift, spread] = kinds[Math.floor(i / inner) % channels]!;
    return draw.rounded(draw.number(spread) + shift);
  });
  const [mean, variance] = [new Float64Array(channels), new Float64Array(channels)];
  reference("channel_moments", mean, variance, x, batch, channels, inner);
  return {
    batch,
    channels,
    inner,
    x,
    mean: Array.from(mean, (value) => draw.rounded(value)),
    rstd: Array.from(variance, (value) => draw.rounded(1 / Math.sqrt(value + 1e-5))),
  };
}

const channel_moments: Entry = (draw) => {
  const { batch, channels, inner, x } = channelsOf(draw);
  const [mean, largest] = [new Float64Array(channels), absolute(x).reduce((a, b) => Math.max(a, b), 0)];
  reference("channel_moments", mean, new Float64Array(channels), x, batch, channels, inner);
  // kept in f64 and rounded once; the terms of the variance err by what the mean does
  const ofMean: Allowed = (expected) => U * Math.abs(expected) + 1e-14 * largest;
  const ofVariance: Allowed = (expected) => (U + 1e-12) * expected + 1e-26 * largest ** 2;
  return {
    kernel: "channel_moments",
    args: [draw.output(channels, ofMean), draw.output(channels, ofVariance), draw.input(x), batch, channels, inner],
  };
};

const channel_norm: Entry = (draw) => {
  const { batch, channels, inner, x, mean, rstd } = channelsOf(draw);
  const [w, b] = [draw.chance(0.7) ? draw.numbers(channels, 2) : null, draw.chance(0.7) ? draw.numbers(channels) : null];
  const channel = (i: number): number => Math.floor(i / inner) % channels;
  // difference, product of scales, product, sum
  const allowed: Allowed = (expected, i) => {
    const c = channel(i);
    return 4 * U * Math.abs((x[i]! - mean[c]!) * rstd[c]! * (w?.[c] ?? 1)) + U * Math.abs(expected);
  };
  return {
    kernel: "channel_norm",
    args: [draw.output(x.length, allowed), draw.input(x), draw.input(mean), draw.input(rstd), w && draw.input(w), b && draw.input(b), batch, channels, inner],
  };
};

const channel_norm_backward: Entry = (draw) => {
  const { batch, channels, inner, x, mean, rstd } = channelsOf(draw);
  const w = draw.chance(0.7) ? draw.numbers(channels, 2) : null;
  const g = draw.numbers(x.length);
  const channel = (i: number): number => Math.floor(i / inner) % channels;
  const normal = x.map((value, i) => Math.abs((value - mean[channel(i)]!) * rstd[channel(i)]!));
  const [total, along] = [new Float64Array(channels), new Float64Array(channels)];
  g.forEach((value, i) => {
    total[channel(i)]! += Math.abs(value);
    along[channel(i)]! += Math.abs(value) * normal[i]!;
  });
  const count = batch * inner;
  const ofX: Allowed = (_, i) => {
    const c = channel(i);
    return 8 * U * rstd[c]! * Math.abs(w?.[c] ?? 1) * (Math.abs(g[i]!) + total[c]! / count + (normal[i]! * along[c]!) / count);
  };
  return {
    kernel: "channel_norm_backward",
    args: [
      draw.output(x.length, ofX),
      draw.chance(0.7) ? draw.output(channels, (_, c) => 4 * U * along[c]!) : null,
      draw.chance(0.7) ? draw.output(channels, (_, c) => 2 * U * total[c]!) : null,
      draw.input(g),
      draw.input(x),
      draw.input(mean),
      draw.input(rstd),
      w && draw.input(w),
      batch,
      channels,
      inner,
      draw.one([0, 1]),
    ],
  };
};

export const layers = {
  unfold,
  fold,
  average_pool,
  average_pool_backward,
  max_pool,
  max_pool_backward,
  channel_moments,
  channel_norm,
  channel_norm_backward,
} satisfies Record<string, Entry>;
