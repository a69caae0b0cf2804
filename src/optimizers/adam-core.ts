import type { ParameterLink } from "../nn/contracts.ts";
import { affine, div, scale, sqrt, square, zeros, type Tensor } from "../tensor/index.ts";
import { accumulate } from "./in-place.ts";

export interface AdamOptions {
  beta1?: number;
  beta2?: number;
  eps?: number;
}

/**
 * Adam's direction m̂ / (√v̂ + eps) without decay or learning rate, in torch's order: (m / c1) / (√v / √c2 + eps) with
 * c = 1 − beta^t. Kingma & Ba 2014, arXiv:1412.6980.
 */
export const adamCore = ({ beta1 = 0.9, beta2 = 0.999, eps = 1e-8 }: AdamOptions = {}): ParameterLink => ({
  scope: "parameter",
  fused: { kind: "adam", beta1, beta2, eps },
  init: (w) => ({ t: 0, m: zeros(w.shape, w.dtype), v: zeros(w.shape, w.dtype) }),
  update(g, s) {
    const [m, v] = [s["m"] as Tensor, s["v"] as Tensor];
    const t = (s["t"] = (s["t"] as number) + 1);
    accumulate(m, 1 - beta1, g, beta1);
    accumulate(v, 1 - beta2, square(g), beta2);
    const denominator = affine(sqrt(v), 1 / Math.sqrt(1 - beta2 ** t), eps);
    return scale(div(m, denominator), 1 / (1 - beta1 ** t));
  },
});
