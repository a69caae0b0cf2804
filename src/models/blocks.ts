import type { KvCache, Run } from "../nn/contracts.ts";
import { bytesOf, concat, contiguous, gradientsFlow, keep, noGrad, Parameter, recompute, scope, slice, tensor, type Tensor } from "../tensor/index.ts";

/**
 * Runs one block of a model: intermediates are forgotten at once where nothing will be differentiated, and recomputed in
 * backward if the run asks for it. Observers and caches need the plain way.
 */
export function block(run: Run, depth: number, x: Tensor, body: (x: Tensor) => Tensor): Tensor {
  run.observer?.hidden?.(depth, x);
  if (run.caches || run.observer) return body(x);
  if (gradientsFlow()) return run.recompute ? recompute(body, x) : body(x);
  return scope(() => body(x));
}

export interface RotaryTables {
  readonly cos: Tensor;
  readonly sin: Tensor;
}

/** cos and sin of position·theta^(−2i/dim), computed in f64; cached per size so that a step makes none. */
export function rotaryTables(cache: Map<string, RotaryTables>, positions: number, dim: number, theta: number, scaling: (frequency: number) => number, dtype: "f32" | "f64"): RotaryTables {
  const key = `${positions}/${dim}/${theta}/${dtype}`;
  const found = cache.get(key);
  if (found?.cos.handle.block) return found;
  const half = dim / 2;
  const angles = new Float64Array(positions * half);
  for (let i = 0; i < half; i++) {
    // transformers makes the frequencies and angles in f32
    const frequency = Math.fround(scaling(1 / Math.fround(theta ** Math.fround((2 * i) / dim))));
    for (let p = 0; p < positions; p++) angles[p * half + i] = Math.fround(p * frequency);
  }
  const make = (f: (x: number) => number): Tensor => new Parameter(tensor(angles.map(f), [positions, half], dtype), "rotary", false);
  const tables = noGrad(() => ({ cos: make(Math.cos), sin: make(Math.sin) }));
  cache.set(key, tables);
  return tables;
}

/** Keys and values of all tokens so far, for one layer. */
export function fullCache(): KvCache {
  let held: { k: Tensor; v: Tensor } | undefined;
  return {
    get length() {
      return held?.k.shape[1] ?? 0;
    },
    append(k, v, rotate) {
      const rotated = rotate(k, held?.k.shape[1] ?? 0);
      held = held ? { k: concat([held.k, rotated], 1), v: concat([held.v, v], 1) } : { k: rotated, v: contiguous(v) };
      keep(held.k);
      keep(held.v);
      return held;
    },
    reorder(index) {
      if (!held) return;
      const rows = (x: Tensor): Tensor => keep(concat(index.map((i) => slice(x, 0, i, i + 1))));
      held = { k: rows(held.k), v: rows(held.v) };
    },
    bytes: () => (held ? 2 * held.k.size * bytesOf(held.k.dtype) : 0),
  };
}
