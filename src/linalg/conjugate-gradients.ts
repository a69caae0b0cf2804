import { StrutError } from "../errors.ts";
import { scope } from "../tensor/scope.ts";
import { tensor, type Tensor } from "../tensor/tensor.ts";
import { addScaled, dot, numbersOf } from "./vectors.ts";

/** What maps a tensor to one of the same shape. */
export type LinearMap = (x: Tensor) => Tensor | Promise<Tensor>;

export interface ConjugateGradientsOptions {
  /** Where to start; defaults to 0. */
  x0?: Tensor;
  /** Ends at ‖b − A·x‖ ≤ tolerance·‖b‖; defaults to 1e-5. */
  tolerance?: number;
  /** At most so many; defaults to the size of b. */
  iterations?: number;
  /** About A⁻¹, symmetric positive definite; defaults to none. */
  preconditioner?: LinearMap;
  /** Called after each iteration with ‖b − A·x‖/‖b‖ as the recurrence has it. */
  onIteration?: (state: { iteration: number; residual: number }) => void;
}

export interface ConjugateGradients {
  x: Tensor;
  /** ‖b − A·x‖/‖b‖, computed anew from x. */
  residual: number;
  iterations: number;
  converged: boolean;
}

/** A dot product that must not be negative or NaN, nor 0, if A and its preconditioner are positive definite. */
function positive(value: number, name: string): number {
  if (value > 0) return value;
  throw new StrutError("value", `conjugateGradients: xᵀ·${name}·x is ${value} for a vector x of the search; ${name} must be symmetric positive definite`, {
    hint: "Add damping to the diagonal, and look for NaN in what the map gives.",
  });
}

/**
 * Solves A·x = b for a symmetric positive definite A known by its products: Hestenes & Stiefel 1952, vectors in f64, products in
 * b's dtype; x and b of any one shape. When the recurrence says that it is done, the residual is computed anew, and the search
 * goes on from it while that still halves it.
 *
 * @example
 * const a = tensor([4, 1, 1, 3], [2, 2]);
 * const { x } = await conjugateGradients((v) => matmul(a, v), tensor([1, 2], [2, 1])); // 1/11, 7/11
 */
export async function conjugateGradients(apply: LinearMap, b: Tensor, options: ConjugateGradientsOptions = {}): Promise<ConjugateGradients> {
  const { x0, tolerance = 1e-5, iterations = b.size, preconditioner, onIteration } = options;
  const right = numbersOf(b, b.shape, "conjugateGradients: b");
  const product = (map: LinearMap, v: Float64Array, name: string): Promise<Float64Array> =>
    scope(async () => numbersOf(await map(tensor(v, b.shape, b.dtype)), b.shape, `conjugateGradients: the result of ${name}`));
  const preconditioned = async (v: Float64Array): Promise<Float64Array> => (preconditioner ? product(preconditioner, v, "preconditioner") : v.slice());
  const size = Math.sqrt(dot(right, right));
  if (!Number.isFinite(size)) throw new StrutError("value", "conjugateGradients: b holds NaN, infinity or numbers too large to square");
  const x = x0 && size > 0 ? numbersOf(x0, b.shape, "conjugateGradients: x0") : new Float64Array(b.size);
  let [done, before] = [0, Infinity];
  for (;;) {
    const r = right.slice();
    if (done > 0 || (x0 && size > 0)) addScaled(r, -1, await product(apply, x, "apply"));
    const now = size === 0 ? 0 : Math.sqrt(dot(r, r)) / size;
    if (now <= tolerance || done >= iterations || !(now <= before / 2))
      return { x: tensor(x, b.shape, b.dtype), residual: now, iterations: done, converged: now <= tolerance };
    before = now;
    const p = await preconditioned(r);
    let energy = positive(dot(r, p), "preconditioner");
    for (;;) {
      const image = await product(apply, p, "apply");
      const step = energy / positive(dot(p, image), "A");
      addScaled(x, step, p);
      addScaled(r, -step, image);
      const residual = Math.sqrt(dot(r, r)) / size;
      done++;
      onIteration?.({ iteration: done, residual });
      if (residual <= tolerance || done >= iterations) break;
      const z = await preconditioned(r);
      const next = positive(dot(r, z), "preconditioner");
      for (let i = 0; i < p.length; i++) p[i] = z[i]! + (next / energy) * p[i]!;
      energy = next;
    }
  }
}
