import { StrutError } from "../errors.ts";
import { cast } from "./ops/shape.ts";
import { empty, hostView, sizeOf, tensor, type Tensor } from "./tensor.ts";

/** Types that torch's numbers can be drawn in. */
export type DrawnType = "f32" | "bf16" | "f16";

const [WORDS, MIDDLE] = [624, 397];
const TWO_PI = Math.fround(2 * Math.PI);
/** torch numbers permutations with 32-bit draws up to here. */
const LONGEST_PERMUTATION = Math.floor((2 ** 32 - 1) / 20);

/** Sixteen uniforms to sixteen normals in place by Box & Muller, rounded to f32 where torch's vector code rounds. */
function normalBlock(values: Float32Array, from: number, mean: number, std: number): void {
  const f = Math.fround;
  for (let i = from; i < from + 8; i++) {
    const radius = f(Math.sqrt(f(-2 * f(Math.log(1 - values[i]!)))));
    const angle = f(TWO_PI * values[i + 8]!);
    values[i] = f(radius * f(Math.cos(angle))) * std + mean;
    values[i + 8] = f(radius * f(Math.sin(angle))) * std + mean;
  }
}

/**
 * The random numbers of torch's CPU generator (Mersenne Twister, Matsumoto & Nishimura 1998) as torch 2.13 draws them, for
 * adapters that store a seed in place of a matrix. Uniform numbers, integers and permutations agree in every bit (with torch
 * on a processor that fuses multiply and add); normal numbers to a few units in the last place, because logarithm and sine do.
 * Torch on a GPU draws other numbers, and older versions drew other uniform numbers.
 *
 * @example
 * const projection = new TorchRng(0).kaimingUniform([16, 64], { a: Math.sqrt(5), dtype: "bf16" });
 */
export class TorchRng {
  readonly #words = new Uint32Array(WORDS);
  #used = WORDS;
  /** The second half of the last pair of single normal draws. */
  #spare: number | undefined;

  constructor(seed: number | bigint) {
    this.manualSeed(seed);
  }

  /** Starts over; as in torch, only the low 32 bits of the seed count. */
  manualSeed(seed: number | bigint): this {
    if (typeof seed === "number" && !Number.isSafeInteger(seed))
      throw new StrutError("value", `the seed ${seed} is not a whole number that a double holds exactly`);
    const words = this.#words;
    words[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < WORDS; i++) words[i] = Math.imul(1812433253, words[i - 1]! ^ (words[i - 1]! >>> 30)) + i;
    this.#used = WORDS;
    this.#spare = undefined;
    return this;
  }

  #refill(): void {
    const words = this.#words;
    for (let i = 0; i < WORDS; i++) {
      const y = (words[i]! & 0x80000000) | (words[(i + 1) % WORDS]! & 0x7fffffff);
      words[i] = words[(i + MIDDLE) % WORDS]! ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.#used = 0;
  }

  /** The next 32 bits. */
  random32(): number {
    if (this.#used === WORDS) this.#refill();
    let y = this.#words[this.#used++]!;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** 64 bits from two draws. */
  #random64(): bigint {
    const high = BigInt(this.random32());
    return (high << 32n) | BigInt(this.random32());
  }

  #unit32(): number {
    return (this.random32() & 0xffffff) * 2 ** -24;
  }

