import type { Entry } from "./draw.ts";

const column_moments: Entry = (draw) => {
  const [rows, cols] = draw.matrix();
  // squares of f32 are exact in f64, and rows are added in the reference's order
  return { kernel: "column_moments", args: [draw.output(3 * cols, "bits", "f64"), draw.reals(rows * cols, 2), rows, cols] };
};

const widen_rows: Entry = (draw) => {
  const [rows, cols] = draw.matrix();
  const [stride, add] = [cols + draw.size(9), draw.integer(0, 1)];
  const y = draw.strided([rows, cols], [stride, 1]);
  return { kernel: "widen_rows", args: [draw.inout(y, "bits", "f64"), draw.reals(rows * cols), rows, cols, stride, add] };
};

export const moments = { column_moments, widen_rows } satisfies Record<string, Entry>;
