import { beforeAll, describe, expect, it } from "vitest";
import { referenceBackend } from "../../src/tensor/backends/reference.ts";
import { Draw } from "./draw.ts";
import { runOn } from "./harness.ts";
import { machines, type Machine } from "./machines.ts";

let present: Machine[];

beforeAll(async () => {
  const backend = referenceBackend();
  present = [
    ...(await machines(1)).present,
    { label: "reference", backend, scratch: { dtype: "f32", block: backend.allocate(64), offset: 0 }, block: (bytes) => backend.allocate(bytes), reset() {} },
  ];
});

const bitsOf = (values: Float32Array): Uint32Array => new Uint32Array(values.buffer, values.byteOffset, values.length);
const fromBits = (bits: readonly number[]): Float32Array => new Float32Array(Uint32Array.from(bits).buffer);

interface Format {
  fractionBits: number;
  exponentBits: number;
}
const formats: Record<"bf16" | "f16", Format> = { bf16: { fractionBits: 7, exponentBits: 8 }, f16: { fractionBits: 10, exponentBits: 5 } };

/** The f32 bits of a half, by whole numbers: the fraction moves up, the exponent is biased anew, a subnormal is normalised. */
function widened(half: number, { fractionBits, exponentBits }: Format): number {
  const all = (1 << exponentBits) - 1;
  const sign = (half >>> 15) * 2 ** 31;
  let exponent = (half >>> fractionBits) & all;
  let fraction = half & ((1 << fractionBits) - 1);
  if (exponent === all) return sign + 0x7f800000 + fraction * 2 ** (23 - fractionBits);
  const bias = (1 << (exponentBits - 1)) - 1;
  if (exponent === 0) {
    if (fraction === 0) return sign;
    if (bias === 127) return sign + fraction * 2 ** (23 - fractionBits);
    exponent = 1;
    while (fraction < 1 << fractionBits) {
      fraction *= 2;
      exponent--;
    }
    fraction -= 1 << fractionBits;
  }
  return sign + (exponent - bias + 127) * 2 ** 23 + fraction * 2 ** (23 - fractionBits);
}

/** The half nearest to finite f32 bits, by exact integers: |x| = significand·2^e against the halves on both sides of it. */
function narrowed(bits: number, format: Format): number {
  const sign = bits >= 2 ** 31 ? 0x8000 : 0;
  const size = bits % 2 ** 31;
  // halves are ordered like the numbers they stand for, so the greatest one not above |x| is found by halving
  const infinite = ((1 << format.exponentBits) - 1) << format.fractionBits;
  let [low, high] = [0, infinite];
  while (high - low > 1) {
    const middle = (low + high) >>> 1;
    if (widened(middle, format) <= size) low = middle;
    else high = middle;
  }
  if (size === 0x7f800000) return sign | infinite;
  const value = (word: number): number => fromBits([word])[0]!;
  const [x, below] = [value(size), value(widened(low, format))];
  // past the last finite half, ∞ counts as the next step of the same grid
  const above = high === infinite ? below + (below - value(widened(low - 1, format))) : value(widened(high, format));
  const [down, up] = [x - below, above - x];
  return sign | (down < up || (down === up && low % 2 === 0) ? low : high);
}

const isNaN32 = (bits: number): boolean => bits % 2 ** 31 > 0x7f800000;

function narrow(machine: Machine, dtype: "bf16" | "f16", values: Float32Array): Uint16Array {
  const draw = new Draw(3);
  const output = draw.output(values.length, "bits", dtype);
  const call = { kernel: `f32_to_${dtype}`, args: [output, draw.input(values), values.length] } as const;
  return runOn(machine, call).get(output) as Uint16Array;
}

describe.each(["bf16", "f16"] as const)("%s", (dtype) => {
  const format = formats[dtype];

  it("widens all 65536 patterns to the number they stand for, NaN quiet with its payload", () => {
    const words = Uint16Array.from({ length: 65536 }, (_, i) => i);
    for (const machine of present) {
      const draw = new Draw(2);
      const output = draw.output(words.length);
      const found = bitsOf(runOn(machine, { kernel: `${dtype}_to_f32`, args: [output, draw.halves(words, dtype), words.length] }).get(output) as Float32Array);
      const wrong = [...words].filter((half) => {
        const expected = widened(half, format);
        const quiet = expected | 0x400000;
        return found[half] !== expected && !(isNaN32(expected) && found[half] === quiet >>> 0);
      });
      expect(wrong, machine.label).toEqual([]);
    }
  });

  it("gives every half back after widening", () => {
    const infinite = ((1 << format.exponentBits) - 1) << format.fractionBits;
    const halves = Array.from({ length: 65536 }, (_, i) => i).filter((half) => (half & 0x7fff) <= infinite);
    const wide = fromBits(halves.map((half) => widened(half, format)));
    for (const machine of present)
      expect(
        [...narrow(machine, dtype, wide)].filter((half, i) => half !== halves[i]),
        machine.label,
      ).toEqual([]);
  });

  it("rounds every exponent to nearest even: at, just below and just above each boundary", () => {
    const dropped = 23 - format.fractionBits;
    const tails = [0, 1, 2 ** (dropped - 1) - 1, 2 ** (dropped - 1), 2 ** (dropped - 1) + 1, 2 ** dropped - 1];
    const heads = [0, 1, 2, 3, (1 << format.fractionBits) - 2, (1 << format.fractionBits) - 1];
    const bits: number[] = [];
    for (const sign of [0, 2 ** 31])
      for (let exponent = 0; exponent < 255; exponent++) {
        for (const head of heads) for (const tail of tails) bits.push(sign + exponent * 2 ** 23 + head * 2 ** dropped + tail);
        // subnormal results cut further up: every place that the cut can have
        for (let place = 0; place < 23; place++)
          for (const near of [-1, 0, 1])
            for (const odd of [0, 1])
              bits.push(sign + exponent * 2 ** 23 + Math.max(0, Math.min(2 ** 23 - 1, 2 ** place + near + odd * 2 ** Math.min(22, place + 1))));
      }
    bits.push(0x7f800000, 2 ** 31 + 0x7f800000);
    const expected = bits.map((word) => narrowed(word, format));
    for (const machine of present) {
      const found = narrow(machine, dtype, fromBits(bits));
      const wrong = bits.flatMap((word, i) =>
        found[i] === expected[i] ? [] : [`0x${word.toString(16)}: expected 0x${expected[i]!.toString(16)}, found 0x${found[i]!.toString(16)}`],
      );
      expect(wrong.slice(0, 4), machine.label).toEqual([]);
    }
  });

  it("keeps NaN a NaN of the same sign, also where only low bits of the payload are set", () => {
    const bits = [0x7f800001, 0x7fc00000, 0x7fffffff, 0xff800001, 0xffc12345, 0x7f80ffff, 0x7fbfffff, 0xff801fff].flatMap((word) => [word, word, word]);
    const infinite = ((1 << format.exponentBits) - 1) << format.fractionBits;
    for (const machine of present) {
      const found = [...narrow(machine, dtype, fromBits(bits))];
      expect(
        found.every((half) => (half & 0x7fff) > infinite),
        machine.label,
      ).toBe(true);
      expect(
        found.map((half) => half >>> 15),
        machine.label,
      ).toEqual(bits.map((word) => Math.floor(word / 2 ** 31)));
    }
  });
});
