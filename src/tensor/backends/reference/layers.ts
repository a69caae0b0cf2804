import type { Ints, Reals } from "./types.ts";

/** Calls `visit` with the place of every element of the columns and of the image it belongs to, where there is one. */
function patches(geometry: readonly number[], visit: (column: number, pixel: number | undefined) => void): void {
  const [batch, channels, height, width, outHeight, outWidth, kh, kw, sy, sx, py, px, dy, dx] = geometry as [
    ...[number, number, number, number, number, number, number],
    ...[number, number, number, number, number, number, number],
  ];
  let column = 0;
  for (let plane = 0; plane < batch * channels; plane++)
    for (let ky = 0; ky < kh; ky++)
      for (let kx = 0; kx < kw; kx++)
        for (let oy = 0; oy < outHeight; oy++)
          for (let ox = 0; ox < outWidth; ox++) {
            const [y, x] = [oy * sy - py + ky * dy, ox * sx - px + kx * dx];
            const isInside = y >= 0 && y < height && x >= 0 && x < width;
            visit(column++, isInside ? (plane * height + y) * width + x : undefined);
          }
}

export function unfold(columns: Reals, x: Reals, ...geometry: number[]): void {
  patches(geometry, (column, pixel) => (columns[column] = pixel === undefined ? 0 : x[pixel]!));
}

export function fold(x: Reals, columns: Reals, ...geometry: number[]): void {
  const [batch, channels, height, width] = geometry as [number, number, number, number];
  x.fill(0, 0, batch * channels * height * width);
  patches(geometry, (column, pixel) => {
    if (pixel !== undefined) x[pixel]! += columns[column]!;
  });
}

interface Windows {
  rowStart: Ints;
  rowEnd: Ints;
  columnStart: Ints;
  columnEnd: Ints;
  planes: number;
  height: number;
  width: number;
  outHeight: number;
  outWidth: number;
}

/** Calls `visit` for every window with its place in the output, its plane and the places of its elements in that plane. */
function windows(w: Windows, visit: (at: number, plane: number, places: number[]) => void): void {
  for (let plane = 0; plane < w.planes; plane++)
    for (let i = 0; i < w.outHeight; i++)
      for (let j = 0; j < w.outWidth; j++) {
        const places: number[] = [];
        for (let r = w.rowStart[i]!; r < w.rowEnd[i]!; r++) for (let c = w.columnStart[j]!; c < w.columnEnd[j]!; c++) places.push(r * w.width + c);
        visit((plane * w.outHeight + i) * w.outWidth + j, plane * w.height * w.width, places);
      }
}

type WindowArguments = [Ints, Ints, Ints, Ints, number, number, number, number, number];
const asWindows = ([rowStart, rowEnd, columnStart, columnEnd, planes, height, width, outHeight, outWidth]: WindowArguments): Windows => ({
  rowStart,
  rowEnd,
  columnStart,
  columnEnd,
  planes,
  height,
  width,
  outHeight,
  outWidth,
});

export function average_pool(y: Reals, x: Reals, ...[rs, re, cs, ce, planes, h, w, oh, ow, divisor]: [...WindowArguments, number]): void {
  windows(asWindows([rs, re, cs, ce, planes, h, w, oh, ow]), (at, plane, places) => {
    y[at] = places.reduce((sum, place) => sum + x[plane + place]!, 0) / (divisor || places.length);
  });
}

export function average_pool_backward(dx: Reals, g: Reals, ...[rs, re, cs, ce, planes, h, w, oh, ow, divisor]: [...WindowArguments, number]): void {
  dx.fill(0, 0, planes * h * w);
  windows(asWindows([rs, re, cs, ce, planes, h, w, oh, ow]), (at, plane, places) => {
    for (const place of places) dx[plane + place]! += g[at]! / (divisor || places.length);
  });
}

export function max_pool(y: Reals, index: Ints, x: Reals, ...rest: WindowArguments): void {
  windows(asWindows(rest), (at, plane, places) => {
    const values = places.map((place) => x[plane + place]!);
    const nan = values.findIndex(Number.isNaN);
    const best = nan >= 0 ? nan : values.indexOf(values.reduce((top, value) => Math.max(top, value)));
    index[at] = places[best]!;
    y[at] = values[best]!;
  });
}

export function max_pool_backward(dx: Reals, g: Reals, index: Ints, planes: number, size: number, outSize: number): void {
  dx.fill(0, 0, planes * size);
  for (let at = 0; at < planes * outSize; at++) dx[Math.floor(at / outSize) * size + index[at]!]! += g[at]!;
}

/** Places of one channel's elements. */
function channelPlaces(channel: number, batch: number, channels: number, inner: number): number[] {
  return Array.from({ length: batch * inner }, (_, i) => (Math.floor(i / inner) * channels + channel) * inner + (i % inner));
}

export function channel_moments(mean: Reals, variance: Reals, x: Reals, batch: number, channels: number, inner: number): void {
  for (let c = 0; c < channels; c++) {
    const values = channelPlaces(c, batch, channels, inner).map((at) => x[at]!);
    const average = values.reduce((sum, value) => sum + value, 0) / values.length;
    mean[c] = average;
    variance[c] = values.reduce((sum, value) => sum + (value - average) ** 2, 0) / values.length;
  }
}

export function channel_norm(
  y: Reals,
  x: Reals,
  mean: Reals,
  rstd: Reals,
  w: Reals | null,
  b: Reals | null,
  batch: number,
  channels: number,
  inner: number,
): void {
  for (let c = 0; c < channels; c++)
    for (const at of channelPlaces(c, batch, channels, inner)) y[at] = (x[at]! - mean[c]!) * rstd[c]! * (w ? w[c]! : 1) + (b ? b[c]! : 0);
}

export function channel_norm_backward(
  dx: Reals,
  dw: Reals | null,
  db: Reals | null,
  g: Reals,
  x: Reals,
  mean: Reals,
  rstd: Reals,
  w: Reals | null,
  batch: number,
  channels: number,
  inner: number,
  moving: number,
): void {
  for (let c = 0; c < channels; c++) {
    const places = channelPlaces(c, batch, channels, inner);
    const normal = (at: number): number => (x[at]! - mean[c]!) * rstd[c]!;
    const total = places.reduce((sum, at) => sum + g[at]!, 0);
    const along = places.reduce((sum, at) => sum + g[at]! * normal(at), 0);
    if (dw) dw[c] = along;
    if (db) db[c] = total;
    const factor = rstd[c]! * (w ? w[c]! : 1);
    for (const at of places) dx[at] = factor * (moving ? g[at]! - total / places.length - (normal(at) * along) / places.length : g[at]!);
  }
}
