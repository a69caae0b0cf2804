import type { ParameterLink } from "../nn/contracts.ts";
import { kernels } from "../tensor/engine.ts";
import { contiguous, Tensor, zeros } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";

export interface AdamOptions {
  beta1?: number;
  beta2?: number;
  eps?: number;
  /**
   * With c = 1 − beta^t: "torch" gives (m/c1) / (√(v/c2) + eps), "hf", as in the first transformers, (√c2/c1)·m / (√v + eps),
   * and "uncorrected" m / (√v + eps). Defaults to "torch".
   */
  form?: "torch" | "hf" | "uncorrected";
}

/**
 * Adam's direction, without decay or learning rate. m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g²; `form` says how they make the
 * direction. Kingma & Ba 2014, arXiv:1412.6980. Where t is a tensor of w's shape each element is corrected by its own count.
 */
export function adamCore({ beta1 = 0.9, beta2 = 0.999, eps = 1e-8, form = "torch" }: AdamOptions = {}): ParameterLink {
  const corrections = (t: number): readonly [c1: number, c2: number, held: number] => {
    if (form === "uncorrected") return [1, 1, eps];
    const c2 = 1 - beta2 ** t;
    return [1 - beta1 ** t, c2, form === "hf" ? eps / Math.sqrt(c2) : eps];
  };
  const byCounts = (direction: Tensor, ...tensors: readonly [g: Tensor, m: Tensor, v: Tensor, counts: Tensor]): void => {
    const [u, g, m, v, counts] = [direction, ...tensors].map((x) => hostView(x) as Float32Array) as [
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    for (let i = 0; i < u.length; i++) {
      const [c1, c2, held] = corrections((counts[i]! += 1));
      m[i] = beta1 * m[i]! + (1 - beta1) * g[i]!;
      v[i] = beta2 * v[i]! + (1 - beta2) * g[i]! ** 2;
      u[i] = m[i]! / c1 / (Math.sqrt(v[i]! / c2) + held);
    }
  };
  return {
    scope: "parameter",
    ...(form === "torch" ? { fused: { kind: "adam", beta1, beta2, eps } } : {}),
    init: (w) => ({ t: 0, m: zeros(w.shape, w.dtype), v: zeros(w.shape, w.dtype) }),
    update(g, s) {
      const direction = zeros(g.shape, g.dtype);
      const [m, v] = [s["m"] as Tensor, s["v"] as Tensor];
      if (s["t"] instanceof Tensor) byCounts(direction, contiguous(g), m, v, s["t"]);
      else {
        const [c1, c2, held] = corrections((s["t"] = (s["t"] as number) + 1));
        // a weight of 0 that moves at the rate −1 becomes the direction
        kernels().adamw(direction, g, m, v, g.size, -1, beta1, beta2, held, 0, c1, c2, 1);
      }
      return direction;
    },
  };
}
