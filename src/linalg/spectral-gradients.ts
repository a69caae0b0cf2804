import { add, mul, scale, sub } from "../tensor/ops/elementwise.ts";
import { matmul } from "../tensor/ops/matmul.ts";
import { transpose } from "../tensor/ops/shape.ts";
import { noGrad } from "../tensor/tape.ts";
import { scope } from "../tensor/scope.ts";
import { hostNumbers, tensor, zeros, type Tensor } from "../tensor/tensor.ts";
import type { Eigh } from "./eigh.ts";
import type { Svd } from "./svd.ts";

const numbers = (x: Tensor): number[] => Array.from(hostNumbers(x) as Float64Array);

/** F with F_ij = 1/(x_j − x_i), and 0 on the diagonal and where two values are closer than `cluster` times the largest. */
function differences(x: readonly number[], cluster: number, dtype: Tensor["dtype"]): Tensor {
  const n = x.length;
  const limit = cluster * Math.max(0, ...x.map(Math.abs));
  const values = Float64Array.from({ length: n * n }, (_, at) => {
    const gap = x[at % n]! - x[Math.floor(at / n)]!;
    return Math.abs(gap) > limit ? 1 / gap : 0;
  });
  return tensor(values, [n, n], dtype);
}

const diagonal = (x: readonly number[], dtype: Tensor["dtype"]): Tensor => {
  const values = new Float64Array(x.length ** 2);
  x.forEach((value, i) => (values[i * (x.length + 1)] = value));
  return tensor(values, [x.length, x.length], dtype);
};

export interface ClusterOption {
  /** Values closer than this times the largest count as equal: within a cluster vectors are arbitrary and get no gradient; defaults to 1e-12. */
  cluster?: number;
}

/**
 * ∂L/∂A of a symmetric A from the gradients of its eigenvalues and eigenvectors (either may be left out):
 * V·(diag(ḡ_λ) + F ∘ Vᵀḡ_V)·Vᵀ, made symmetric, F_ij = 1/(λⱼ − λᵢ). Exact for losses that do not see the basis of a cluster.
 *
 * @example
 * const a = tensor([2, 1, 1, 3], [2, 2], "f64");
 * const gradient = eighBackward(await eigh(a), { eigenvalues: tensor([1, 0], [2], "f64") });
 */
export function eighBackward(
  { eigenvalues, eigenvectors: v }: Eigh,
  gradients: { eigenvalues?: Tensor; eigenvectors?: Tensor },
  { cluster = 1e-12 }: ClusterOption = {},
): Tensor {
  return noGrad(() =>
    scope(() => {
      const { dtype } = v;
      let inner = gradients.eigenvalues ? diagonal(numbers(gradients.eigenvalues), dtype) : zeros([v.shape[1]!, v.shape[1]!], dtype);
      if (gradients.eigenvectors) inner = add(inner, mul(differences(numbers(eigenvalues), cluster, dtype), matmul(transpose(v), gradients.eigenvectors)));
      const whole = matmul(matmul(v, inner), transpose(v));
      return scale(add(whole, transpose(whole)), 0.5);
    }),
  );
}

/**
 * ∂L/∂A from the gradients of a thin SVD (each may be left out), F_ij = 1/(sⱼ² − sᵢ²):
 * U·(diag(ḡ_S) + (F ∘ (UᵀḡU − ḡUᵀU))·S + S·(F ∘ (VᵀḡV − ḡVᵀV)))·Vᵀ + (I − UUᵀ)·ḡU·S⁻¹·Vᵀ + U·S⁻¹·ḡVᵀ·(I − VVᵀ).
 * Singular values of a cluster, and those that count as zero, pass no gradient to their vectors.
 *
 * @example
 * const a = tensor([2, 1, 0, 3], [2, 2], "f64");
 * const nuclear = svdBackward(await svd(a), { S: tensor([1, 1], [2], "f64") }); // U·Vh
 */
export function svdBackward({ U, S, Vh }: Svd, gradients: { U?: Tensor; S?: Tensor; Vh?: Tensor }, { cluster = 1e-12 }: ClusterOption = {}): Tensor {
  return noGrad(() =>
    scope(() => {
      const { dtype } = U;
      const s = numbers(S);
      const V = transpose(Vh);
      const limit = cluster * Math.max(0, ...s);
      const [sigma, inverse] = [
        diagonal(s, dtype),
        diagonal(
          s.map((x) => (x > limit ? 1 / x : 0)),
          dtype,
        ),
      ];
      const F = differences(
        s.map((x) => x * x),
        cluster,
        dtype,
      );
      /** F ∘ (XᵀG − GᵀX) */
      const turn = (x: Tensor, g: Tensor): Tensor => {
        const product = matmul(transpose(x), g);
        return mul(F, sub(product, transpose(product)));
      };
      /** (I − XXᵀ)·G */
      const outside = (x: Tensor, g: Tensor): Tensor => sub(g, matmul(x, matmul(transpose(x), g)));
      let inner = gradients.S ? diagonal(numbers(gradients.S), dtype) : zeros([s.length, s.length], dtype);
      if (gradients.U) inner = add(inner, matmul(turn(U, gradients.U), sigma));
      if (gradients.Vh) inner = add(inner, matmul(sigma, turn(V, transpose(gradients.Vh))));
      let total = matmul(matmul(U, inner), Vh);
      if (gradients.U) total = add(total, matmul(matmul(outside(U, gradients.U), inverse), Vh));
      if (gradients.Vh) total = add(total, matmul(matmul(U, inverse), transpose(outside(V, transpose(gradients.Vh)))));
      return total;
    }),
  );
}
