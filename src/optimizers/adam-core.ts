import type { ParameterLink } from "../nn/contracts.ts";
import { kernels } from "../tensor/engine.ts";
import { zeros, type Tensor } from "../tensor/index.ts";

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
 * direction. Kingma & Ba 2014, arXiv:1412.6980.
 */
export const adamCore = ({ beta1 = 0.9, beta2 = 0.999, eps = 1e-8, form = "torch" }: AdamOptions = {}): ParameterLink => ({
  scope: "parameter",
  ...(form === "torch" ? { fused: { kind: "adam", beta1, beta2, eps } } : {}),
  init: (w) => ({ t: 0, m: zeros(w.shape, w.dtype), v: zeros(w.shape, w.dtype) }),
  update(g, s) {
    const t = (s["t"] = (s["t"] as number) + 1);
    const [c1, c2] = form === "uncorrected" ? [1, 1] : [1 - beta1 ** t, 1 - beta2 ** t];
    // a weight of 0 that moves at the rate −1 becomes the direction
    const direction = zeros(g.shape, g.dtype);
    const held = form === "hf" ? eps / Math.sqrt(c2) : eps;
    kernels().adamw(direction, g, s["m"] as Tensor, s["v"] as Tensor, g.size, -1, beta1, beta2, held, 0, c1, c2, 1);
    return direction;
  },
});
