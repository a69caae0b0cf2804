import { StrutError } from "../errors.ts";
import { sampleWithoutReplacement } from "../linalg/index.ts";
import type { Regime, State, Training } from "../nn/contracts.ts";
import type { Parameter } from "../tensor/index.ts";

/** The list of blocks a parameter lies in, and which of them: model.layers 3, transformer.h 0. */
export function blockOf(name: string): { list: string; index: number } | undefined {
  const [, list, index] = /^(.*?(?:^|\.)(?:layers?|h|blocks?))\.(\d+)\./.exec(name) ?? [];
  return list === undefined ? undefined : { list, index: Number(index) };
}

export interface SamplingSettings {
  activatedLayers: number;
  intervalSteps: number;
  /** What happens to the optimiser state of a block that is frozen. */
  frozenState: "drop" | "keep";
}

/** The parameters that train, by block; adapters' count with the block they sit in. */
function blocksOf({ parameters }: Training): Map<number, Parameter[]> {
  const blocks = new Map<number, Parameter[]>();
  for (const [name, w] of parameters) {
    const block = blockOf(name);
    if (!w.trainable || !block) continue;
    blocks.set(block.index, [...(blocks.get(block.index) ?? []), w]);
  }
  return blocks;
}

/** The old projector of a block that trains again was made of gradients long past. */
function renewProjectors(t: Training, w: Parameter): void {
  for (const state of t.moments(w)) if (Object.hasOwn(state, "round")) (state as State)["round"] = -1;
}

/**
 * Every `intervalSteps` steps only `activatedLayers` blocks train, drawn one after the other without replacement with these chances;
 * what lies in no block always trains. The draw of a step depends on the seed and the step alone.
 */
export function layerSampling(o: SamplingSettings, chances: readonly number[]): Regime {
  let blocks = new Map<number, Parameter[]>();
  return {
    groups(t) {
      blocks = blocksOf(t);
      if (blocks.size !== chances.length)
        throw new StrutError("option", `there are ${chances.length} scores for ${blocks.size} blocks that train`, {
          path: "scores",
          hint: "Give one score a block, in order of depth, and train all blocks.",
        });
      const possible = chances.filter((p) => p > 0).length;
      if (o.activatedLayers > possible)
        throw new StrutError("option", `activatedLayers is ${o.activatedLayers}, but only ${possible} of ${blocks.size} blocks can be drawn`, {
          path: "activatedLayers",
          hint: `Use at most ${possible}.`,
        });
      return [];
    },
    beforeForward(t) {
      if (t.step % o.intervalSteps !== 0) return;
      const drawn = new Set(sampleWithoutReplacement(chances, o.activatedLayers, t.rng));
      for (const [index, parameters] of blocks)
        for (const w of parameters) {
          const on = drawn.has(index);
          if (on && !w.trainable && o.frozenState === "keep") renewProjectors(t, w);
          t.trainable(w, on, !on && o.frozenState === "drop" ? "drop" : "keep");
        }
    },
  };
}
