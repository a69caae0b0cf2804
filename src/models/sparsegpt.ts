import { StrutError } from "../errors.ts";
import { block, doubles, multiplyInto, turned } from "../linalg/blocks.ts";
import { choleskyInPlace } from "../linalg/cholesky.ts";
import { solveTriangularInPlace } from "../linalg/triangular.ts";
import { cast, contiguous, copyOf, noGrad, scope, zeros, type Tensor } from "../tensor/index.ts";
import { largestPlaces } from "./largest.ts";

/** Columns whose masks are chosen together; a multiple of 4. */
const BLOCK = 128;
/** What the diagonal grows by, as a share of its mean, so that few calibration rows will do. */
const DAMPING = 0.01;

/** What goes: a share of the entries, or all but two of every four in a row. */
export type Sparsity = { readonly share: number } | "2:4";

/**
 * The upper triangular U [in, in] of (G + λI)⁻¹ = UᵀU in f64, for a Gram matrix G = Σxᵀx of inputs and λ of 1 % of its mean diagonal.
 * U_jj² is the j-th diagonal entry of the inverse once columns before j are settled.
 */
export function inverseFactor(gram: Tensor): Tensor {
  const n = gram.shape[0]!;
  return noGrad(() =>
    scope(() => {
      const [L, inverse] = [copyOf(cast(gram, "f64")), zeros([n, n], "f64")];
      const [values, ones] = [doubles(L), doubles(inverse)];
      let trace = 0;
      for (let j = 0; j < n; j++) trace += values[j * (n + 1)]!;
      for (let j = 0; j < n; j++) {
        values[j * (n + 1)]! += (DAMPING * trace) / n;
        ones[j * (n + 1)] = 1;
      }
      const factored = (x: Tensor): void => {
        if (choleskyInPlace(x) >= 0) throw new StrutError("data", "the calibration inputs are all zero or not finite", { path: "calibration" });
      };
      factored(L);
      solveTriangularInPlace(L, inverse);
      solveTriangularInPlace(turned(L), inverse, { upper: true });
      factored(inverse);
      return contiguous(turned(inverse));
    }),
  );
}

/**
 * A matrix W [out, in] with zeros in it, and the entries that follow each zero moved to make up for it: SparseGPT, the entry of least
 * w² / U_jj² goes, and w_k −= w_j·U_jk / U_jj for all k > j of its row, where U is `inverseFactor` of the layer's inputs. Comes back in
 * W's dtype. Frantar & Alistarh 2023, arXiv:2301.00774, Algorithm 1.
 */
export function sparseGpt(W: Tensor, U: Tensor, sparsity: Sparsity): Tensor {
  const [rows, n] = W.shape as [number, number];
  return noGrad(() =>
    scope(() => {
      const left = copyOf(cast(W, "f64"));
      for (let from = 0; from < n; from += BLOCK) {
        const to = Math.min(n, from + BLOCK);
        const errors = settleBlock(left, U, sparsity, from, to);
        if (to < n) multiplyInto(block(left, 0, rows, to, n), errors, block(U, from, to, to, n), -1, 1);
      }
      return cast(left, W.dtype);
    }),
  );
}

/** Prunes columns from … to−1 of w in place, and gives w_j / U_jj [out, to − from] of what went, which later columns still have to make up for. */
function settleBlock(w: Tensor, U: Tensor, sparsity: Sparsity, from: number, to: number): Tensor {
  const [rows, n] = w.shape as [number, number];
  const errors = zeros([rows, to - from], "f64");
  const [values, factor, gone] = [doubles(w), doubles(U), doubles(errors)];
  const cost = (row: number, j: number): number => (values[row * n + j]! / factor[j * (n + 1)]!) ** 2;
  const costs = (row: number, start: number, end: number): number[] => Array.from({ length: end - start }, (_, i) => cost(row, start + i));
  const stays = new Uint8Array(rows * (to - from));
  if (sparsity !== "2:4") {
    const all = Array.from({ length: rows }, (_, row) => costs(row, from, to)).flat();
    // rounded over the whole matrix, so that the blocks add up to its share
    const goes = Math.round(sparsity.share * (rows * to)) - Math.round(sparsity.share * (rows * from));
    for (const place of largestPlaces(all, all.length - goes)) stays[place] = 1;
  }
  for (let row = 0; row < rows; row++)
    for (let j = from; j < to; j++) {
      const at = row * (to - from) - from;
      if (sparsity === "2:4" && j % 4 === 0) {
        const four = costs(row, j, Math.min(j + 4, n));
        for (const place of largestPlaces(four, Math.ceil(four.length / 2))) stays[at + j + place] = 1;
      }
      if (stays[at + j]) continue;
      const error = values[row * n + j]! / factor[j * (n + 1)]!;
      gone[at + j] = error;
      for (let k = j + 1; k < to; k++) values[row * n + k]! -= error * factor[j * n + k]!;
      values[row * n + j] = 0;
    }
  return errors;
}
