import type { KernelName } from "../../src/tensor/backends/signatures.ts";
import { bytesOf, viewOf, type DType } from "../../src/tensor/dtype.ts";

export type Values = Float32Array | Float64Array | Int32Array | Uint16Array | Uint8Array;

/**
 * How far a kernel may be from the reference, which computes the same f32 inputs in f64: an absolute error of element i,
 * or "bits" where the result must be the reference's, rounded, with the same sign of zero, or "anything" for scratch.
 */
export type Allowed = "bits" | "anything" | ((expected: number, i: number) => number);

/** Memory that a call reads or writes. An argument given twice is one piece: the two alias. */
export interface Piece {
  readonly dtype: DType;
  /** What is there before the call; fresh outputs hold a marker instead. */
  readonly values: Values;
  readonly role: "in" | "out" | "inout";
  /** Elements between the start of its block and its first one, beyond the guard zone. */
  readonly offset: number;
  readonly allowed: Allowed;
}

export type Argument = number | null | Piece | "scratch";

export interface Call {
  readonly kernel: KernelName;
  readonly args: readonly Argument[];
}

/** Draws a call of one kernel. */
export type Entry = (draw: Draw) => Call;

const EDGES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129, 300];
const SPECIAL = [
  0,
  -0,
  Infinity,
  -Infinity,
  NaN,
  1e-42,
  -1e-42,
  2 ** -149,
  2 ** -126,
  -(2 ** -126),
  3.4028234663852886e38,
  -3.4028234663852886e38,
  1e20,
  -1e20,
  -1e30,
  1,
  -1,
  88.8,
  -103.9,
];

/** A seeded source of sizes, strides and numbers (splitmix32). */
export class Draw {
  #state: number;
  /** Big enough that work is shared between threads. */
  readonly large: boolean;
  /** Mixes infinities, NaN, subnormal and huge numbers and signed zeros into inputs. */
  readonly special: boolean;
  /** What `real*` stands for. */
  readonly real: "f32" | "f64";

  constructor(seed: number, { large = false, special = false, real = "f32" as "f32" | "f64" } = {}) {
    this.#state = seed | 0;
    this.large = large;
    this.special = special;
    this.real = real;
  }

  next(): number {
    this.#state = (this.#state + 0x9e3779b9) | 0;
    let z = Math.imul(this.#state ^ (this.#state >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return ((z ^ (z >>> 16)) >>> 0) / 2 ** 32;
  }

  /** low ≤ whole number ≤ high */
  integer(low: number, high: number): number {
    return low + Math.floor(this.next() * (high - low + 1));
  }

  chance(p: number): boolean {
    return this.next() < p;
  }

  one<T>(list: readonly T[]): T {
    return list[Math.floor(this.next() * list.length)]!;
  }

  /** An edge size of at most `most`. */
  size(most = 300): number {
    return this.one(EDGES.filter((n) => n <= most));
  }

  /** Elements of an elementwise kernel. */
  count(): number {
    return this.large ? this.integer(33_000, 100_000) : this.size();
  }

  /** Rows and columns of a row kernel. */
  matrix(): [number, number] {
    if (this.large)
      return this.one([
        [this.integer(150, 300), this.integer(100, 300)],
        [this.integer(3, 9), this.integer(9000, 12000)],
        [this.integer(3000, 5000), this.integer(5, 20)],
      ]);
    const cols = this.size();
    return [this.size(cols > 60 ? 17 : 65), cols];
  }

  /** A number that `real` holds exactly. */
  number(spread = 1): number {
    if (this.special && this.chance(0.3)) return this.rounded(this.one(SPECIAL));
    return this.rounded((this.next() * 2 - 1) * spread);
  }

  rounded(x: number): number {
    return this.real === "f32" ? Math.fround(x) : x;
  }

  numbers(n: number, spread = 1): number[] {
    return Array.from({ length: n }, () => this.number(spread));
  }

  #piece(role: Piece["role"], values: Values, dtype: DType, allowed: Allowed): Piece {
    return { dtype, values, role, offset: this.chance(0.5) ? 0 : this.integer(1, 19), allowed };
  }

  input(values: Iterable<number>): Piece {
    return this.#piece("in", this.real === "f32" ? Float32Array.from(values) : Float64Array.from(values), this.real, "bits");
  }

  /** An input of n numbers in (−spread, spread). */
  reals(n: number, spread = 1): Piece {
    return this.input(this.numbers(n, spread));
  }

  integers(values: Iterable<number>): Piece {
    return this.#piece("in", Int32Array.from(values), "i32", "bits");
  }

  bytes(values: Iterable<number>): Piece {
    return this.#piece("in", Uint8Array.from(values), "u8", "bits");
  }

  halves(values: Uint16Array, dtype: "bf16" | "f16"): Piece {
    return this.#piece("in", values, dtype, "bits");
  }

  output(n: number, allowed: Allowed = "bits", dtype: DType = this.real): Piece {
    return this.#piece("out", viewOf(dtype, new ArrayBuffer(n * bytesOf(dtype)), 0, n) as Values, dtype, allowed);
  }

  /** Read and written in place. */
  inout(values: Iterable<number>, allowed: Allowed, dtype: "f32" | "f64" | "u8" = this.real): Piece {
    const array = { f32: Float32Array, f64: Float64Array, u8: Uint8Array }[dtype];
    return this.#piece("inout", array.from(values), dtype, allowed);
  }

  /** Numbers at the places that a strided walk visits and NaN between them. */
  strided(extents: readonly number[], strides: readonly number[], spread = 1): number[] {
    const places = walk(extents, strides);
    const values = new Array<number>(places.length === 0 ? 0 : Math.max(...ends(extents, strides)) + 1).fill(NaN);
    for (const place of places) values[place] = this.number(spread);
    return values;
  }
}

const ends = (extents: readonly number[], strides: readonly number[]): number[] => [extents.reduce((sum, n, axis) => sum + (n - 1) * strides[axis]!, 0)];

/** Offsets of all elements, in row-major order. */
function walk(extents: readonly number[], strides: readonly number[]): number[] {
  let places = [0];
  extents.forEach((n, axis) => {
    places = places.flatMap((at) => Array.from({ length: n }, (_, i) => at + i * strides[axis]!));
  });
  return places;
}
