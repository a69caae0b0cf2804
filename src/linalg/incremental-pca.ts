import { StrutError } from "../errors.ts";
import { transpose } from "../tensor/ops/shape.ts";
import { Rng } from "../tensor/rng.ts";
import { scope } from "../tensor/scope.ts";
import { hostNumbers, tensor, type Tensor } from "../tensor/tensor.ts";
import { extents } from "./numbers.ts";
import { randomizedSvd } from "./randomized-svd.ts";
import { svd } from "./svd.ts";

/** Principal components of rows that come in pieces. */
export interface Pca {
  /** Orthonormal rows [k, n], largest variance first; the entry of largest magnitude of each is positive. */
  readonly components: Float64Array;
  readonly singularValues: Float64Array;
  /** The share of Σ‖x − mean‖² that each component holds. */
  readonly ratios: Float64Array;
  /** Of all rows so far; 0 where nothing is subtracted. */
  readonly mean: Float64Array;
  readonly rows: number;
  /** Σ‖x − mean‖² */
  readonly energy: number;
}

export interface IncrementalPcaOptions {
  /** How many are kept: at most the rows of each piece, and their features. */
  components: number;
  /** Subtract the mean, which makes them principal components; else they are singular vectors of the rows. Defaults to true. */
  center?: boolean;
  /** randomized has four passes over twice as many directions; defaults to exact. */
  method?: "exact" | "randomized";
}

/**
 * Takes more rows x [rows, n] into principal components: the leading right singular vectors of [σ ⊙ components; x − x̄; √(m·rows/(m + rows))·(mean − x̄)]
 * with x̄ the mean of these rows and m the number of those before. Exact as long as all rows fit into the first piece, or as many components
 * are kept as the rows have. Ross, Lim, Lin & Yang 2008, doi:10.1007/s11263-007-0075-7.
 *
 * @example
 * const first = await incrementalPca(undefined, new Rng(1).normal([32, 8], 1), { components: 2 });
 * const { ratios } = await incrementalPca(first, new Rng(2).normal([32, 8], 1), { components: 2 });
 */
export async function incrementalPca(
  before: Pca | undefined,
  x: Tensor,
  { components: k, center = true, method = "exact" }: IncrementalPcaOptions,
): Promise<Pca> {
  const [rows, n] = extents(x, "incrementalPca");
  if (!Number.isInteger(k) || k < 1 || k > Math.min(rows, n))
    throw new StrutError("range", `incrementalPca: ${rows} rows of ${n} features cannot give ${k} components`, { hint: "Give more rows, or ask for fewer." });
  const values = hostNumbers(x) as Float64Array;
  const own = new Float64Array(n);
  if (center) for (let at = 0; at < rows * n; at++) own[at % n]! += values[at]! / rows;

  const kept = before ? k : 0;
  const stack = new Float64Array((kept + rows + Number(kept > 0)) * n);
  for (let at = 0; at < kept * n; at++) stack[at] = before!.singularValues[Math.floor(at / n)]! * before!.components[at]!;
  for (let at = 0; at < rows * n; at++) stack[kept * n + at] = values[at]! - own[at % n]!;
  const total = (before?.rows ?? 0) + rows;
  const weight = Math.sqrt(((before?.rows ?? 0) * rows) / total);
  if (before) for (let j = 0; j < n; j++) stack[(kept + rows) * n + j] = weight * (before.mean[j]! - own[j]!);
  const energy = stack.subarray(kept * n).reduce((sum, value) => sum + value * value, before?.energy ?? 0);

  return scope(async () => {
    const matrix = transpose(tensor(stack, [stack.length / n, n], x.dtype));
    const { U, S } = method === "exact" ? await svd(matrix) : await randomizedSvd(matrix, k, { oversampling: k, iterations: 4, rng: new Rng(42) });
    const singularValues = Float64Array.from((hostNumbers(S) as Float64Array).subarray(0, k));
    const [columns, width] = [hostNumbers(U) as Float64Array, U.shape[1]!];
    return {
      components: Float64Array.from({ length: k * n }, (_, at) => columns[(at % n) * width + Math.floor(at / n)]!),
      singularValues,
      ratios: singularValues.map((value) => (energy > 0 ? value ** 2 / energy : 0)),
      mean: own.map((value, j) => ((before?.rows ?? 0) * (before?.mean[j] ?? 0) + rows * value) / total),
      rows: total,
      energy,
    };
  });
}
