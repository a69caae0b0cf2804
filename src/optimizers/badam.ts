import { frugal, frugalOptions } from "./frugal.ts";
import { optimizer } from "./optimizer.ts";

/**
 * BAdam: Adam on a share of the target matrices at a time, which changes every `updateGap` steps; the others have no state and do
 * not move, decay apart. FRUGAL's blocks with the rule "no". Luo, Yu & Li 2024, arXiv:2404.02827.
 *
 * @example
 * const optimizer = { method: badam, options: { density: 0.25, updateGap: 100 } }; // for train(), with `consume: true` or unfreeze(model)
 */
export const badam = optimizer({
  id: "badam",
  title: "BAdam",
  paper: "arXiv:2404.02827",
  options: frugalOptions.pick({ lr: true, betas: true, eps: true, weightDecay: true, density: true, updateGap: true, blockOrder: true, targetModules: true }),
  build: (o, inner) => frugal.build(frugalOptions.parse({ ...o, mode: "block", inactiveUpdateRule: "no" }), inner),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
