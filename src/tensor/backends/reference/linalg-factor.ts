import type { Ints, Reals } from "./types.ts";

type Doubles = Float64Array;

/** One reflector after the other, each applied to all columns that follow. */
export function householder_panel(w: Doubles, v: Doubles, t: Doubles, length: number, width: number, wRow: number, vRow: number): void {
  t.fill(0, 0, width * width);
  for (let j = 0; j < width; j++) {
    const x = w.subarray(j * wRow, j * wRow + length);
    const own = v.subarray(j * vRow, j * vRow + length).fill(0);
    own[j] = 1;
    let rest = 0;
    for (let i = j + 1; i < length; i++) rest += x[i]! ** 2;
    let tau = 0;
    if (!(rest < 1e-280)) {
      const beta = Math.sqrt(x[j]! ** 2 + rest) * (x[j]! < 0 || Object.is(x[j], -0) ? 1 : -1);
      for (let i = j + 1; i < length; i++) own[i] = x[i]! / (x[j]! - beta);
      tau = (beta - x[j]!) / beta;
      x[j] = beta;
    }
    x.fill(0, j + 1);
    for (let c = j + 1; c < width; c++) {
      let dot = 0;
      for (let i = j; i < length; i++) dot += own[i]! * w[c * wRow + i]!;
      for (let i = j; i < length; i++) w[c * wRow + i]! -= tau * dot * own[i]!;
    }
    const dots = Array.from({ length: j }, (_, k) => own.reduce((sum, value, i) => sum + value * v[k * vRow + i]!, 0));
    for (let i = 0; i < j; i++) for (let k = i; k < j; k++) t[i * width + j]! -= tau * t[i * width + k]! * dots[k]!;
    t[j * width + j] = tau;
  }
}

export function cholesky(a: Reals, info: Ints, batch: number, n: number, aBatch: number, aRow: number): void {
  for (let b = 0; b < batch; b++) {
    const at = (i: number, j: number): number => b * aBatch + i * aRow + j;
    info[b] = 0;
    for (let i = 0; i < n && info[b] === 0; i++) {
      for (let j = 0; j <= i; j++) {
        let sum = a[at(i, j)]!;
        for (let k = 0; k < j; k++) sum -= a[at(i, k)]! * a[at(j, k)]!;
        if (j < i) a[at(i, j)] = sum / a[at(j, j)]!;
        else if (sum > 0 && sum < Infinity) a[at(i, i)] = Math.sqrt(sum);
        else info[b] = i + 1;
      }
      for (let j = i + 1; j < n; j++) a[at(i, j)] = 0;
    }
  }
}

// prettier-ignore
export function triangular_solve(a: Reals, b: Reals, batch: number, n: number, rhs: number, aBatch: number, aRow: number, aCol: number,
  bBatch: number, bRow: number, bCol: number, upper: number, unit: number): void {
  for (let entry = 0; entry < batch; entry++)
    for (let c = 0; c < rhs; c++) {
      const x = new Float64Array(n);
      for (let step = 0; step < n; step++) {
        const i = upper ? n - 1 - step : step;
        x[i] = b[entry * bBatch + i * bRow + c * bCol]!;
        for (let k = 0; k < n; k++) if (upper ? k > i : k < i) x[i]! -= a[entry * aBatch + i * aRow + k * aCol]! * x[k]!;
        if (!unit) x[i]! /= a[entry * aBatch + i * (aRow + aCol)]!;
      }
      for (let i = 0; i < n; i++) b[entry * bBatch + i * bRow + c * bCol] = x[i]!;
    }
}

