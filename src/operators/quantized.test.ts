import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import {
  backward,
  dequantizeBlocks,
  dynamicLevels,
  linear,
  mul,
  packBits,
  Parameter,
  quantizeBlocks,
  start,
  sum,
  tensor,
  unpackBits,
} from "../tensor/index.ts";
import { largestOfM, quantize, quantized, quantizeInBlocks } from "./index.ts";

beforeAll(async () => {
  await start();
});

describe("quantised matrices", () => {
  it("keep numbers of 4 bits exactly where they can be told", async () => {
    // multiples of 1/8 from −7/8 to 7/8, the largest in every group
    const values = Array.from({ length: 6 * 10 }, (_, i) => (i % 5 === 0 ? 7 / 8 : (((i * 5) % 15) - 7) / 8));
    const w = quantize(tensor(values, [6, 10]), { bits: 4, group: 5 });
    expect([...(await w.toDense().data())]).toEqual(values);
    expect(w.cost().bytes).toBe(6 * 5 + 6 * 2 * 4);
  });

  it("with a code for 0 keep whole numbers that fill the range of an uneven group", async () => {
    const values = [0, 15, 3, 7, -5, 10, 0, 2];
    const w = quantize(tensor(values, [1, 8]), { bits: 4, group: 4, symmetric: false });
    expect([...(await w.toDense().data())]).toEqual(values);
  });

  it.each([2, 3, 4, 8])("err by half a step at most, with %s bits", async (bits) => {
    const values = sample([7, 33], 5, 3);
    const w = await quantize(tensor(values, [7, 33]), { bits, group: 16 })
      .toDense()
      .data();
    for (let r = 0; r < 7; r++)
      for (let c = 0; c < 33; c++) {
        const start = r * 33 + Math.floor(c / 16) * 16;
        const largest = Math.max(...values.slice(start, Math.min(start + 16, (r + 1) * 33)).map(Math.abs));
        expect(Math.abs(Number(w[r * 33 + c]) - values[r * 33 + c]!)).toBeLessThanOrEqual(largest / (2 ** (bits - 1) - 1) / 2 + 1e-6);
      }
  });

  it("multiply as their dense form does", async () => {
    const [weight, x] = [tensor(sample([9, 20], 1), [9, 20]), tensor(sample([4, 20], 2), [4, 20])];
    for (const w of [quantize(weight, { bits: 8, group: 8 }), quantize(weight, { bits: 4, group: 8, symmetric: false }), quantizeInBlocks(weight, 64)])
      expect(await w.apply(x).data()).toEqual(await linear(x, w.toDense()).data());
  });

  it("have a gradient in the scales: the sum of g times the codes", async () => {
    const { parts } = quantize(tensor([1, -7, 3, 2, 4, 6, 7], [1, 7]), { bits: 4, group: 4 });
    const scales = new Parameter(parts["scales"]!, "scales");
    const w = quantized(parts["codes"]!, scales, null, { cols: 7, bits: 4, group: 4 });
    const gradients = backward(sum(mul(w.toDense(), tensor([1, 2, 3, 4, 5, 6, 7], [1, 7]))));
    // codes are the numbers themselves: both scales are 1
    expect([...(await gradients.get(scales)!.data())]).toEqual([1 - 14 + 9 + 8, 20 + 36 + 49]);
  });

  it("pass a NaN on to its whole group", async () => {
    const w = await quantize(tensor([NaN, 1, 1, 1], [1, 4]), { bits: 8, group: 2 })
      .toDense()
      .data();
    expect([...w]).toEqual([NaN, NaN, 1, 1]);
  });
});

describe("8-bit blocks", () => {
  it("have the levels of bitsandbytes' dynamic map", async () => {
    const [signed, unsigned] = [await dynamicLevels().data(), await dynamicLevels(false).data()];
    expect([signed.length, new Set(Array.from(signed as Float32Array)).size, new Set(Array.from(unsigned as Float32Array)).size]).toEqual([256, 256, 256]);
    // create_dynamic_map: the first and last means of linspace(0.1, 1, 65), and the lone mean of the lowest decade
    expect([signed[255], signed[254], signed[0], signed[127]].map(Number)).toEqual([1, Math.fround(0.99296875), Math.fround(-0.99296875), 0]);
    expect(Number(signed[128])).toBeCloseTo(5.5e-7, 12);
    expect([unsigned[0], unsigned[255], unsigned[254]].map(Number)).toEqual([0, 1, Math.fround(0.996484375)]);
  });

  it.each([256, 2048])("of %s err by 1/64 of each number's decade at the most, and keep 0 and the largest", async (block) => {
    const values = sample([5000], 3).map((value, i) => (i % 100 === 0 ? 0 : value * 10 ** -(i % 3)));
    const levels = dynamicLevels();
    const quantised = quantizeBlocks(tensor(values), levels, block);
    const [again, largest] = [await dequantizeBlocks(quantised, levels, block).data(), await quantised.largest.data()];
    values.forEach((value, i) => {
      const top = Number(largest[Math.floor(i / block)]);
      // the top decade has steps of 0.9/64, each lower one twice as many for ten times the size: 0.9·2/64 of its own size
      const size = Math.abs(value) / top;
      const decade = 10 ** Math.max(-6, Math.ceil(Math.log10(Math.max(size, 1e-7))));
      const step = (0.9 * decade) / 2 ** (6 + Math.log10(decade)) + 0.1 * decade;
      expect(Math.abs(Number(again[i]) - value)).toBeLessThanOrEqual(top * step);
      if (value === 0 || size === 1) expect(Number(again[i])).toBe(Math.fround(value));
    });
  });
});

describe("packed numbers", () => {
  it.each([1, 2, 3, 4, 5, 6, 7, 8])("of %s bits come back", async (bits) => {
    const codes = Array.from({ length: 37 }, (_, i) => (i * 7) % 2 ** bits);
    const packed = packBits(tensor(codes, [37], "i32"), bits);
    expect(packed.size).toBe(Math.ceil((37 * bits) / 8));
    expect([...(await unpackBits(packed, [37], bits).data())]).toEqual(codes);
  });

  it("stand with the lowest bit first", async () => {
    expect([...(await packBits(tensor([1, 2, 3], [3], "i32"), 3).data())]).toEqual([0b11010001, 0]);
  });

  it("refuse widths and sizes that do not fit", () => {
    expect(() => packBits(tensor([1], [1], "i32"), 9)).toThrow(/1 to 8 bits, not 9/);
    expect(() => unpackBits(tensor([1], [1], "u8"), [9], 1)).toThrow(/packed must be 2 u8/);
  });
});

describe("the largest N of M", () => {
  it("are kept in their order, with their places", async () => {
    const { values, places } = largestOfM(tensor([1, -4, 2, 3, 0, 0, -1, 5], [1, 8]), [2, 4]);
    expect([...(await values.data())]).toEqual([-4, 3, -1, 5]);
    expect([...(await unpackBits(places, [4], 2).data())]).toEqual([1, 3, 2, 3]);
  });
});
