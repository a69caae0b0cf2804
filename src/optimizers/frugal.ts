import { z } from "zod";
import type { Transform } from "../nn/contracts.ts";
import { add, sub } from "../tensor/index.ts";
import { adamCore, betas } from "./adam-core.ts";
import { blockOrder, blocks } from "./blocks.ts";
import { composed } from "./composed.ts";
import { coordinates } from "./coordinates.ts";
import { projection } from "./galore.ts";
import { addDecayedWeights, scaleByLearningRate } from "./links.ts";
import { chain, optimizer } from "./optimizer.ts";
import { inactiveUpdateRule, shareOf, stateFree } from "./state-free.ts";
import { directions, inSubspace } from "./subspace.ts";
import { targetModules } from "./targets.ts";

export const frugalOptions = z.object({
  lr: z.number().nonnegative().default(1e-3).describe("learning rate; defaults to 1e-3"),
  betas,
  eps: z.number().positive().default(1e-8).describe("added to the denominator; defaults to 1e-8"),
  weightDecay: z.number().nonnegative().default(0.01).describe("pull of the weights towards 0, times the learning rate; defaults to 0.01"),
  mode: z
    .enum(["block", "coord", "svd"])
    .default("block")
    .describe("what has state: whole matrices, coordinates of each, or directions of each. coord and svd can update inside backward; defaults to block"),
  density: z.number().min(0).max(1).default(0.25).describe("share that has state: of the matrices, of coordinates, of the projected side; defaults to 0.25"),
  updateGap: z.int().positive().default(200).describe("steps of the run between two choices; defaults to 200"),
  resetStatistics: z.boolean().default(true).describe("start averages anew with each choice (blocks always do); defaults to true"),
  inactiveUpdateRule: inactiveUpdateRule.default("sign_sgd").describe("how the rest moves; defaults to sign_sgd"),
  inactiveLrScale: z.number().nonnegative().default(1).describe("factor on the rest's learning rate; 0.1 for fine-tuning; defaults to 1"),
  projParamsLrScale: z.number().nonnegative().default(1).describe("factor on the learning rate of all target matrices; defaults to 1"),
  blockOrder: blockOrder.default("random").describe("whose turn it is in mode block; defaults to random"),
  coordChoice: z.enum(["columns", "rows", "randk"]).default("columns").describe("which coordinates in mode coord; defaults to columns"),
  projSide: projection.projType,
  projType: z.enum(["svd", "random", "randperm"]).default("svd").describe("which directions in mode svd: singular, random, or random units; defaults to svd"),
  targetModules,
});
type Options = z.output<typeof frugalOptions>;

function link(o: Options, inner: Transform): Transform {
  const core = composed(inner, "frugal");
  if (o.mode === "block") return blocks(o, core);
  return inSubspace(
    { targetModules: o.targetModules, gap: o.updateGap, clock: "run", reset: o.resetStatistics },
    o.mode === "coord"
      ? coordinates(o.coordChoice, o.density)
      : directions(o.projSide, (side) => shareOf(side, o.density), o.projType === "svd" ? "auto" : o.projType),
    core,
    ({ g, r, direction, back }) => {
      const inside = back(direction, o.projParamsLrScale);
      if (o.inactiveUpdateRule === "no") return inside;
      return add(inside, stateFree(o.inactiveUpdateRule, sub(g, back(r)), o.inactiveLrScale * o.projParamsLrScale));
    },
  );
}

/**
 * FRUGAL: a share of the matrices, or of each matrix, moves by an optimiser with state, the rest by the sign of its gradient;
 * every `updateGap` steps it is another share. W ← W − lr·(Up(Adam(Down G)) + sign(G − Up(Down G))), decoupled decay on all
 * of W. Parameters that are no targets always have state. Zmushko et al. 2025, arXiv:2411.07837.
 *
 * @example
 * const optimizer = { method: frugal, options: { mode: "coord", density: 0.25 } }; // for train(), with `consume: true` or unfreeze(model)
 */
export const frugal = optimizer({
  id: "frugal",
  title: "FRUGAL",
  paper: "arXiv:2411.07837",
  options: frugalOptions,
  build: (o, inner = adamCore({ beta1: o.betas[0], beta2: o.betas[1], eps: o.eps })) => chain(link(o, inner), addDecayedWeights(), scaleByLearningRate()),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
