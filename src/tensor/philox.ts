/** Philox 4×32-10 (Salmon et al. 2011): four random words from a 64-bit key and a counter. */
export function philox(key0: number, key1: number, block: number, stream: number): [number, number, number, number] {
  let [c0, c1, c2, c3] = [block >>> 0, stream >>> 0, 0, 0];
  let [k0, k1] = [key0 >>> 0, key1 >>> 0];
  for (let round = 0; round < 10; round++) {
    const [low0, high0] = wide(0xd2511f53, c0);
    const [low1, high1] = wide(0xcd9e8d57, c2);
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** Low and high word of a 32×32-bit product. */
function wide(a: number, b: number): [number, number] {
  const [a0, a1, b0, b1] = [a & 0xffff, a >>> 16, b & 0xffff, b >>> 16];
  const low = a0 * b0;
  const middle = a1 * b0 + (low >>> 16);
  const cross = a0 * b1 + (middle % 0x10000);
  return [Math.imul(a, b) >>> 0, (a1 * b1 + Math.floor(middle / 0x10000) + Math.floor(cross / 0x10000)) >>> 0];
}

/** The top 24 bits of a word as a number in [0, 1). */
export const unit = (word: number): number => (word >>> 8) * 2 ** -24;

const floats = new Float64Array(1);
const words = new Uint32Array(floats.buffer);

/**
 * log(j·2⁻²⁴) for 1 ≤ j ≤ 2²⁴, by + − × / alone in a fixed order, where Math.log may differ between engines:
 * j·2⁻²⁴ = m·2ᵉ with m in [√½, √2) and s = (m − 1)/(m + 1) give log m = 2(s + s³/3 + … + s¹⁹/19).
 */
function logOfUniform(j: number): number {
  floats[0] = j;
  let exponent = (words[1]! >>> 20) - 1023 - 24;
  words[1] = (words[1]! & 0xfffff) | 0x3ff00000;
  let m = floats[0]!;
  if (m > Math.SQRT2) {
    m *= 0.5;
    exponent++;
  }
  const s = (m - 1) / (m + 1);
  const z = s * s;
  let p = 1 / 19;
  for (let n = 17; n >= 3; n -= 2) p = p * z + 1 / n;
  return exponent * Math.LN2 + (2 * s + 2 * s * (z * p));
}

/** Terms of the Taylor series of sine and cosine, last one first, as factors of z = a². */
const sineTerms = [1 / 355687428096000, -1 / 1307674368000, 1 / 6227020800, -1 / 39916800, 1 / 362880, -1 / 5040, 1 / 120, -1 / 6];
const cosineTerms = [1 / 20922789888000, -1 / 87178291200, 1 / 479001600, -1 / 3628800, 1 / 40320, -1 / 720, 1 / 24, -0.5];
const series = (terms: readonly number[], z: number): number => terms.reduce((sum, term) => sum * z + term, 0);

/** Cosine and sine of j·2⁻²⁴ turns: the octant by whole numbers, then an angle in [0, π/4]. */
function cosineAndSine(j: number): [number, number] {
  const octant = j >>> 21;
  const rest = octant & 1 ? 0x200000 - (j & 0x1fffff) : j & 0x1fffff;
  const a = rest * ((2 * Math.PI) / 2 ** 24);
  const z = a * a;
  const s = a + a * (z * series(sineTerms, z));
  const c = 1 + z * series(cosineTerms, z);
  const [x, y] = (octant + 1) & 2 ? [s, c] : [c, s];
  return [(octant + 2) & 4 ? -x : x, octant & 4 ? -y : y];
}

/** Two normals from two words, by Box–Muller; equal to the bit to those of kernels/random.c. */
export function normalPair(word0: number, word1: number): [number, number] {
  const radius = Math.sqrt(-2 * logOfUniform((word0 >>> 8) + 1));
  const [cosine, sine] = cosineAndSine(word1 >>> 8);
  return [radius * cosine, radius * sine];
}