  /** A double in [0, 1) with 53 random bits of two draws. */
  #unit64(): number {
    const high = this.random32() & 0x1fffff;
    return (high * 2 ** 32 + this.random32()) * 2 ** -53;
  }

  /** Uniform in [low, high): `torch.empty(shape, dtype).uniform_(low, high)`. */
  uniform(shape: readonly number[], low = 0, high = 1, dtype: DrawnType = "f32"): Tensor {
    if (!(low <= high && high - low < Infinity)) throw new StrutError("range", `uniform: ${low} … ${high} is not a range of finite numbers`);
    const [from, to] = [Math.fround(low), Math.fround(high)];
    const width = Math.fround(to - from);
    const wide = empty(shape);
    const values = hostView(wide) as Float32Array;
    // The product is exact in a double, so that rounding the sum once to f32 is what a fused multiply-add does.
    for (let i = 0; i < values.length; i++) values[i] = this.#unit32() * width + from;
    // What rounds up to the end of the range goes to its start.
    const out = cast(wide, dtype);
    const [start, end] = hostView(cast(tensor([from, to]), dtype)) as Float32Array | Uint16Array;
    const drawn = hostView(out) as Float32Array | Uint16Array;
    for (let i = 0; i < drawn.length; i++) if (drawn[i] === end) drawn[i] = start!;
    return out;
  }

  /** `torch.rand(shape, dtype)`. */
  rand(shape: readonly number[], dtype: DrawnType = "f32"): Tensor {
    return this.uniform(shape, 0, 1, dtype);
  }

  /** `torch.empty(shape, dtype).normal_(mean, std)`; with the defaults `torch.randn(shape, dtype)`. */
  normal(shape: readonly number[], mean = 0, std = 1, dtype: DrawnType = "f32"): Tensor {
    if (!(std >= 0)) throw new StrutError("range", `normal: the standard deviation is ${std}; it must be at least 0`);
    const wide = empty(shape);
    const values = hostView(wide) as Float32Array;
    const size = values.length;
    if (size < 16) {
      for (let i = 0; i < size; i++) values[i] = this.#single() * std + mean;
      return cast(wide, dtype);
    }
    const [f32Mean, f32Std] = [Math.fround(mean), Math.fround(std)];
    // f32 draws all uniforms at once, the short types as many as fill whole blocks; then the last 16 numbers are drawn anew.
    const first = dtype === "f32" ? size : size - (size % 16);
    for (let i = 0; i < first; i++) values[i] = this.#unit32();
    for (let i = 0; i + 16 <= size; i += 16) normalBlock(values, i, f32Mean, f32Std);
    if (size % 16 !== 0) {
      for (let i = size - 16; i < size; i++) values[i] = this.#unit32();
      normalBlock(values, size - 16, f32Mean, f32Std);
    }
    return cast(wide, dtype);
  }

  /** A standard normal double; every second one comes from the pair before. */
  #single(): number {
    if (this.#spare !== undefined) {
      const spare = this.#spare;
      this.#spare = undefined;
      return spare;
    }
    const angle = 2 * Math.PI * this.#unit64();
    const radius = Math.sqrt(-2 * Math.log1p(-this.#unit64()));
    this.#spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** Whole numbers in [low, high), i64: `torch.randint(low, high, shape)`. */
  randint(low: number, high: number, shape: readonly number[] = [1]): Tensor {
    const range = high - low;
    if (!(Number.isSafeInteger(low) && Number.isSafeInteger(high) && Number.isSafeInteger(range) && range > 0))
      throw new StrutError("range", `randint: ${low} … ${high} is not a range of whole numbers with at least one in it`);
    const wide = BigInt(range);
    const draw = range >= 2 ** 28 ? () => Number(this.#random64() % wide) : () => this.random32() % range;
    return tensor(
      Array.from({ length: sizeOf(shape) }, () => draw() + low),
      shape,
      "i64",
    );
  }

  /** The numbers 0 … n−1 in random order: `torch.randperm(n)`. */
  randperm(n: number): Int32Array {
    if (!Number.isInteger(n) || n < 0 || n > LONGEST_PERMUTATION)
      throw new StrutError("range", `randperm: n = ${n} is not a whole number between 0 and ${LONGEST_PERMUTATION}`);
    const order = Int32Array.from({ length: n }, (_, i) => i);
    for (let i = 0; i < n - 1; i++) {
      const j = i + (this.random32() % (n - i));
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return order;
  }

  /**
   * Uniform in ±√(6 / ((1 + a²)·fan)), where fan is the size of a row: `torch.nn.init.kaiming_uniform_(x, a)`.
   * `a`, the slope of a leaky ReLU, defaults to 0; torch's own layers take √5.
   */
  kaimingUniform(shape: readonly number[], { a = 0, dtype = "f32" }: { a?: number; dtype?: DrawnType } = {}): Tensor {
    if (shape.length < 2) throw new StrutError("shape", `kaimingUniform: shape [${shape}] has no rows; at least two axes are needed`);
    const deviation = Math.sqrt(2 / (1 + a * a)) / Math.sqrt(sizeOf(shape.slice(1)));
    const bound = Math.sqrt(3) * deviation;
    return this.uniform(shape, -bound, bound, dtype);
  }
}
