import type { Allowed, Draw, Entry } from "./draw.ts";

const list = (n: number, value: (i: number) => number): number[] => Array.from({ length: n }, (_, i) => value(i));
const size = (n: number, stride: number, inner: number): number => (n === 0 || inner === 0 ? 0 : (n - 1) * stride + inner);

// another order of additions, and reflectors of columns that the ones before have changed
const near: Allowed = (expected) => 1e-10 * (1 + Math.abs(expected));

const householder_panel: Entry = (draw: Draw) => {
  const width = draw.large ? draw.integer(17, 40) : draw.size(17);
  const length = width + (draw.large ? draw.integer(200, 600) : draw.size(65));
  const [wRow, vRow] = [length + draw.integer(0, 5), length + draw.integer(0, 3)];
  const zero = draw.chance(0.2) ? draw.integer(0, width) : -1;
  const w = list(size(width, wRow, length), (at) => (at % wRow >= length ? NaN : Math.floor(at / wRow) === zero ? 0 : draw.number()));
  return {
    kernel: "householder_panel",
    args: [draw.inout(w, near, "f64"), draw.output(size(width, vRow, length), near, "f64"), draw.output(width * width, near, "f64"), length, width, wRow, vRow],
  };
};

/** Batches of matrices with gaps between rows and between matrices; `value` gives an entry and NaN stands in the gaps. */
function batched(batch: number, m: number, n: number, stride: number, row: number, value: (b: number, i: number, j: number) => number): number[] {
  const all = new Array<number>(batch === 0 ? 0 : (batch - 1) * stride + size(m, row, n)).fill(NaN);
  for (let b = 0; b < batch; b++) for (let i = 0; i < m; i++) for (let j = 0; j < n; j++) all[b * stride + i * row + j] = value(b, i, j);
  return all;
}

const shapes = (draw: Draw, m: number, n: number) => {
  const row = n + draw.integer(0, 3);
  return { row, stride: m * row + draw.integer(0, 4), batch: draw.large ? draw.integer(20, 40) : draw.one([0, 1, 1, 2, 3]) };
};

// what is stored is rounded in every step; the matrices are well-conditioned
const close =
  (draw: Draw): Allowed =>
  (expected) =>
    (draw.real === "f32" ? 2e-5 : 1e-13) * (1 + Math.abs(expected));

const cholesky: Entry = (draw) => {
  const n = draw.large ? draw.integer(20, 40) : draw.size(33);
  const { row, stride, batch } = shapes(draw, n, n);
  // dominant diagonals, and sometimes one that is not; what is above them must not be read
  const broken = draw.chance(0.3) ? draw.integer(0, n) : -1;
  const a = batched(batch, n, n, stride, row, (b, i, j) => (j > i ? NaN : i === j ? (i === broken && b % 2 === 0 ? draw.one([-1, 0]) : n + 1) : draw.number()));
  return { kernel: "cholesky", args: [draw.inout(a, close(draw)), draw.output(batch, "bits", "i32"), batch, n, stride, row] };
};

const triangular_solve: Entry = (draw) => {
  const n = draw.large ? draw.integer(100, 128) : draw.size(40);
  const rhs = draw.large ? draw.integer(50, 100) : draw.size(40);
  const [upper, unit, shared] = [draw.chance(0.5), draw.chance(0.3), draw.chance(0.3)];
  const { row, stride, batch } = shapes(draw, n, n);
  // rows that add up to less than the diagonal; the other triangle must not be read, nor a unit diagonal
  const entry = (i: number, j: number): number => (i === j ? (unit ? NaN : 1 + draw.next()) : j < i !== upper ? draw.number() / n : NaN);
  const a = batched(shared ? Math.min(batch, 1) : batch, n, n, stride, row, (_, i, j) => entry(i, j));
  const transposed = draw.chance(0.5);
  const across = draw.chance(0.5);
  const [bRow, bCol] = across ? [1, n + 1] : [rhs + 2, 1];
  const bBatch = across ? rhs * bCol : n * bRow;
  const b = across ? batched(batch, rhs, n, bBatch, bCol, () => draw.number()) : batched(batch, n, rhs, bBatch, bRow, () => draw.number());
  const [aRow, aCol] = transposed ? [1, row] : [row, 1];
  return {
    kernel: "triangular_solve",
    args: [
      draw.input(a),
      draw.inout(b, close(draw)),
      batch,
      n,
      rhs,
      shared ? 0 : stride,
      aRow,
      aCol,
      bBatch,
      bRow,
      bCol,
      Number(upper !== transposed),
      Number(unit),
    ],
  };
};

const lu: Entry = (draw) => {
  const [m, n] = draw.large ? [draw.integer(30, 60), draw.integer(20, 60)] : [draw.size(33), draw.size(33)];
  const { row, stride, batch } = shapes(draw, m, n);
  const places = list(m, (i) => i);
  for (let i = m - 1; i > 0; i--) {
    const j = draw.integer(0, i);
    [places[i], places[j]] = [places[j]!, places[i]!];
  }
  const zero = draw.chance(0.3) ? draw.integer(0, n) : -1;
  // one large entry a column, so that f32 and f64 choose the same pivots
  const a = batched(batch, m, n, stride, row, (_, i, j) => (j === zero ? 0 : places[i] === j ? 3 + draw.next() : draw.number(1 / Math.max(1, Math.min(m, n)))));
  return {
    kernel: "lu",
    args: [draw.inout(a, close(draw)), draw.output(batch * m, "bits", "i32"), draw.output(batch, "bits", "i32"), batch, m, n, stride, row],
  };
};

const lu_rook: Entry = (draw) => {
  const [m, n] = draw.large ? [draw.integer(60, 90), draw.integer(60, 90)] : [draw.size(33), draw.size(33)];
  const row = n + draw.integer(0, 3);
  const rank = draw.chance(0.3) ? draw.integer(0, m) : m;
  // one entry of each column stands out, and what comes after the first `rank` of them is zero
  const shift = draw.integer(0, Math.max(0, m - 1));
  const a = batched(1, m, n, 0, row, (_, i, j) => (i >= rank ? 0 : (i + shift) % m === j ? 3 + draw.next() : draw.next() / Math.max(1, m, n)));
  const allowed: Allowed = (expected) => 1e-11 * (1 + Math.abs(expected));
  return { kernel: "lu_rook", args: [draw.inout(a, allowed, "f64"), draw.output(m, "bits", "i32"), draw.output(n, "bits", "i32"), m, n, row] };
};

const pivot_order: Entry = (draw) => {
  const [n, m] = draw.large ? [draw.integer(40, 60), draw.integer(100, 200)] : [draw.size(17), draw.size(33)];
  const row = m + draw.integer(0, 3);
  const w = batched(1, n, m, 0, row, () => draw.number());
  return { kernel: "pivot_order", args: [draw.inout(w, near, "f64"), draw.output(n, "bits", "i32"), draw.output(n, near, "f64"), n, m, row] };
};

export const factor = { householder_panel, cholesky, triangular_solve, lu, lu_rook, pivot_order } satisfies Record<string, Entry>;
