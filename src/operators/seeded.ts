import { addLinear, concat, customGradient, linear, Rng, scope, slice, transpose, zeros, type Real, type Tensor } from "../tensor/index.ts";
import type { LinearOperator } from "./operator.ts";

const ROWS = 64;

/**
 * A matrix of normal numbers (mean 0) that is never stored: 64 rows at a time are drawn again whenever they are needed,
 * from forks of the generator, so equal generators give equal matrices. Differentiable in x.
 *
 * @example
 * const w = seeded(new Rng(7).fork("nola/q_proj"), [128, 64], { std: 0.02 });
 */
export function seeded(rng: Rng, [out, inner]: readonly [number, number], { std = 1, dtype = "f32" }: { std?: number; dtype?: Real } = {}): LinearOperator {
  const starts = Array.from({ length: Math.ceil(out / ROWS) }, (_, i) => i * ROWS);
  const end = (start: number): number => Math.min(out, start + ROWS);
  const chunk = (start: number): Tensor => rng.fork(`rows/${start}`).normal([end(start) - start, inner], std, dtype);
  const forward = (x: Tensor): Tensor => joined([...x.shape.slice(0, -1), out], -1, (start) => linear(x, chunk(start)));
  const backward = (x: Tensor): Tensor =>
    starts.reduce(
      (total, start) => scope(() => addLinear(total, slice(x, -1, start, end(start)), transpose(chunk(start)))),
      zeros([...x.shape.slice(0, -1), inner], dtype),
    );
  const joined = (shape: readonly number[], axis: number, part: (start: number) => Tensor): Tensor =>
    starts.length === 0
      ? zeros(shape, dtype)
      : concat(
          starts.map((start) => scope(() => part(start))),
          axis,
        );
  return {
    kind: "seeded",
    out,
    in: inner,
    parts: {},
    options: { key: [...rng.key], shape: [out, inner], std, dtype },
    apply: (x) => customGradient([x], forward, (g) => [backward(g)]),
    applyTransposed: (x) => customGradient([x], backward, (g) => [forward(g)]),
    toDense: () => joined([0, inner], 0, chunk),
    cost: () => ({ params: 0, bytes: 0, flops: 2 * out * inner }),
  };
}
