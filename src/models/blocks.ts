import { StrutError } from "../errors.ts";
import type { KvCache, Run } from "../nn/contracts.ts";
import {
  bytesOf,
  empty,
  engine,
  free as freeTensor,
  gradientsFlow,
  keep,
  noGrad,
  Parameter,
  recompute,
  scope,
  slice,
  tensor,
  type DType,
  type Tensor,
} from "../tensor/index.ts";

/**
 * Runs one block of a model: intermediates are forgotten at once where nothing will be differentiated, and recomputed in
 * backward if the run asks for it. Observers and caches need the plain way there. Blocks outside of the run's part do nothing.
 */
export function block(run: Run, depth: number, before: Tensor, body: (x: Tensor) => Tensor): Tensor {
  const x = run.part && depth <= run.part.from ? (run.part.x ?? before) : before;
  if (run.part && depth < run.part.from) return x;
  run.observer?.hidden?.(depth, x);
  if (run.part && depth >= run.part.until) return x;
  if (run.caches) return body(x);
  if (gradientsFlow()) return run.recompute && !run.observer ? recompute(body, x) : body(x);
  return scope(() => body(x));
}

export interface RotaryTables {
  readonly cos: Tensor;
  readonly sin: Tensor;
}

/** cos and sin of position·theta^(−2i/dim), computed in f64; cached per size so that a step makes none. */
export function rotaryTables(
  cache: Map<string, RotaryTables>,
  positions: number,
  dim: number,
  theta: number,
  scaling: (frequency: number) => number,
  dtype: "f32" | "f64",
): RotaryTables {
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

/** A cache whose memory goes back to the pool when asked, not only when it is collected. */
export interface FullCache extends KvCache {
  /** Forgets all tokens and returns the memory; the cache may be used anew. */
  free(): void;
}

/** Copies a part [batch, tokens, heads, dim] into a buffer with more tokens, from token `start` on. */
function write(buffer: Tensor, part: Tensor, start: number): void {
  const [batch, tokens, heads, dim] = part.shape as [number, number, number, number];
  for (let b = 0; b < batch; b++) {
    const [from, to] = [slice(part, 0, b, b + 1), slice(slice(buffer, 0, b, b + 1), 1, start, start + tokens)];
    engine().backend.kernels.copy(to, from, 1, tokens, heads, dim, ...(from.strides as [number, number, number, number]));
  }
}

/**
 * Keys and values of all tokens so far, for one layer. The buffers double when they are full, so appending costs the new
 * tokens only; `capacity` tokens are reserved at the first append. What `append` returns are views, valid until the next
 * call; no gradient flows through them. `bytes` counts the tokens held, not what is reserved.
 *
 * @example
 * const caches = Array.from({ length: model.dimensions.depth }, () => fullCache());
 * const logits = noGrad(() => forward(model, tensor([1, 403, 407], [1, 3], "i32"), { caches }));
 */
export function fullCache(capacity = 0): FullCache {
  let held: { k: Tensor; v: Tensor } | undefined;
  let length = 0;
  const free = (): void => {
    if (held) [held.k, held.v].forEach(freeTensor);
    held = undefined;
    length = 0;
  };
  /** The same tokens in a buffer of other extents. */
  const moved = (from: Tensor | undefined, shape: readonly number[], dtype: DType, rows?: readonly number[]): Tensor => {
    const to = keep(empty(shape, dtype));
    if (!from) return to;
    const kept = slice(from, 1, 0, length);
    if (!rows) write(to, kept, 0);
    else rows.forEach((row, i) => write(slice(to, 0, i, i + 1), slice(kept, 0, row, row + 1), 0));
    freeTensor(from);
    return to;
  };
  return {
    get length() {
      return length;
    },
    append(k, v, rotate) {
      if (gradientsFlow() && (k.node ?? v.node))
        throw new StrutError("gradient", "a key-value cache cannot be differentiated", { hint: "Run the pass inside noGrad, or without caches." });
      const rotated = rotate(k, length);
      const [batch, tokens, heads, dim] = rotated.shape as [number, number, number, number];
      if (held && held.k.shape[0] !== batch)
        throw new StrutError("shape", `the key-value cache holds ${held.k.shape[0]} rows, the pass has ${batch}`, {
          hint: "Call reorder() when rows come or go.",
        });
      const total = length + tokens;
      if (!held || total > held.k.shape[1]!) {
        const extents = [batch, Math.max(total, held ? 2 * length : capacity), heads, dim];
        held = { k: moved(held?.k, extents, rotated.dtype), v: moved(held?.v, extents, v.dtype) };
      }
      write(held.k, rotated, length);
      write(held.v, v, length);
      length = total;
      return { k: slice(held.k, 1, 0, length), v: slice(held.v, 1, 0, length) };
    },
    reorder(index) {
      if (!held) return;
      const extents = [index.length, ...held.k.shape.slice(1)];
      held = { k: moved(held.k, extents, held.k.dtype, index), v: moved(held.v, extents, held.v.dtype, index) };
    },
    bytes: () => (held ? (2 * held.k.size * length * bytesOf(held.k.dtype)) / held.k.shape[1]! : 0),
    free,
  };
}
