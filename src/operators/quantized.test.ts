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
import { largestOfM, quantize, quantized, quantizeInBlocks, quantizeNf4 } from "./index.ts";

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

  it.each([256, 2048])("of %s give each number the nearest level of its block, and keep 0 and the largest", async (block) => {
    const values = sample([5000], 3).map((value, i) => Math.fround(i % 100 === 0 ? 0 : value * 10 ** -(i % 7)));
    const levels = dynamicLevels();
    const quantised = quantizeBlocks(tensor(values), levels, block);
    const [again, largest, steps] = [await dequantizeBlocks(quantised, levels, block).data(), await quantised.largest.data(), await levels.data()];
    values.forEach((value, i) => {
      const mine = values.slice(Math.floor(i / block) * block, (Math.floor(i / block) + 1) * block);
      const top = Math.max(...mine.map(Math.abs));
      expect(largest[Math.floor(i / block)]).toBe(top);
      const nearest = Math.min(...Array.from(steps as Float32Array, (level) => Math.abs(level * top - value)));
      expect(Math.abs(Number(again[i]) - value)).toBeLessThanOrEqual(nearest + top * 2 ** -24);
      // the map has 1 but no −1
      if (value === 0 || value === top) expect(Number(again[i])).toBe(value);
    });
  });

  it("have a gradient in the largest: the sum of g times the levels", async () => {
    const levels = dynamicLevels();
    const { codes, largest } = quantizeBlocks(tensor([1, 0, 2, 4, 0]), levels, 3);
    const scales = new Parameter(largest, "largest");
    const gradient = backward(sum(mul(dequantizeBlocks({ codes, largest: scales }, levels, 3), tensor([1, 2, 3, 5, 7])))).get(scales)!;
    const steps = (await levels.data()) as Float32Array;
    const near = (x: number): number => steps.reduce((best, level) => (Math.abs(level - x) < Math.abs(best - x) ? level : best));
    // the blocks are 1, 0, 2 and 4, 0: levels near 1/2, 0, 1 and 1, 0
    const expected = [near(0.5) + 3 * near(1), 5 * near(1)];
    (await gradient.data()).forEach((value, i) => expect(Number(value)).toBeCloseTo(expected[i]!, 6));
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
  it("refuse rows that M does not divide, and widths that are no power of two", () => {
    expect(() => largestOfM(tensor([1, 2, 3, 4, 5, 6], [1, 6]), [2, 4])).toThrow("2 of 4 in rows of 6");
    expect(() => largestOfM(tensor([1, 2, 3, 4, 5, 6], [1, 6]), [2, 3])).toThrow("M must be 2, 4");
  });

  it("are kept in their order, with their places", async () => {
    const { values, places } = largestOfM(tensor([1, -4, 2, 3, 0, 0, -1, 5], [1, 8]), [2, 4]);
    expect([...(await values.data())]).toEqual([-4, 3, -1, 5]);
    expect([...(await unpackBits(places, [4], 2).data())]).toEqual([1, 3, 2, 3]);
  });
});

describe("4-bit NormalFloat", () => {
  it("keeps a block of its levels, and takes .52 bytes a weight at 4096 of them and more", async () => {
    const levels = [-1, -0.6961928009986877, -0.18477343022823334, 0, 0.07958029955625534, 0.33791524171829224, 0.5626170039176941, 1];
    const w = quantizeNf4(
      tensor(
        levels.flatMap((x) => [x, -0.5250730514526367]),
        [2, 8],
      ),
      8,
    );
    const found = [...(await w.toDense().data())];
    levels.forEach((x, i) => expect([found[2 * i], found[2 * i + 1]]).toEqual([Math.fround(x), Math.fround(-0.5250730514526367)]));
    const big = quantizeNf4(tensor(sample([128, 256], 1), [128, 256]));
    expect(big.cost().bytes / (128 * 256)).toBeCloseTo(0.5 + 1 / 64 + 4 / (64 * 256), 3);
  });

  it("errs by half the widest gap of its levels at most, times the largest of the block, and keeps zeros", async () => {
    const values = sample([5, 70], 3).map((x, i) => (i % 9 === 0 ? 0 : x));
    const found = [
      ...(await quantizeNf4(tensor(values, [5, 70]))
        .toDense()
        .data()),
    ].map(Number);
    values.forEach((x, i) => {
      const block = values.slice(i - (i % 64), i - (i % 64) + 64);
      // the largest themselves are kept in 8 bits
      expect(Math.abs(found[i]! - x)).toBeLessThan(Math.max(...block.map(Math.abs)) * (0.3039 / 2 + 0.02));
      if (x === 0) expect(found[i]).toBe(0);
    });
    expect([
      ...(await quantizeNf4(tensor(new Array<number>(6).fill(0), [2, 3]))
        .toDense()
        .data()),
    ]).toEqual([0, 0, 0, 0, 0, 0]);
  });

  it("has the gradient of the matrix that it stands for", async () => {
    const w = quantizeNf4(tensor(sample([6, 10], 3), [6, 10]), 16);
    const [x, y] = [new Parameter(tensor(sample([3, 10], 5), [3, 10])), new Parameter(tensor(sample([3, 10], 5), [3, 10]))];
    const weights = tensor(sample([3, 6], 8), [3, 6]);
    const [one, other] = [backward(sum(mul(w.apply(x), weights))), backward(sum(mul(linear(y, w.toDense()), weights)))];
    expect([...(await one.get(x)!.data())]).toEqual([...(await other.get(y)!.data())]);
  });
});
