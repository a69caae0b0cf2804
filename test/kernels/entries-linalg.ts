import type { Entry } from "./draw.ts";

const column_moments: Entry = (draw) => {
  const [rows, cols] = draw.matrix();
  // squares of f32 are exact in f64, and rows are added in the reference's order
  return { kernel: "column_moments", args: [draw.output(3 * cols, "bits", "f64"), draw.reals(rows * cols, 2), rows, cols] };
};

export const linalg = { column_moments } satisfies Record<string, Entry>;
