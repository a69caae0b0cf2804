import type { View } from "../nn/contracts.ts";
import { add, matmul, norm, scale, sub, tensor, transpose, type Tensor } from "../tensor/index.ts";

/** Moving averages of a sensitivity and of its change: Ī and Ū of AdaLoRA (Zhang et al. 2023, eq. 9 and 10). */
export interface Smoothed {
  mean: number;
  change: number;
}

/** Takes a new value into the averages; Ū is of the distance to the new Ī. */
export function smooth(s: Smoothed, value: number, beta1: number, beta2: number): void {
  s.mean = beta1 * s.mean + (1 - beta1) * value;
  s.change = beta2 * s.change + (1 - beta2) * Math.abs(value - s.mean);
}

/** From `from` until after `until` of the steps, `start` falls to `end` by a cube: end + (start − end)·(1 − progress)³. */
export function cubic(step: number, from: number, until: number, start: number, end: number): number {
  if (step <= from) return start;
  if (step > until) return end;
  return end + (start - end) * (1 - (step - from) / (until - from)) ** 3;
}

/** ‖M·Mᵀ − I‖_F of the rows of a matrix, or of its columns; 0 has the gradient 0, and so has a matrix of rank 0. */
export function orthogonalityGap(m: Tensor, side: "rows" | "columns"): Tensor {
  const gram = side === "rows" ? matmul(m, transpose(m)) : matmul(transpose(m), m);
  const n = gram.shape[0]!;
  const identity = tensor(
    Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0)),
    [n, n],
    m.dtype as "f32",
  );
  return norm(sub(gram, identity));
}

/** The mean of the gaps of all A (rows) and B (columns), times a weight: what keeps triplets nearly orthogonal. */
export function orthogonalityLoss(views: readonly View<{ A: Tensor; B: Tensor }>[], weight: number): Tensor {
  const gaps = views.flatMap(({ params }) => [orthogonalityGap(params.A, "rows"), orthogonalityGap(params.B, "columns")]);
  return scale(gaps.reduce(add), weight / gaps.length);
}

export { largestPlaces } from "../models/largest.ts";
