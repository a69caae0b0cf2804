import { signature } from "./signature.ts";

/** Sorting, selection, gathering, prefix sums and packed numbers. */
export const select = {
  // Order, indexing and running sums. In all orders NaN comes last, ties go by place, −0 equals 0; down = 1 puts the largest first.
  /** Rows in order and where their elements stood; lanes rows at a time. values index | x scratch | rows n down lanes */
  sort_rows: signature(["real*", "i32*", "real*", "f64*", "i32", "i32", "i32", "i32"], (rows, n, _down, lanes) => [
    rows! * n!,
    rows! * n!,
    rows! * n!,
    lanes! * 2 * n!,
  ]),
  /** The first k ≤ n of each row in that order. values index | x scratch | rows n k down lanes */
  top_rows: signature(["real*", "i32*", "real*", "f64*", "i32", "i32", "i32", "i32", "i32"], (rows, n, k, _down, lanes) => [
    rows! * k!,
    rows! * k!,
    rows! * n!,
    lanes! * topScratch(k!),
  ]),
  /** The element of each row with k < n before it. values index | x | rows n k down */
  kth_rows: signature(["real*", "i32*", "real*", "i32", "i32", "i32", "i32"], (rows, n) => [rows!, rows!, rows! * n!]),
  /** 1 where x comes before edge, and where it equals edge among the first `ties` elements; else 0. out | x | n ties down edge */
  rank_mask: signature(["real*", "real*", "i32", "i32", "i32", "f64"], (n) => [n!, n!]),
  /** out[o,c,i] = x[o, index[o,c,i], i]; x is outer×extent×inner. out | x index | outer count extent inner */
  gather_along: signature(["real*", "real*", "i32*", "i32", "i32", "i32", "i32"], (o, c, e, i) => [o! * c! * i!, o! * e! * i!, o! * c! * i!]),
  /** out[o, index[o,c,i], i] += x[o,c,i], in order of c. out | x index | outer count extent inner */
  scatter_add_along: signature(["real*", "real*", "i32*", "i32", "i32", "i32", "i32"], (o, c, e, i) => [o! * e! * i!, o! * c! * i!, o! * c! * i!]),
  /** out = condition ≠ 0 ? a : b, elementwise. out | condition a b | n */
  where: signature(["real*", "real*", "real*", "real*", "i32"], (n) => [n!, n!, n!, n!]),
  /** Running sums along the middle axis, from its end if reverse. out | x | outer count inner reverse */
  cumulative_sum: signature(["real*", "real*", "i32", "i32", "i32", "i32"], (o, c, i) => [o! * c! * i!, o! * c! * i!]),
  /** out[s,:] = Σ x[r,:] over offsets[s] ≤ r < offsets[s+1]. out | x offsets | segments dim rows */
  segment_sum: signature(["real*", "real*", "i32*", "i32", "i32", "i32"], (segments, dim, rows) => [segments! * dim!, rows! * dim!, segments! + 1]),
} as const;

/** Doubles of scratch that `top_rows` needs for one lane. */
export const topScratch = (k: number): number => 2 * (2 * k + 256);
