import { galore, galoreChain } from "./galore.ts";
import { optimizer } from "./optimizer.ts";

/**
 * Flora: GaLore with random orthonormal directions, drawn anew every `updateProjGap` steps, in place of the gradient's singular
 * vectors. Averages are kept when directions change, as GaLore keeps them; the paper moves them into the new ones. Hao, Cao &
 * Mou 2024, arXiv:2402.03293.
 *
 * @example
 * const optimizer = { method: floraProjection, options: { rank: 16, updateProjGap: 50 } }; // for train(), with `consume: true` or unfreeze(model)
 */
export const floraProjection = optimizer({
  id: "flora-projection",
  title: "Flora (random projections)",
  paper: "arXiv:2402.03293",
  options: galore.options.omit({ svd: true }),
  build: (o, inner) => galoreChain({ ...o, svd: "random" }, inner),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
