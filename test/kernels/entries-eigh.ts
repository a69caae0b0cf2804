import type { Allowed, Draw, Entry, Piece } from "./draw.ts";

const doubles = (draw: Draw, role: Piece["role"], values: readonly number[], allowed: Allowed): Piece => ({
  dtype: "f64",
  values: Float64Array.from(values),
  role,
  offset: draw.integer(0, 9),
  allowed,
});
const fresh = (draw: Draw, n: number, allowed: Allowed): Piece => doubles(draw, "out", new Array<number>(n).fill(0), allowed);
const real = (draw: Draw): number => draw.next() * 2 - 1;
const list = (n: number, value: (i: number) => number): number[] => Array.from({ length: n }, (_, i) => value(i));

// another order of additions, and reflectors of columns that the ones before have changed
const near: Allowed = (expected) => 1e-11 * (1 + Math.abs(expected));

const tridiagonal_panel: Entry = (draw) => {
  const n = draw.large ? draw.integer(150, 260) : draw.one([1, 2, 3, 4, 5, 8, 17, 21, 33, 40, 70]);
  const from = draw.integer(0, n - 1);
  const width = Math.min(n - from, draw.integer(1, 12));
  const zeros = draw.chance(0.2);
  // the lower triangle must not be read
  const a = list(n * n, (at) => (at % n < Math.floor(at / n) ? NaN : zeros && draw.chance(0.7) ? 0 : real(draw)));
  return {
    kernel: "tridiagonal_panel",
    args: [
      doubles(draw, "inout", a, near),
      fresh(draw, 3 * width * n, near),
      ...list(3, () => n).map((size) => fresh(draw, size, near)),
      n,
      from,
      width,
      "scratch",
    ],
  };
};

const tridiagonal_ql: Entry = (draw) => {
  const n = draw.large ? draw.integer(200, 400) : draw.size(65);
  const block = draw.large ? draw.integer(16, 40) : draw.integer(1, 20);
  const vectors = draw.chance(0.7);
  const qRow = n + draw.integer(0, 3);
  // eigenvalues about as far apart as their number allows
  const d = list(n, (i) => (i % 7) + 0.3 * real(draw));
  const e = list(n, () => (draw.chance(0.1) ? 0 : real(draw)));
  const allowed: Allowed = () => 1e-9;
  return {
    kernel: "tridiagonal_ql",
    args: [
      doubles(draw, "inout", d, allowed),
      doubles(draw, "inout", e, allowed),
      vectors ? fresh(draw, n === 0 ? 0 : (n - 1) * qRow + n, allowed) : null,
      n,
      block,
      qRow,
    ],
  };
};

const secular: Entry = (draw) => {
  const k = draw.large ? draw.integer(150, 300) : draw.size(70);
  const qRow = k + draw.integer(0, 3);
  let pole = real(draw);
  const d = list(k, () => (pole += draw.one([1, 1, 1, 1e-4, 1e-8]) * (0.1 + draw.next())));
  const z = list(k, () => draw.one([1, 1, 0.1, 1e-3, 1e-6]) * (draw.chance(0.5) ? 1 : -1) * (0.2 + draw.next()));
  const order = list(k, (i) => i).sort(() => draw.next() - 0.5);
  const place: Piece = { dtype: "i32", values: Int32Array.from(order), role: "in", offset: 0, allowed: "bits" };
  const close: Allowed = () => 1e-10;
  return {
    kernel: "secular",
    args: [
      fresh(draw, k, (expected) => 1e-13 * (1 + Math.abs(expected))),
      fresh(draw, k === 0 ? 0 : (k - 1) * qRow + k, close),
      doubles(draw, "in", d, "bits"),
      doubles(draw, "in", z, "bits"),
      place,
      k,
      qRow,
      "scratch",
    ],
  };
};

const jacobi_sweep: Entry = (draw) => {
  // rows that depend on each other would end as rounding
  const n = draw.large ? draw.integer(40, 70) : draw.integer(1, 13);
  const m = 2 * n + draw.integer(0, 20);
  const zero = draw.chance(0.3) ? draw.integer(0, n - 1) : -1;
  const g = list(n * m, (at) => (Math.floor(at / m) === zero ? 0 : real(draw)));
  const allowed: Allowed = () => 1e-9;
  return {
    kernel: "jacobi_sweep",
    args: [
      doubles(draw, "inout", g, allowed),
      doubles(
        draw,
        "inout",
        list(n * n, () => real(draw)),
        allowed,
      ),
      fresh(draw, Math.ceil(n / 2), allowed),
      n,
      m,
      1e-13,
    ],
  };
};

export const eigh = { jacobi_sweep, tridiagonal_panel, tridiagonal_ql, secular };
