import { StrutError } from "../errors.ts";
import { kernels } from "../tensor/engine.ts";
import { empty, engine, keep, scope, slice, tensor, type Rng, type Tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";

/** Rows that are widened to f64 together, and columns of a panel of the Gram matrix. */
const [ROWS, PANEL] = [512, 256];

/** Which sums over rows are kept. */
export interface Moments {
  /** Products of f32 rows in f64; or in f32, some hundred rows at a time, which takes half the time and errs by some 1e-6 of its size. */
  readonly gram?: "f64" | "f32" | undefined;
  readonly sums: boolean;
  /** Rows kept whole. */
  readonly sample?: { readonly rows: number; readonly draw?: Rng };
}

type Place = Pick<Tensor, "dtype" | "block" | "offset">;
const at = (x: Tensor, offset: number): Place => ({ dtype: x.dtype, block: x.block, offset: x.offset + offset });

/**
 * gram (f64) = xᵀ·x, or += if `add`, for x [rows, n]; only the panels on and above the diagonal are written. Where x is f32,
 * each panel is an f32 product of these rows, added in f64.
 */
function addGram(gram: Tensor, x: Tensor, add: boolean): void {
  const [rows, n] = x.shape as [number, number];
  for (let i = 0; i < n; i += PANEL) {
    const [m, cols] = [Math.min(PANEL, n - i), n - i];
    const product = (beta: number, out: Place, row: number): void =>
      kernels().gemm(1, m, cols, rows, 1, at(x, i), 0, 1, n, at(x, i), 0, n, 1, beta, out, 0, row, null, engine().scratch);
    if (x.dtype === "f64") product(Number(add), at(gram, i * n + i), n);
    else
      scope(() => {
        const panel = empty([m, cols]);
        product(0, panel, cols);
        kernels().widen_rows(at(gram, i * n + i), panel, m, cols, n, Number(add));
      });
  }
}

/** A contiguous x as f64. */
export function widened(x: Tensor): Tensor {
  if (x.dtype === "f64") return x;
  const out = empty(x.shape, "f64");
  kernels().widen_rows(out, x, 1, x.size, x.size, 0);
  return out;
}

/** Visits a contiguous matrix some hundred rows at a time. */
export function inChunks(x: Tensor, visit: (chunk: Tensor, from: number) => void): void {
  for (let from = 0; from < x.shape[0]!; from += ROWS) scope(() => visit(slice(x, 0, from, Math.min(x.shape[0]!, from + ROWS)), from));
}

/** Sums over the rows of a matrix that comes in pieces, in f64; its memory does not grow with the rows. */
export class RowMoments {
  rows = 0;
  readonly #width: number;
  readonly #wanted: Moments;
  readonly #gram: Tensor | undefined;
  /** Σx, Σ|x| and Σx², one row each. */
  readonly #sums: Float64Array | undefined;
  #sample: Tensor | undefined;

  constructor(width: number, wanted: Moments) {
    this.#width = width;
    this.#wanted = wanted;
    if (wanted.gram) this.#gram = keep(empty([width, width], "f64"));
    if (wanted.sums) this.#sums = new Float64Array(3 * width);
  }

  /** x [rows, width], contiguous. */
  add(x: Tensor): void {
    const [rows, width] = x.shape as [number, number];
    if (this.#gram) inChunks(x, (chunk, from) => addGram(this.#gram!, this.#wanted.gram === "f64" ? widened(chunk) : chunk, this.rows + from > 0));
    if (this.#sums)
      scope(() => {
        const sums = empty([3, width], "f64");
        kernels().column_moments(sums, x, rows, width);
        (hostView(sums) as Float64Array).forEach((value, i) => (this.#sums![i]! += value));
      });
    if (this.#wanted.sample) this.#keepRows(x);
    this.rows += rows;
  }

  /** The first rows, or each row with the same chance (Vitter's algorithm R). */
  #keepRows(x: Tensor): void {
    const { rows: most, draw } = this.#wanted.sample!;
    this.#sample ??= keep(empty([most, this.#width], x.dtype));
    const [to, from] = [hostView(this.#sample) as Float32Array, hostView(x) as Float32Array];
    for (let r = 0; r < x.shape[0]!; r++) {
      const seen = this.rows + r;
      const place = seen < most ? seen : draw ? draw.integer(seen + 1) : most;
      if (place < most) to.set(from.subarray(r * this.#width, (r + 1) * this.#width), place * this.#width);
    }
  }

  /** Σ xᵀx, whole. */
  gram(): Tensor {
    const values = hostView(this.#gram!) as Float64Array;
    const n = this.#width;
    const B = 64;
    for (let i = 0; i < n; i += B)
      for (let j = 0; j <= i; j += B)
        for (let r = i; r < Math.min(n, i + B); r++) for (let c = j; c < Math.min(r, j + B); c++) values[r * n + c] = values[c * n + r]!;
    return this.#gram!;
  }

  mean = (): Tensor => this.#column(0, (sum) => sum / this.rows);
  absMean = (): Tensor => this.#column(1, (sum) => sum / this.rows);
  norm = (): Tensor => this.#column(2, Math.sqrt);

  #column(row: number, f: (x: number) => number): Tensor {
    return keep(tensor(this.#sums!.subarray(row * this.#width, (row + 1) * this.#width).map(f), [this.#width], "f64"));
  }

  /** The rows kept, at most as many as came. */
  sample(): Tensor {
    return slice(this.#sample!, 0, 0, Math.min(this.rows, this.#sample!.shape[0]!));
  }

  /** Refuses numbers that are no longer numbers. */
  check(what: string): void {
    const n = this.#width;
    const [values, from, step] = this.#sums ? [this.#sums, 2 * n, 1] : this.#gram ? [hostView(this.#gram) as Float64Array, 0, n + 1] : [[], 0, 0];
    for (let i = 0; i < n && values.length > 0; i++)
      if (!Number.isFinite(values[from + i * step]))
        throw new StrutError("diverged", `${what} is not finite, so it has no statistics`, { hint: "Check the model's weights for NaN or infinity." });
  }
}
