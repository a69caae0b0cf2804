import type { Awaitable, ParameterLink, State, TransformContext } from "../nn/contracts.ts";
import { copyOf, Parameter, reshape, zeros, type Rng, type Tensor } from "../tensor/index.ts";
import { freeState } from "./optimization.ts";
import { asMatrix, project, projectBack, projectedShape, projectorFor, type BasisSource, type ProjectionType, type Projector } from "./projector.ts";
import { isTarget } from "./targets.ts";

/** A part of the space that a matrix moves in, chosen anew now and then. */
export interface Subspace {
  shape(matrix: readonly [number, number]): readonly number[];
  /** Named tensors that say which part it is; undefined where the gradient does not tell, unless `anyhow`. */
  choose(g: Tensor, rng: Rng, anyhow: boolean): Awaitable<State | undefined>;
  into(g: Tensor, chosen: State): Tensor;
  /** A matrix of the shape of g, factor times what r stands for; it may take the memory of g where that is used up. */
  back(r: Tensor, chosen: State, g: Tensor, factor: number, used: boolean): Tensor;
}

/** Singular, random or permuted directions of one side or both; the rank may depend on the side. */
export const directions = (type: ProjectionType, rank: number | ((side: number) => number), source: BasisSource): Subspace => ({
  shape: (matrix) => projectedShape(type, matrix, rank),
  choose: (g, rng, anyhow) => projectorFor(g, type, rank, anyhow ? "random" : source, rng),
  into: (g, chosen) => project(g, chosen as Projector),
  back: (r, chosen, g, factor, used) => projectBack(r, chosen as Projector, factor, used && g.contiguous ? g : undefined),
});

/** A step inside the subspace: gradient G, its part R, what the inner optimiser made of it, all of one matrix. */
export interface SubspaceStep {
  readonly g: Tensor;
  readonly r: Tensor;
  readonly direction: Tensor;
  /** What says which subspace it is. */
  readonly chosen: State;
  /** factor (1) times a tensor of the subspace, as a matrix; `used` says that g is no longer needed. */
  back(r: Tensor, factor?: number, used?: boolean): Tensor;
}

export interface SubspaceRules {
  readonly targetModules: string | readonly string[];
  /** Steps between two choices. */
  readonly gap: number;
  /** Whose steps: those of each matrix (own), or those of the run, so that all change together; defaults to own. */
  readonly clock?: "own" | "run";
  /** Whether the inner optimiser starts anew with each choice; defaults to false. */
  readonly reset?: boolean;
}

/**
 * Runs `inner` on the part of each gradient that lies in a subspace; `finish` turns its direction into an update of the whole
 * matrix. Parameters that are no targets go through `inner` as they are.
 */
export function inSubspace(
  rules: SubspaceRules,
  subspace: Subspace,
  inner: ParameterLink,
  finish: (step: SubspaceStep, s: State) => Tensor,
  extra: State = {},
): ParameterLink {
  const innerState = (w: Parameter, t: TransformContext): State =>
    inner.init(new Parameter(zeros(subspace.shape(asMatrix(w).shape as [number, number]), w.dtype), w.name), t);

  /** This step's subspace: a new one every `gap` steps; where the gradient does not tell, the old one stays, and the next step tries again. */
  async function current(g: Tensor, s: State, w: Parameter, t: TransformContext): Promise<State> {
    const count = rules.clock === "run" ? t.step : (s["t"] as number);
    const round = Math.floor(count / rules.gap);
    const held = s["projector"] as State | undefined;
    s["t"] = (s["t"] as number) + 1;
    if (held && round === s["round"]) return held;
    const found = await subspace.choose(g, t.rng, false);
    if (found) {
      if (held) freeState(held);
      if (held && rules.reset) {
        freeState(s["inner"] as State);
        s["inner"] = innerState(w, t);
      }
      s["round"] = round;
      return (s["projector"] = found);
    }
    t.warn(`the gradient of ${w.name} is zero or not finite at step ${t.step + 1}: ${held ? "its projector stays as it is" : "its first projector is random"}`);
    return held ?? (s["projector"] = (await subspace.choose(g, t.rng, true))!);
  }

  return {
    scope: "parameter",
    init: (w, t) => (isTarget(rules.targetModules, w, t) ? { t: 0, round: -1, ...extra, inner: innerState(w, t) } : { inner: inner.init(w, t) }),
    async update(u, s, w, t) {
      if (s["round"] === undefined) return inner.update(u, s["inner"] as State, w, t);
      const g = asMatrix(u);
      const chosen = await current(g, s, w, t);
      const r = subspace.into(g, chosen);
      // the inner optimiser owns what it gets, and r is still needed
      const direction = await inner.update(copyOf(r), s["inner"] as State, w, t);
      return reshape(finish({ g, r, direction, chosen, back: (x, factor = 1, used = false) => subspace.back(x, chosen, g, factor, used) }, s), w.shape);
    },
  };
}
