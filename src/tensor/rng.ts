import type { Real } from "./dtype.ts";
import { kernels } from "./engine.ts";
import { philox } from "./philox.ts";
import { empty, type Tensor } from "./tensor.ts";

/** Final mixing of MurmurHash3: every input bit moves every output bit. */
function mix(h: number): number {
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) | 0;
}

function hash(seed: number, text: string): number {
  let h = seed;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  return mix(h ^ text.length);
}

/**
 * Counter-based random numbers. A fork depends on its name only, so numbers do not change with the order of calls
 * elsewhere, nor with the number of threads.
 *
 * @example
 * const a = new Rng(7).fork("lora/q_proj").uniform([8, 64], 0.125);
 */
export class Rng {
  readonly key: readonly [number, number];
  /** How many draws were made: all of the state there is. */
  counter: number;

  constructor(seed: number | readonly [number, number], counter = 0) {
    this.key = typeof seed === "number" ? [mix(seed | 0), mix(Math.floor(seed / 2 ** 32) ^ 0x5bd1e995)] : seed;
    this.counter = counter;
  }

  fork(name: string): Rng {
    return new Rng([hash(this.key[0], name), hash(this.key[1] ^ 0x9e3779b9, name)]);
  }

  /** Number of the next draw's stream. */
  next(): number {
    return this.counter++;
  }

  /** Uniform in [−bound, bound). */
  uniform(shape: readonly number[], bound: number, dtype: Real = "f32"): Tensor {
    const out = empty(shape, dtype);
    kernels().random_uniform(out, out.size, -bound, bound, ...this.key, this.next());
    return out;
  }

  /** Normal with mean 0. */
  normal(shape: readonly number[], std: number, dtype: Real = "f32"): Tensor {
    const out = empty(shape, dtype);
    kernels().random_normal(out, out.size, 0, std, ...this.key, this.next());
    return out;
  }

  /** One number in [0, 1) with 53 random bits. */
  random(): number {
    const [a, b] = philox(this.key[0], this.key[1], 0, this.next());
    return ((a >>> 5) * 2 ** 26 + (b >>> 6)) / 2 ** 53;
  }

  /** A whole number in [0, limit). */
  integer(limit: number): number {
    return Math.floor(this.random() * limit);
  }

  /** The numbers 0 … n−1 in random order (Fisher–Yates). */
  permutation(n: number): Int32Array {
    const order = Int32Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return order;
  }
}
