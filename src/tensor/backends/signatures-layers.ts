import { signature } from "./signature.ts";

/** batch channels height width | outHeight outWidth | kernel, stride, padding and dilation, each for y and x */
const geometry = ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"] as const;
const windows = ["i32*", "i32*", "i32*", "i32*", "i32", "i32", "i32", "i32", "i32"] as const;

/** Convolution, pooling, recurrent cells and the losses of layers. */
export const layers = {
  /** columns[b, (c, ky, kx), (oy, ox)] = x[b, c, oy·stride − padding + ky·dilation, …], 0 outside of the image: columns x | geometry */
  unfold: signature(["real*", "real*", ...geometry], (b, c, h, w, oh, ow, kh, kw) => [b! * c! * kh! * kw! * oh! * ow!, b! * c! * h! * w!]),
  /** x = what unfold read, summed where patches overlap: x columns | geometry */
  fold: signature(["real*", "real*", ...geometry], (b, c, h, w, oh, ow, kh, kw) => [b! * c! * h! * w!, b! * c! * kh! * kw! * oh! * ow!]),
  /** Mean of windows: y x | rowStart rowEnd columnStart columnEnd | planes height width outHeight outWidth | divisor (0: the window's size) */
  average_pool: signature(["real*", "real*", ...windows, "f64"], (planes, h, w, oh, ow) => [planes! * oh! * ow!, planes! * h! * w!, oh!, oh!, ow!, ow!]),
  /** dx g | as average_pool */
  average_pool_backward: signature(["real*", "real*", ...windows, "f64"], (planes, h, w, oh, ow) => [
    planes! * h! * w!,
    planes! * oh! * ow!,
    oh!,
    oh!,
    ow!,
    ow!,
  ]),
  /** Largest element of windows and where it first stands in its plane; a NaN wins: y index x | as average_pool without divisor */
  max_pool: signature(["real*", "i32*", "real*", ...windows], (planes, h, w, oh, ow) => [
    planes! * oh! * ow!,
    planes! * oh! * ow!,
    planes! * h! * w!,
    oh!,
    oh!,
    ow!,
    ow!,
  ]),
  /** dx[p, index[p, o]] += g[p, o]: dx | g index | planes size outSize */
  max_pool_backward: signature(["real*", "real*", "i32*", "i32", "i32", "i32"], (planes, size, out) => [planes! * size!, planes! * out!, planes! * out!]),
  /** Mean and biased variance of each channel: mean variance | x | batch channels inner */
  channel_moments: signature(["real*", "real*", "real*", "i32", "i32", "i32"], (b, c, inner) => [c!, c!, b! * c! * inner!]),
  /** y = (x − mean)·rstd·w + b by channel: y | x mean rstd w? b? | batch channels inner */
  channel_norm: signature(["real*", "real*", "real*", "real*", "real*?", "real*?", "i32", "i32", "i32"], (b, c, inner) => [
    b! * c! * inner!,
    b! * c! * inner!,
    c!,
    c!,
    c!,
    c!,
  ]),
  /** dx dw? db? | g x mean rstd w? | batch channels inner | moving: 1 if mean and rstd are those of x */
  channel_norm_backward: signature(["real*", "real*?", "real*?", "real*", "real*", "real*", "real*", "real*?", "i32", "i32", "i32", "i32"], (b, c, inner) => [
    b! * c! * inner!,
    c!,
    c!,
    b! * c! * inner!,
    b! * c! * inner!,
    c!,
    c!,
    c!,
  ]),
} as const;
