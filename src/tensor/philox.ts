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

/** Two normals from two words, by Box–Muller. */
export function normalPair(word0: number, word1: number): [number, number] {
  const radius = Math.sqrt(-2 * Math.log(((word0 >>> 8) + 1) * 2 ** -24));
  const angle = 2 * Math.PI * unit(word1);
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
}
