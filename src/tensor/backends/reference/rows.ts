import type { Ints, Reals } from "./types.ts";

export function softmax(y: Reals, x: Reals, rows: number, cols: number): void {
  for (let r = 0; r < rows; r++) {
    const row = x.subarray(r * cols, (r + 1) * cols);
    const top = maximumOf(row);
    let sum = 0;
    for (let c = 0; c < cols; c++) sum += Math.exp(row[c]! - top);
    for (let c = 0; c < cols; c++) y[r * cols + c] = Math.exp(row[c]! - top) / sum;
  }
}

/** The largest element; NaN if one is NaN. */
function maximumOf(row: Reals): number {
  let top = -Infinity;
  for (const value of row) if (!(value <= top)) top = value;
  return row.some(Number.isNaN) ? NaN : top;
}

export function softmax_backward(dx: Reals, y: Reals, g: Reals, rows: number, cols: number): void {
  for (let r = 0; r < rows; r++) {
    let dot = 0;
    for (let c = 0; c < cols; c++) dot += g[r * cols + c]! * y[r * cols + c]!;
    for (let c = 0; c < cols; c++) dx[r * cols + c] = y[r * cols + c]! * (g[r * cols + c]! - dot);
  }
}

export function layer_norm(y: Reals, mean: Reals, rstd: Reals, x: Reals, w: Reals, b: Reals | null, rows: number, cols: number, eps: number): void {
  for (let r = 0; r < rows; r++) {
    const at = r * cols;
    let sum = 0;
    for (let c = 0; c < cols; c++) sum += x[at + c]!;
    const average = sum / cols;
    let squares = 0;
    for (let c = 0; c < cols; c++) squares += (x[at + c]! - average) ** 2;
    const inverse = 1 / Math.sqrt(squares / cols + eps);
    mean[r] = average;
    rstd[r] = inverse;
    for (let c = 0; c < cols; c++) y[at + c] = (x[at + c]! - average) * inverse * w[c]! + (b ? b[c]! : 0);
  }
}

export function layer_norm_backward(
  dx: Reals,
  dw: Reals | null,
  db: Reals | null,
  g: Reals,
  x: Reals,
  mean: Reals,
  rstd: Reals,
  w: Reals,
  rows: number,
  cols: number,
): void {
  const [sumW, sumB] = [new Float64Array(cols), new Float64Array(cols)];
  for (let r = 0; r < rows; r++) {
    const at = r * cols;
    let [dot, total] = [0, 0];
    for (let c = 0; c < cols; c++) {
      const normal = (x[at + c]! - mean[r]!) * rstd[r]!;
      sumW[c]! += g[at + c]! * normal;
      sumB[c]! += g[at + c]!;
      dot += g[at + c]! * w[c]! * normal;
      total += g[at + c]! * w[c]!;
    }
    for (let c = 0; c < cols; c++) {
      const normal = (x[at + c]! - mean[r]!) * rstd[r]!;
      dx[at + c] = rstd[r]! * (g[at + c]! * w[c]! - total / cols - (normal * dot) / cols);
    }
  }
  dw?.set(sumW);
  db?.set(sumB);
}

export function rms_norm(y: Reals, rstd: Reals, x: Reals, w: Reals, rows: number, cols: number, eps: number): void {
  for (let r = 0; r < rows; r++) {
    let squares = 0;
    for (let c = 0; c < cols; c++) squares += x[r * cols + c]! ** 2;
    const inverse = 1 / Math.sqrt(squares / cols + eps);
    rstd[r] = inverse;
    for (let c = 0; c < cols; c++) y[r * cols + c] = x[r * cols + c]! * inverse * w[c]!;
  }
}

export function rms_norm_backward(dx: Reals, dw: Reals | null, g: Reals, x: Reals, rstd: Reals, w: Reals, rows: number, cols: number): void {
  const sums = new Float64Array(cols);
  for (let r = 0; r < rows; r++) {
    const at = r * cols;
    let dot = 0;
    for (let c = 0; c < cols; c++) {
      const normal = x[at + c]! * rstd[r]!;
      sums[c]! += g[at + c]! * normal;
      dot += g[at + c]! * w[c]! * normal;
    }
    for (let c = 0; c < cols; c++) dx[at + c] = rstd[r]! * (g[at + c]! * w[c]! - (x[at + c]! * rstd[r]! * dot) / cols);
  }
  dw?.set(sums);
}

export function rotary(y: Reals, x: Reals, cos: Reals, sin: Reals, rows: number, seq: number, heads: number, dim: number, xRow: number, inverse: number): void {
  const half = dim / 2;
  for (let r = 0; r < rows; r++)
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < half; i++) {
        const at = (r % seq) * half + i;
        const [c, s] = [cos[at]!, inverse ? -sin[at]! : sin[at]!];
        const [a, b] = [x[r * xRow + h * dim + i]!, x[r * xRow + h * dim + i + half]!];
        y[(r * heads + h) * dim + i] = a * c - b * s;
        y[(r * heads + h) * dim + i + half] = b * c + a * s;
      }
}

export function gather_rows(out: Reals, table: Reals, ids: Ints, n: number, dim: number): void {
  for (let i = 0; i < n; i++) out.set(table.subarray(ids[i]! * dim, (ids[i]! + 1) * dim), i * dim);
}

export function scatter_add_rows(table: Reals, g: Reals, ids: Ints, n: number, dim: number): void {
  for (let i = 0; i < n; i++) for (let d = 0; d < dim; d++) table[ids[i]! * dim + d]! += g[i * dim + d]!;
}

export function cross_entropy(losses: Reals, lse: Reals, logits: Reals, targets: Ints, rows: number, cols: number): void {
  for (let r = 0; r < rows; r++) {
    const row = logits.subarray(r * cols, (r + 1) * cols);
    const top = maximumOf(row);
    let sum = 0;
    for (const value of row) sum += Math.exp(value - top);
    lse[r] = top + Math.log(sum);
    losses[r] = targets[r]! < 0 ? 0 : Math.log(sum) + (top - row[targets[r]!]!);
  }
}

export function cross_entropy_backward(dlogits: Reals, logits: Reals, lse: Reals, targets: Ints, scale: Reals, rows: number, cols: number): void {
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < cols; c++) {
      const at = r * cols + c;
      dlogits[at] = targets[r]! < 0 ? 0 : scale[r]! * (Math.exp(logits[at]! - lse[r]!) - (targets[r] === c ? 1 : 0));
    }
}
