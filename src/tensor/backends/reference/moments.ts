import type { Reals } from "./types.ts";

export function column_moments(out: Float64Array<ArrayBufferLike>, x: Reals, rows: number, cols: number): void {
  for (let c = 0; c < cols; c++) {
    let [sum, size, square] = [0, 0, 0];
    for (let r = 0; r < rows; r++) {
      const value = x[r * cols + c]!;
      sum += value;
      size += Math.abs(value);
      square += value * value;
    }
    out[c] = sum;
    out[cols + c] = size;
    out[2 * cols + c] = square;
  }
}

export function widen_rows(y: Float64Array<ArrayBufferLike>, x: Float32Array<ArrayBufferLike>, rows: number, cols: number, stride: number, add: number): void {
  for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) y[r * stride + c] = add ? y[r * stride + c]! + x[r * cols + c]! : x[r * cols + c]!;
}
