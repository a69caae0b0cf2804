import { beforeAll, describe, expect, it } from "vitest";
import { start } from "../tensor/index.ts";
import { cifar10Images, imageBatches } from "./index.ts";

beforeAll(() => start());

/** A record whose pixels are its label in red, 100 in green and 200 in blue. */
const record = (label: number): Uint8Array => Uint8Array.from({ length: 3073 }, (_, i) => (i <= 1024 ? label : i <= 2048 ? 100 : 200));

const file = (...labels: number[]): Uint8Array => Buffer.concat(labels.map(record));

describe("CIFAR records", () => {
  it("give labels and planes, of several files in order", () => {
    const images = cifar10Images(file(3, 7), file(9));
    expect([images.count, ...images.labels]).toEqual([3, 3, 7, 9]);
    expect([images.pixels[3072], images.pixels[3072 + 1024], images.pixels[2 * 3072 + 2048], images.pixels[2 * 3072 + 1023]]).toEqual([7, 100, 200, 9]);
  });

  it("say what is wrong with a file", () => {
    expect(() => cifar10Images(file(1), new Uint8Array(3000))).toThrow("file 1 has 3000 bytes, which is no whole number of records of 3073");
    expect(() => cifar10Images(file(1, 12))).toThrow("record 1 of CIFAR-10 file 0 has label 12");
  });
});

describe("image batches", () => {
  const options = { rows: 2, mean: [0, 0.5, 0.2], std: [1, 0.5, 0.1] };

  it("are normalised by channel, the last one smaller", async () => {
    const batches = imageBatches(cifar10Images(file(1, 2, 5)), options);
    expect(batches.epochLength).toBe(2);
    const { images, labels } = batches.batch(1);
    expect(images.shape).toEqual([1, 3, 32, 32]);
    expect([...(await labels.data())]).toEqual([5]);
    const values = await images.data();
    [5 / 255, (100 / 255 - 0.5) / 0.5, (200 / 255 - 0.2) / 0.1].forEach((expected, c) => expect(Math.abs(Number(values[c * 1024]) - expected)).toBeLessThan(1e-6));
  });

  it("show every image once an epoch, in an order of the seed and the epoch alone", async () => {
    const data = cifar10Images(file(0, 1, 2, 3, 4, 5, 6, 7, 8, 9));
    const epoch = async (seed: number, from: number): Promise<number[]> => {
      const batches = imageBatches(data, { ...options, rows: 4, shuffle: seed });
      const found: number[] = [];
      for (let k = from; k < from + 3; k++) found.push(...Array.from(await batches.batch(k).labels.data(), Number));
      return found;
    };
    expect((await epoch(1, 0)).sort()).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(await epoch(1, 3)).toEqual(await epoch(1, 3));
    expect(await epoch(1, 3)).not.toEqual(await epoch(1, 0));
    expect(await epoch(2, 0)).not.toEqual(await epoch(1, 0));
  });

  it("refuse statistics that do not fit", () => {
    const data = cifar10Images(file(0));
    expect(() => imageBatches(data, { ...options, std: [1, 1, 0] })).toThrow("std must be above 0");
    expect(() => imageBatches(data, { ...options, rows: 0 })).toThrow("rows is 0");
  });
});
