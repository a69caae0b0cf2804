import { StrutError } from "../errors.ts";
import { Rng, tensor, type Tensor } from "../tensor/index.ts";

/** Images of bytes, channels first, and their labels. */
export interface LabelledImages {
  readonly count: number;
  /** Channels, height, width. */
  readonly shape: readonly [number, number, number];
  /** count × channels × height × width */
  readonly pixels: Uint8Array;
  readonly labels: Uint8Array;
}

const CIFAR_SHAPE = [3, 32, 32] as const;
const CIFAR_BYTES = 3 * 32 * 32;

/**
 * Images of the contents of CIFAR-10's binary files, in order: records of a byte of label and 3072 of red, green and blue planes.
 *
 * @example
 * const images = cifar10Images(await files.readFile("data/vision/cifar10-subset/test_batch_1000.bin"));
 */
export function cifar10Images(...contents: readonly Uint8Array[]): LabelledImages {
  const size = 1 + CIFAR_BYTES;
  contents.forEach(({ length }, i) => {
    if (length === 0 || length % size !== 0)
      throw new StrutError("data", `CIFAR-10 file ${i} has ${length} bytes, which is no whole number of records of ${size}`, {
        hint: "Expected a .bin file of the binary version of CIFAR-10.",
      });
  });
  const count = contents.reduce((sum, { length }) => sum + length / size, 0);
  const [pixels, labels] = [new Uint8Array(count * CIFAR_BYTES), new Uint8Array(count)];
  let at = 0;
  for (const [i, bytes] of contents.entries())
    for (let from = 0; from < bytes.length; from += size, at++) {
      const label = bytes[from]!;
      if (label > 9) throw new StrutError("data", `record ${from / size} of CIFAR-10 file ${i} has label ${label}; CIFAR-10 has 0…9`);
      labels[at] = label;
      pixels.set(bytes.subarray(from + 1, from + size), at * CIFAR_BYTES);
    }
  return { count, shape: CIFAR_SHAPE, pixels, labels };
}

export interface ImageBatchOptions {
  /** Images in a batch; the last of an epoch may be smaller. */
  rows: number;
  /** Per channel, on a scale of 0 to 1: pixels become (x/255 − mean)/std. */
  mean: readonly number[];
  std: readonly number[];
  /** A random order for each epoch, by this seed; without it images come as they stand. */
  shuffle?: number;
}

export interface ImageBatch {
  /** [rows, channels, height, width] */
  readonly images: Tensor;
  /** i32 [rows] */
  readonly labels: Tensor;
}

/** Batches of normalised images by number; batch k depends on k and the seed alone. */
export interface ImageBatches {
  batch(k: number): ImageBatch;
  readonly epochLength: number;
}

/**
 * Batches of normalised images and their labels.
 *
 * @example
 * const images = cifar10Images(await files.readFile("data/vision/cifar10-subset/test_batch_1000.bin"));
 * const batches = imageBatches(images, { rows: 100, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] });
 */
export function imageBatches({ count, shape, pixels, labels }: LabelledImages, { rows, mean, std, shuffle }: ImageBatchOptions): ImageBatches {
  const [channels, height, width] = shape;
  if (!(Number.isInteger(rows) && rows >= 1)) throw new StrutError("option", `rows is ${rows}; it must be a whole number of at least 1`, { path: "rows" });
  if (mean.length !== channels || std.length !== channels || !std.every((value) => value > 0))
    throw new StrutError("option", `mean [${mean}] and std [${std}] must have ${channels} numbers, and std must be above 0`);
  const plane = height * width;
  const epochLength = Math.ceil(count / rows);
  const orderOf = (epoch: number): Int32Array | undefined => (shuffle === undefined ? undefined : new Rng(shuffle).fork(`images/${epoch}`).permutation(count));
  return {
    epochLength,
    batch(k) {
      const order = orderOf(Math.floor(k / epochLength));
      const start = (k % epochLength) * rows;
      const chosen = Array.from({ length: Math.min(rows, count - start) }, (_, i) => order?.[start + i] ?? start + i);
      const values = new Float32Array(chosen.length * channels * plane);
      chosen.forEach((image, row) => {
        for (let c = 0; c < channels; c++) {
          const [from, to] = [(image * channels + c) * plane, (row * channels + c) * plane];
          for (let i = 0; i < plane; i++) values[to + i] = (pixels[from + i]! / 255 - mean[c]!) / std[c]!;
        }
      });
      return {
        images: tensor(values, [chosen.length, channels, height, width]),
        labels: tensor(
          chosen.map((image) => labels[image]!),
          [chosen.length],
          "i32",
        ),
      };
    },
  };
}
