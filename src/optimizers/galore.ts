import { z } from "zod";
import type { ParameterLink, Transform } from "../nn/contracts.ts";
import { adamCore, betas } from "./adam-core.ts";
import { composed } from "./composed.ts";
import { decayAfterUpdate, scaleByLearningRate } from "./links.ts";
import { chain, optimizer } from "./optimizer.ts";
import type { BasisSource, ProjectionType } from "./projector.ts";
import { directions, inSubspace } from "./subspace.ts";
import { targetModules } from "./targets.ts";

/** What all projected optimisers share; HF's names in camelCase. */
export const projection = {
  rank: z.int().positive().default(128).describe("directions kept of the projected side; cut to the matrix's smaller side; defaults to 128"),
  updateProjGap: z.int().positive().default(200).describe("steps of a matrix between two projectors; defaults to 200"),
  projType: z
    .enum(["std", "reverse_std", "left", "right", "full"])
    .default("std")
    .describe("side that is projected: the shorter one (std), the longer, left, right, or both (full); defaults to std"),
  svd: z
    .enum(["auto", "exact", "randomized"])
    .default("auto")
    .describe("how singular vectors are found; auto takes random directions where the smaller side is above 256; defaults to auto"),
  targetModules,
};

export interface ProjectionSettings {
  rank: number;
  updateProjGap: number;
  projType: ProjectionType;
  svd: BasisSource;
  targetModules: string | readonly string[];
}

/** P from the singular vectors of G; R = G·Pᵀ or Pᵀ·G goes through `inner`, and scale·(its direction) comes back by P. */
export const galoreLink = (o: ProjectionSettings & { scale: number }, inner: Transform): ParameterLink =>
  inSubspace(
    { targetModules: o.targetModules, gap: o.updateProjGap },
    directions(o.projType, o.rank, o.svd),
    composed(inner, "galore"),
    ({ direction, back }) => back(direction, o.scale, true),
  );

/** The whole optimiser; its projector may also be a random one. */
export const galoreChain = (
  o: ProjectionSettings & { scale: number; betas: readonly [number, number]; eps: number },
  inner: Transform = adamCore({ beta1: o.betas[0], beta2: o.betas[1], eps: o.eps, form: "hf" }),
): Transform => chain(galoreLink(o, inner), scaleByLearningRate(), decayAfterUpdate());

/**
 * GaLore: full weights whose optimiser lives in the leading singular directions of the gradient. For G m×n and m ≥ n:
 * R = G·Pᵀ with P r×n, W ← W − lr·scale·Adam(R)·P, then W ← W − lr·weightDecay·W; for m < n on the other side. Adam is
 * that of transformers' first AdamW, with eps outside the corrected root. Zhao et al. 2024, arXiv:2403.03507.
 *
 * @example
 * const optimizer = { method: galore, options: { rank: 16, lr: 0.01 } }; // for train(), with `consume: true` or unfreeze(model)
 */
export const galore = optimizer({
  id: "galore",
  title: "GaLore",
  paper: "arXiv:2403.03507",
  options: z.object({
    lr: z.number().nonnegative().default(0.01).describe("learning rate; defaults to 0.01"),
    betas,
    eps: z.number().positive().default(1e-6).describe("added to √v; defaults to 1e-6"),
    weightDecay: z.number().nonnegative().default(0).describe("pull of the weights towards 0, times the learning rate, after the update; defaults to 0"),
    scale: z.number().default(0.25).describe("factor of projected updates; defaults to 0.25"),
    ...projection,
  }),
  build: galoreChain,
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