export function lu(a: Reals, order: Ints, info: Ints, batch: number, m: number, n: number, aBatch: number, aRow: number): void {
  for (let b = 0; b < batch; b++) {
    const at = (i: number, j: number): number => b * aBatch + i * aRow + j;
    const rows = Array.from({ length: m }, (_, i) => i);
    info[b] = 0;
    for (let k = 0; k < Math.min(m, n); k++) {
      let best = k;
      for (let i = k + 1; i < m; i++) if (Math.abs(a[at(i, k)]!) > Math.abs(a[at(best, k)]!)) best = i;
      for (let j = 0; j < n; j++) [a[at(k, j)], a[at(best, j)]] = [a[at(best, j)]!, a[at(k, j)]!];
      [rows[k], rows[best]] = [rows[best]!, rows[k]!];
      const pivot = a[at(k, k)]!;
      if (pivot === 0 || !Number.isFinite(pivot)) {
        info[b] ||= k + 1;
        continue;
      }
      for (let i = k + 1; i < m; i++) {
        a[at(i, k)]! /= pivot;
        for (let j = k + 1; j < n; j++) a[at(i, j)]! -= a[at(i, k)]! * a[at(k, j)]!;
      }
    }
    order.set(rows, b * m);
  }
}

export function lu_rook(a: Doubles, rows: Ints, columns: Ints, m: number, n: number, aRow: number): void {
  for (let i = 0; i < m; i++) rows[i] = i;
  for (let j = 0; j < n; j++) columns[j] = j;
  const size = (i: number, j: number): number => Math.abs(a[i * aRow + j]!);
  for (let k = 0; k < Math.min(m, n); k++) {
    let [row, column] = [k, k];
    const down = (): number => {
      for (let i = k; i < m; i++) if (size(i, column) > size(row, column)) row = i;
      return size(row, column);
    };
    while (column < n && down() === 0) column++;
    if (column === n) return;
    for (let before = -1; before !== row;) {
      before = row;
      for (let j = k; j < n; j++) if (size(row, j) > size(row, column)) column = j;
      down();
    }
    for (let j = 0; j < n; j++) [a[k * aRow + j], a[row * aRow + j]] = [a[row * aRow + j]!, a[k * aRow + j]!];
    for (let i = 0; i < m; i++) [a[i * aRow + k], a[i * aRow + column]] = [a[i * aRow + column]!, a[i * aRow + k]!];
    [rows[k], rows[row]] = [rows[row]!, rows[k]!];
    [columns[k], columns[column]] = [columns[column]!, columns[k]!];
    for (let i = k + 1; i < m; i++) {
      a[i * aRow + k]! /= a[k * aRow + k]!;
      for (let j = k + 1; j < n; j++) a[i * aRow + j]! -= a[i * aRow + k]! * a[k * aRow + j]!;
    }
  }
}

export function pivot_order(w: Doubles, order: Ints, norms: Doubles, n: number, m: number, wRow: number): void {
  const squares = (c: number, from: number): number => w.subarray(c * wRow + from, c * wRow + m).reduce((sum, x) => sum + x * x, 0);
  for (let c = 0; c < n; c++) [order[c], norms[c]] = [c, squares(c, 0)];
  for (let k = 0; k < Math.min(m, n); k++) {
    let best = k;
    for (let c = k; c < n; c++) if (norms[c]! > norms[best]!) best = c;
    for (let i = 0; i < m; i++) [w[k * wRow + i], w[best * wRow + i]] = [w[best * wRow + i]!, w[k * wRow + i]!];
    [norms[k], norms[best]] = [norms[best]!, norms[k]!];
    [order[k], order[best]] = [order[best]!, order[k]!];
    if (!(norms[k]! > 1e-280)) return;
    const v = w.subarray(k * wRow, k * wRow + m);
    const length = Math.sqrt(norms[k]!);
    v[k]! += (v[k]! < 0 ? -1 : 1) * length;
    const scale = Math.sqrt(2 / squares(k, k));
    for (let i = k; i < m; i++) v[i]! *= scale;
    for (let c = k + 1; c < n; c++) {
      let dot = 0;
      for (let i = k; i < m; i++) dot += v[i]! * w[c * wRow + i]!;
      for (let i = k; i < m; i++) w[c * wRow + i]! -= dot * v[i]!;
      norms[c] = squares(c, k + 1);
    }
  }
}
