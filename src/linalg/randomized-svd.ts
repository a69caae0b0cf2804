import { StrutError } from "../errors.ts";
import { Rng } from "../tensor/rng.ts";
import { sumSquares } from "../tensor/ops/reduce.ts";
import { concat } from "../tensor/ops/shape.ts";
import { scope } from "../tensor/scope.ts";
import { empty, tensor, type Tensor } from "../tensor/tensor.ts";
import { block, doubles, multiplyInto, turned } from "./blocks.ts";
import { fixSign } from "./eigh.ts";
import { largestMagnitude, narrowedTo, widened } from "./numbers.ts";
import { completeRows, orthonormalizeRows } from "./orthonormal.ts";
import { rowProducts, type ProductOperator, type RowProducts } from "./products.ts";
import { singularRows, type SingularRows, type Svd } from "./svd.ts";

export interface RandomizedSvdOptions {
  /** Directions beyond the rank; defaults to 16. */
  oversampling?: number;
  /** Passes over A and Aᵀ after the first product; defaults to 2. */
  iterations?: number;
  /** Source of the start; defaults to seed 0. */
  rng?: Rng;
  /** "subspace" keeps the newest block of directions, "krylov" all of them, which needs fewer iterations; defaults to "subspace". */
  method?: "subspace" | "krylov";
  /** Directions of a block; defaults to rank + oversampling. Krylov's blocks may be narrower than the rank, if all together are not. */
  block?: number;
  /** Iterates on, up to 60 times, until maxᵢ ‖A·vᵢ − σᵢ·uᵢ‖ ≤ tolerance·σ₁; defaults to no check. */
  tolerance?: number;
}

export interface RandomizedSvd extends Svd {
  /** maxᵢ ‖A·vᵢ − σᵢ·uᵢ‖/σ₁, and whether it met the tolerance: only with the option `tolerance`. */
  residual?: number;
  converged?: boolean;
}

const MOST_ITERATIONS = 60;

/** An orthonormal basis of the rows, by way of f64. */
function orthonormal(rows: Tensor, passes: number): Tensor {
  const wide = widened(rows);
  orthonormalizeRows(wide, passes);
  return narrowedTo(wide, rows.dtype);
}

/** The leading singular rows of A within the span of orthonormal rows. */
function within(a: RowProducts, basis: Tensor, rank: number): SingularRows {
  return scope(() => {
    const small = a.backward(basis);
    if (!Number.isFinite(sumSquares([small]))) largestMagnitude(small, "randomizedSvd");
    const { left, values, right } = singularRows(small, "randomizedSvd");
    const rotated = empty([rank, a.rows], "f64");
    const wide = widened(basis);
    multiplyInto(rotated, block(left, 0, rank, 0, left.shape[1]!), wide);
    const kept = values.slice(0, rank);
    const blank = kept.findIndex((x) => !(x > 1e-7 * kept[0]!));
    if (blank >= 0) completeRows(rotated, blank, blank);
    const vectors = widened(block(right, 0, rank, 0, a.cols));
    const [u, v] = [doubles(rotated), doubles(vectors)];
    for (let i = 0; i < rank; i++)
      if (fixSign(u.subarray(i * a.rows, (i + 1) * a.rows))) for (let at = i * a.cols; at < (i + 1) * a.cols; at++) v[at] = -v[at]!;
    return { left: rotated, values: kept, right: vectors };
  });
}

/** maxᵢ ‖A·vᵢ − σᵢ·uᵢ‖/σ₁. */
function residualOf(a: RowProducts, { left, values, right }: SingularRows, like: (x: Tensor) => Tensor): number {
  return scope(() => {
    const products = widened(a.forward(like(right)));
    const [p, u] = [doubles(products), doubles(left)];
    let worst = 0;
    values.forEach((sigma, i) => {
      let sum = 0;
      for (let at = i * a.rows; at < (i + 1) * a.rows; at++) sum += (p[at]! - sigma * u[at]!) ** 2;
      worst = Math.max(worst, Math.sqrt(sum));
    });
    return worst === 0 ? 0 : worst / values[0]!;
  });
}

/**
 * The leading `rank` singular triples of a matrix, or of an operator given by its products (in f32), by random directions:
 * Halko, Martinsson & Tropp 2011 (arXiv:0909.4061), block Krylov as in Musco & Musco 2015 (arXiv:1504.05477).
 * U m×rank, S descending, Vh rank×n. Large products run in a's dtype, bases are made orthonormal in f64.
 *
 * @example
 * const { S, converged } = await randomizedSvd(new Rng(1).normal([40, 30], 1), 4, { tolerance: 1e-4 });
 */
export async function randomizedSvd(source: Tensor | ProductOperator, rank: number, options: RandomizedSvdOptions = {}): Promise<RandomizedSvd> {
  const { oversampling = 16, iterations = 2, rng = new Rng(0), method = "subspace", tolerance, block: columns = rank + oversampling } = options;
  const a = rowProducts(source, "randomizedSvd");
  const most = Math.min(a.rows, a.cols);
  if (!Number.isInteger(rank) || rank < 1 || rank > most)
    throw new StrutError("range", `randomizedSvd: rank ${rank} is not between 1 and ${most}, the smaller side of ${a.rows}×${a.cols}`);
  const width = Math.min(most, columns);
  const directions = width * (method === "krylov" ? Math.min(iterations + 1, Math.floor(most / width)) : 1);
  if (!Number.isInteger(columns) || columns < 1 || directions < rank)
    throw new StrutError("range", `randomizedSvd: blocks of ${columns} make ${directions} directions, fewer than the rank ${rank}; use a larger block`);
  return scope(() => {
    const like = (x: Tensor): Tensor => narrowedTo(x, a.dtype);
    const history: Tensor[] = [];
    let newest = a.forward(rng.normal([width, a.cols], 1, a.dtype));
    const next = (): void => {
      const basis = orthonormal(newest, 1);
      if (method === "krylov" && (history.length + 2) * width <= most) history.push(basis);
      newest = a.forward(orthonormal(a.backward(basis), 1));
    };
    const solve = (): SingularRows => within(a, orthonormal(history.length > 0 ? concat([...history, orthonormal(newest, 1)], 0) : newest, 2), rank);
    for (let i = 0; i < iterations; i++) next();
    let found = solve();
    let residual: number | undefined;
    if (tolerance !== undefined) {
      residual = residualOf(a, found, like);
      for (let i = iterations; i < MOST_ITERATIONS && residual > tolerance; i++) {
        next();
        found = solve();
        residual = residualOf(a, found, like);
      }
    }
    const { left, values, right } = found;
    return {
      U: turned(like(left)),
      S: tensor(values, [rank], a.dtype),
      Vh: like(right),
      ...(tolerance !== undefined && residual !== undefined ? { residual, converged: residual <= tolerance } : {}),
    };
  });
}
