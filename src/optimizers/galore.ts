import { z } from "zod";
import type { ParameterLink, State, Transform, TransformContext } from "../nn/contracts.ts";
import { Parameter, reshape, zeros, type Tensor } from "../tensor/index.ts";
import { adamCore } from "./adam-core.ts";
import { composed } from "./composed.ts";
import { decayAfterUpdate, scaleByLearningRate } from "./links.ts";
import { chain, optimizer } from "./optimizer.ts";
import { asMatrix, project, projectBack, projectedShape, projectorFor, type BasisSource, type ProjectionType, type Projector } from "./projector.ts";
import { isTarget, targetModules } from "./targets.ts";

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

/** A step inside the subspace: gradient G, its projection R, what the inner optimiser made of it, all of one matrix. */
export interface SubspaceStep {
  readonly g: Tensor;
  readonly r: Tensor;
  readonly direction: Tensor;
  readonly projector: Projector;
}

/** The projector of this step: a new one every `updateProjGap` steps of the matrix; without a usable gradient the old one stays, and the next step tries again. */
async function refreshed(o: ProjectionSettings, g: Tensor, s: State, w: Parameter, t: TransformContext): Promise<Projector> {
  const count = s["t"] as number;
  s["t"] = count + 1;
  const held = s["projector"] as Projector;
  const empty = Object.keys(held).length === 0;
  if (count % o.updateProjGap !== 0 && s["due"] !== 1) return held;
  const found = await projectorFor(g, o.projType, o.rank, o.svd, t.rng);
  s["due"] = found ? 0 : 1;
  if (found) return (s["projector"] = found);
  t.warn(`the gradient of ${w.name} is zero or not finite at step ${t.step + 1}: ${empty ? "its first projector is random" : "its projector stays as it is"}`);
  return empty ? (s["projector"] = (await projectorFor(g, o.projType, o.rank, "random", t.rng))!) : held;
}

/**
 * Runs `inner` on projected gradients; `finish` turns its direction into an update of the whole matrix. Moments are kept when
 * the projector changes. Parameters that are no targets go through `inner` as they are.
 */
export function inSubspace(
  o: ProjectionSettings,
  inner: ParameterLink,
  finish: (step: SubspaceStep, s: State) => Tensor,
  extra: () => State = () => ({}),
): ParameterLink {
  return {
    scope: "parameter",
    init(w, t) {
      if (!isTarget(o.targetModules, w, t)) return { inner: inner.init(w, t) };
      const { shape } = asMatrix(w);
      const small = new Parameter(zeros(projectedShape(o.projType, shape as [number, number], o.rank), w.dtype), w.name);
      return { t: 0, due: 0, projector: {}, ...extra(), inner: inner.init(small, t) };
    },
    async update(u, s, w, t) {
      if (!s["projector"]) return inner.update(u, s["inner"] as State, w, t);
      const g = asMatrix(u);
      const projector = await refreshed(o, g, s, w, t);
      const r = project(g, projector);
      const direction = await inner.update(r, s["inner"] as State, w, t);
      return reshape(finish({ g, r, direction, projector }, s), w.shape);
    },
  };
}

/** P from the singular vectors of G; R = G·Pᵀ or Pᵀ·G goes through `inner`, and scale·(its direction) comes back by P. */
export const galoreLink = (o: ProjectionSettings & { scale: number }, inner: Transform): ParameterLink =>
  inSubspace(o, composed(inner, "galore"), ({ direction, projector }) => projectBack(direction, projector, o.scale));

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
    betas: z
      .tuple([z.number().min(0).lt(1), z.number().min(0).lt(1)])
      .default([0.9, 0.999])
      .describe("decay of the averages in the subspace; defaults to [0.9, 0.999]"),
    eps: z.number().positive().default(1e-6).describe("added to √v; defaults to 1e-6"),
    weightDecay: z.number().nonnegative().default(0).describe("pull of the weights towards 0, times the learning rate, after the update; defaults to 0"),
    scale: z.number().default(0.25).describe("factor of projected updates; defaults to 0.25"),
    ...projection,
  }),
  build: (o, inner = adamCore({ beta1: o.betas[0], beta2: o.betas[1], eps: o.eps, form: "hf" })) =>
    chain(galoreLink(o, inner), scaleByLearningRate(), decayAfterUpdate()),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
});
