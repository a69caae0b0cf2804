import type { Draw, Entry } from "./draw.ts";
import { U } from "./entries-elementwise.ts";

/** Elements a row of a sparse matrix of rows×cols. */
function pattern(draw: Draw): { rows: number; cols: number; dim: number; columns: number[]; pointers: number[] } {
  const [rows, cols, dim] = draw.large
    ? [draw.integer(200, 300), draw.integer(40, 80), draw.integer(100, 300)]
    : [draw.size(65), draw.integer(1, 20), draw.size()];
  const pointers = [0];
  for (let r = 0; r < rows; r++) pointers.push(pointers[r]! + draw.one([0, 1, 2, draw.integer(0, 9)]));
  return { rows, cols, dim, columns: Array.from({ length: pointers[rows]! }, () => draw.integer(0, cols - 1)), pointers };
}

const csr_product: Entry = (draw) => {
  const { rows, cols, dim, columns, pointers } = pattern(draw);
  const count = columns.length;
  const order = columns.map((_, k) => count - 1 - k);
  const ordered = draw.chance(0.4);
  const [values, x] = [draw.numbers(count), draw.numbers(cols * dim)];
  const allowed = (_: number, i: number): number => {
    const [r, j] = [Math.floor(i / dim), i % dim];
    let size = 0;
    for (let k = pointers[r]!; k < pointers[r + 1]!; k++) size += Math.abs(values[ordered ? order[k]! : k]! * x[columns[k]! * dim + j]!);
    return (pointers[r + 1]! - pointers[r]! + 1) * U * size;
  };
  return {
    kernel: "csr_product",
    args: [
      draw.output(rows * dim, allowed),
      draw.input(values),
      ordered ? draw.integers(order) : null,
      draw.integers(columns),
      draw.integers(pointers),
      draw.input(x),
      rows,
      cols,
      count,
      dim,
    ],
  };
};

const sampled_product: Entry = (draw) => {
  const [count, dim, aRows, bRows] = draw.large
    ? [draw.integer(3000, 5000), draw.integer(20, 100), 30, 20]
    : [draw.size(65), draw.size(), draw.integer(1, 9), 7];
  const [a, b] = [draw.numbers(aRows * dim), draw.numbers(bRows * dim)];
  const [rows, columns] = [Array.from({ length: count }, () => draw.integer(0, aRows - 1)), Array.from({ length: count }, () => draw.integer(0, bRows - 1))];
  const allowed = (_: number, k: number): number => {
    let size = 0;
    for (let j = 0; j < dim; j++) size += Math.abs(a[rows[k]! * dim + j]! * b[columns[k]! * dim + j]!);
    return (dim + 1) * U * size;
  };
  return {
    kernel: "sampled_product",
    args: [draw.output(count, allowed), draw.integers(rows), draw.integers(columns), draw.input(a), draw.input(b), count, aRows, bRows, dim],
  };
};

const bytes = (draw: Draw, n: number): number[] => Array.from({ length: n }, () => draw.integer(0, 255));

const pack_bits: Entry = (draw) => {
  const [count, bits] = [draw.count(), draw.integer(1, 8)];
  const codes = Array.from({ length: count }, () => draw.integer(-3, 2 ** bits));
  return { kernel: "pack_bits", args: [draw.output(Math.ceil((count * bits) / 8), "bits", "u8"), draw.integers(codes), count, bits] };
};

const unpack_bits: Entry = (draw) => {
  const [count, bits] = [draw.count(), draw.integer(1, 8)];
  return { kernel: "unpack_bits", args: [draw.output(count, "bits", "i32"), draw.bytes(bytes(draw, Math.ceil((count * bits) / 8))), count, bits] };
};

/** rows, cols, group, bits and whether a group keeps the code of 0. */
function groups(draw: Draw): { shape: [number, number, number, number]; scales: number; packed: number; shifted: boolean } {
  const shifted = draw.chance(0.5);
  const [rows, cols] = draw.matrix();
  const [group, bits] = [draw.one([1, 3, 32, 64, 1000]), draw.integer(shifted ? 1 : 2, 8)];
  return { shape: [rows, cols, group, bits], scales: rows * Math.ceil(cols / group), packed: rows * Math.ceil((cols * bits) / 8), shifted };
}

const quantize_groups: Entry = (draw) => {
  const { shape, scales, packed, shifted } = groups(draw);
  const x = draw.input(draw.numbers(shape[0] * shape[1], draw.one([1, 1e-3, 1e10])));
  return {
    kernel: "quantize_groups",
    args: [draw.output(packed, "bits", "u8"), draw.output(scales, "bits", "f32"), shifted ? draw.output(scales, "bits", "u8") : null, x, ...shape],
  };
};

const dequantize_groups: Entry = (draw) => {
  const { shape, scales, packed, shifted } = groups(draw);
  return {
    kernel: "dequantize_groups",
    args: [
      draw.output(shape[0] * shape[1], "bits", "f32"),
      draw.bytes(bytes(draw, packed)),
      draw.reals(scales),
      shifted ? draw.bytes(bytes(draw, scales)) : null,
      ...shape,
    ],
  };
};

const levels = (draw: Draw): number[] => Array.from({ length: 256 }, () => Math.fround(draw.next() * 2 - 1)).sort((a, b) => a - b);

const quantize_blocks: Entry = (draw) => {
  const [count, block] = [draw.count(), draw.one([1, 7, 256, 2048])];
  const book = levels(draw);
  return {
    kernel: "quantize_blocks",
    args: [
      draw.output(count, "bits", "u8"),
      draw.output(Math.ceil(count / block), "bits", "f32"),
      draw.reals(count, draw.one([1, 1e-4])),
      draw.input(book),
      count,
      block,
    ],
  };
};

const dequantize_blocks: Entry = (draw) => {
  const [count, block] = [draw.count(), draw.one([1, 7, 256, 2048])];
  return {
    kernel: "dequantize_blocks",
    args: [draw.output(count, "bits", "f32"), draw.bytes(bytes(draw, count)), draw.reals(Math.ceil(count / block)), draw.input(levels(draw)), count, block],
  };
};

export const sparse = {
  csr_product,
  sampled_product,
  pack_bits,
  unpack_bits,
  quantize_groups,
  dequantize_groups,
  quantize_blocks,
  dequantize_blocks,
} satisfies Record<string, Entry>;
