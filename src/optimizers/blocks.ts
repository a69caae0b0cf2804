import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { ListLink, ParameterLink, State } from "../nn/contracts.ts";
import type { Parameter, Rng, Tensor } from "../tensor/index.ts";
import { scaleInPlace } from "./in-place.ts";
import { alone, freeState } from "./optimization.ts";
import { shareOf, stateFree, type StateFreeRule } from "./state-free.ts";
import { isTarget } from "./targets.ts";

export const blockOrder = z.enum(["random", "ascending", "descending", "mirror"]);

export interface BlockRules {
  readonly targetModules: string | readonly string[];
  readonly density: number;
  readonly updateGap: number;
  readonly blockOrder: z.output<typeof blockOrder>;
  readonly inactiveUpdateRule: StateFreeRule;
  readonly inactiveLrScale: number;
  readonly projParamsLrScale: number;
}

/** Which of n blocks have state in a round: a window that walks on by its width, from the front, from the back or from both; or any. */
export function activeBlocks(order: BlockRules["blockOrder"], n: number, count: number, round: number, rng: Rng): number[] {
  const window = (width: number): number[] => Array.from({ length: width }, (_, i) => (round * width + i) % n);
  const mirrored = (blocks: number[]): number[] => blocks.map((i) => n - 1 - i);
  if (order === "random") return [...rng.permutation(n).subarray(0, count)];
  if (order === "ascending") return window(count);
  if (order === "descending") return mirrored(window(count));
  if (count % 2 === 1)
    throw new StrutError("option", `blockOrder mirror takes as many matrices from the front as from the back, but ${count} of ${n} are to be active`, {
      path: "density",
      hint: `Choose a density of ${Array.from([count - 1, count + 1], (even) => even / n).join(" or ")}.`,
    });
  const front = window(count / 2);
  return [...front, ...mirrored(front)];
}

/**
 * Whole matrices with and without state: a share of the group's targets moves by `core`, the others by a rule that needs none,
 * and every `updateGap` steps of the run it is other matrices' turn, whose state starts anew. What is no target always has state.
 */
export const blocks = (o: BlockRules, core: ParameterLink): ListLink => ({
  scope: "group",
  init: () => ({ round: -1 }),
  async update(updates, s, w, t) {
    const held = (s["held"] ??= {}) as State;
    const start = (one: Parameter, block: number): State => (held[one.name] = { block, state: core.init(one, alone(one, t)) });
    const targets = w.filter((one) => isTarget(o.targetModules, one, t));
    const round = Math.floor(t.step / o.updateGap);
    const count = shareOf(targets.length, o.density);
    if (o.inactiveUpdateRule === "no" && count === 0 && targets.length > 0)
      throw new StrutError("option", `density ${o.density} of ${targets.length} matrices rounds to none, so that nothing would move`, {
        path: "density",
        hint: `Choose a density of at least ${1 / targets.length}.`,
      });
    if (round !== s["round"]) {
      s["round"] = round;
      for (const [name, own] of Object.entries(held) as [string, State][])
        if (own["block"] === 1) {
          freeState(own);
          delete held[name];
        }
      for (const i of activeBlocks(o.blockOrder, targets.length, count, round, t.rng.fork(w[0]!.name))) start(targets[i]!, 1);
    }
    const treated = new Set(targets);
    const moved: Tensor[] = [];
    for (const [i, one] of w.entries()) {
      const [u, target] = [updates[i]!, treated.has(one)];
      const own = (held[one.name] ?? (target ? undefined : start(one, 0))) as State | undefined;
      if (!own) moved.push(stateFree(o.inactiveUpdateRule, u, o.inactiveLrScale * o.projParamsLrScale));
      else {
        const direction = await core.update(u, own["state"] as State, one, alone(one, t));
        if (target) scaleInPlace(direction, o.projParamsLrScale);
        moved.push(direction);
      }
    }
    return moved;
  },
});
