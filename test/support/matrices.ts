import { engine, start, stop, tensor, type Tensor } from "../../src/tensor/index.ts";
import { sample } from "./gradients.ts";

/** A matrix in plain numbers, row-major. */
export interface Plain {
  rows: number;
  cols: number;
  values: Float64Array;
}

export const plain = (rows: number, cols: number, value: (i: number, j: number) => number): Plain => ({
  rows,
  cols,
  values: Float64Array.from({ length: rows * cols }, (_, at) => value(Math.floor(at / cols), at % cols)),
});

export const transposed = (a: Plain): Plain => plain(a.cols, a.rows, (i, j) => a.values[j * a.cols + i]!);

export function product(a: Plain, b: Plain): Plain {
  return plain(a.rows, b.cols, (i, j) => {
    let sum = 0;
    for (let k = 0; k < a.cols; k++) sum += a.values[i * a.cols + k]! * b.values[k * b.cols + j]!;
    return sum;
  });
}

/** The first `cols` columns of a product of random reflections: orthonormal to rounding. */
export function orthogonal(rows: number, cols: number, seed: number): Plain {
  const q = plain(rows, cols, (i, j) => (i === j ? 1 : 0));
  for (let step = 0; step < 3; step++) {
    const v = sample([rows], seed * 31 + step);
    const norm = v.reduce((sum, x) => sum + x * x, 0);
    for (let j = 0; j < cols; j++) {
      let dot = 0;
      for (let i = 0; i < rows; i++) dot += v[i]! * q.values[i * cols + j]!;
      for (let i = 0; i < rows; i++) q.values[i * cols + j]! -= ((2 * dot) / norm) * v[i]!;
    }
  }
  return q;
}

/** Q₁·diag(s)·Q₂ᵀ, whose singular values are |s|. */
export function withSingularValues(rows: number, cols: number, s: readonly number[], seed = 1): Plain {
  const left = orthogonal(rows, s.length, seed);
  const scaled = plain(rows, s.length, (i, j) => left.values[i * s.length + j]! * s[j]!);
  return product(scaled, transposed(orthogonal(cols, s.length, seed + 7)));
}

/** Entries between −scale and scale, of the extents alone. */
export function randomMatrix(rows: number, cols: number, scale = 1): Plain {
  const values = sample([rows, cols], rows * 100 + cols, scale);
  return plain(rows, cols, (i, j) => values[i * cols + j]!);
}

/** Q·diag(values)·Qᵀ */
export function symmetric(values: readonly number[], seed = 1): Plain {
  const n = values.length;
  const q = orthogonal(n, n, seed);
  return product(
    plain(n, n, (i, j) => q.values[i * n + j]! * values[j]!),
    transposed(q),
  );
}

/** The largest magnitude. */
export const top = (a: Plain): number => a.values.reduce((most, x) => Math.max(most, Math.abs(x)), 0);

/** Twice the relative error of one rounding. */
export const rounding = { f32: 2 ** -23, f64: 2 ** -52 };

export const toTensor = (a: Plain, dtype: "f32" | "f64" = "f64"): Tensor => tensor(a.values, [a.rows, a.cols], dtype);

export async function fromTensor(x: Tensor): Promise<Plain> {
  const values = Float64Array.from((await x.data()) as Float64Array);
  return { rows: x.shape[0]!, cols: x.shape[1] ?? 1, values };
}

/** max |a − b| */
export const distance = (a: Plain, b: Plain): number => a.values.reduce((most, x, i) => Math.max(most, Math.abs(x - b.values[i]!)), 0);

/** max |QᵀQ − I| */
export const defect = (q: Plain): number =>
  distance(
    product(transposed(q), q),
    plain(q.cols, q.cols, (i, j) => (i === j ? 1 : 0)),
  );

/** Runs `body` on every backend that this machine has, and on the one the tests were started with afterwards. */
export async function onEveryBackend(body: (backend: string) => Promise<void>): Promise<void> {
  await start();
  const usual = engine().backend.name;
  try {
    for (const backend of new Set([usual, "wasm", "reference"] as const)) {
      stop();
      await start({ backend });
      await body(backend);
    }
  } finally {
    stop();
    await start({ backend: usual });
  }
}
