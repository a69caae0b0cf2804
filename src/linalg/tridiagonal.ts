import { engine, kernels } from "../tensor/engine.ts";
import { scope } from "../tensor/scope.ts";
import { empty, type Tensor } from "../tensor/tensor.ts";
import { block, doubles, multiplyInto, turned } from "./blocks.ts";

const PANEL = 32;
const GROUP = 64;
const BAND = 256;

/** A symmetric tridiagonal matrix as f64 vectors, and the reflectors that led to it: row j of `reflectors` is v of step j. */
export interface Tridiagonal {
  diagonal: Tensor;
  /** The last element is unused. */
  offDiagonal: Tensor;
  reflectors: Tensor;
  tau: Tensor;
}

/**
 * A = Q·T·Qᵀ with Q = H₀·H₁·…, Hⱼ = I − τⱼ·vⱼ·vⱼᵀ. Reads the upper triangle of `a` (f64, entries about 1 at most) and keeps
 * the reflectors in its memory. Blocked as in LAPACK's sytrd: panels of products A·v, rank-2k updates between them.
 */
export function tridiagonalize(a: Tensor): Tridiagonal {
  const n = a.shape[0]!;
  const [diagonal, offDiagonal, tau] = [empty([n], "f64"), empty([n], "f64"), empty([n], "f64")];
  return scope(() => {
    const panel = empty([3 * PANEL, n], "f64");
    for (let from = 0; from < n; from += PANEL) {
      const width = Math.min(PANEL, n - from);
      kernels().tridiagonal_panel(a, panel, diagonal, offDiagonal, tau, n, from, width, engine().scratch);
      for (let top = from + width; top < n; top += BAND) {
        const bottom = Math.min(n, top + BAND);
        multiplyInto(block(a, top, bottom, top, n), turned(block(panel, 0, 2 * width, top, bottom)), block(panel, width, 3 * width, top, n), -1, 1);
      }
    }
    return { diagonal, offDiagonal, reflectors: a, tau };
  });
}

/** rows ← rows·Qᵀ: eigenvectors of T in rows become those of A. Groups of reflectors as I − Vᵀ·T·V, T by forward recurrence. */
export function backTransform(rows: Tensor, { reflectors, tau }: Tridiagonal): void {
  const n = reflectors.shape[0]!;
  scope(() => {
    const [gram, upper] = [empty([GROUP, GROUP], "f64"), empty([GROUP, GROUP], "f64")];
    const [products, turnedProducts] = [empty([n, GROUP], "f64"), empty([n, GROUP], "f64")];
    for (let from = Math.floor(Math.max(n - 2, 0) / GROUP) * GROUP; from >= 0; from -= GROUP) {
      const to = Math.min(from + GROUP, n - 1);
      const width = to - from;
      if (width <= 0) continue;
      const v = block(reflectors, from, to, from + 1, n);
      multiplyInto(block(gram, 0, width, 0, width), v, turned(v));
      triangularFactor(doubles(upper), doubles(gram), doubles(tau).subarray(from, to));
      const active = block(rows, 0, n, from + 1, n);
      const [y, z] = [block(products, 0, n, 0, width), block(turnedProducts, 0, n, 0, width)];
      multiplyInto(y, active, turned(v));
      multiplyInto(z, y, turned(block(upper, 0, width, 0, width)));
      multiplyInto(active, z, v, -1, 1);
    }
  });
}

/** T of H₀·H₁·… = I − Vᵀ·T·V from V·Vᵀ and τ; both matrices have rows of GROUP. */
function triangularFactor(t: Float64Array, gram: Float64Array, tau: Float64Array): void {
  t.fill(0);
  for (let i = 0; i < tau.length; i++) {
    t[i * GROUP + i] = tau[i]!;
    for (let p = 0; p < i; p++) {
      let sum = 0;
      for (let r = p; r < i; r++) sum += t[p * GROUP + r]! * gram[r * GROUP + i]!;
      t[p * GROUP + i] = -tau[i]! * sum;
    }
  }
}
