import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Model } from "../models/model.ts";
import type { Live, Regime, Training } from "../nn/contracts.ts";
import { lowRank } from "../operators/index.ts";
import { concat, copyOf, Parameter, slice, stopGradient, type Tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { adapter, addAt } from "./adapter.ts";
import { attachedTo, withAdapters } from "./attach.ts";
import { countsByElement } from "./counts.ts";
import { dropInput, initLora, loraOptions, loraPeftOptions } from "./lora.ts";

const options = loraOptions.omit({ loraBias: true, useRslora: true }).extend({
  alpha: z.number().default(16).describe("the update at rank b is scaled by alpha / b; defaults to 16"),
  rMin: z.int().positive().default(1).describe("smallest rank that is sampled; defaults to 1"),
  rank: z.int().positive().optional().describe("rank to run and merge at outside of training; defaults to r"),
  frozen: z.boolean().default(false).describe("train the sampled rank's row and column alone; defaults to false"),
  scaling: z
    .enum(["alpha/b", "alpha/r"])
    .default("alpha/b")
    .describe("alpha/b as published, or alpha/r at every rank, which finds the order of an SVD; defaults to alpha/b"),
});
type Options = z.output<typeof options>;
type Params = { A: Tensor; B: Tensor };

/** Rows of A, and columns of B, up to b; of a frozen run only the last of them has a gradient. */
function prefix(x: Tensor, axis: 0 | 1, b: number, frozen: boolean): Tensor {
  if (!frozen || b === 1) return slice(x, axis, 0, b);
  return concat([stopGradient(slice(x, axis, 0, b - 1)), slice(x, axis, b - 1, b)], axis);
}

function updateOf({ A, B }: Params, o: Options, live: Live): ReturnType<typeof lowRank> {
  const b = Math.min(A.shape[0]!, live.training ? (live.values["dylora/rank"] ?? o.r) : (o.rank ?? o.r));
  const frozen = live.training && o.frozen;
  return lowRank(prefix(B, 1, b, frozen), prefix(A, 0, b, frozen), o.alpha / (o.scaling === "alpha/b" ? b : o.r));
}

/** Everything of a tensor but the slice `at` of an axis, put back. */
function restore(x: Tensor, before: Tensor, axis: 0 | 1, at: number): void {
  const [to, from] = [hostView(x) as Float32Array, hostView(before) as Float32Array];
  const width = x.shape[1]!;
  for (let i = 0; i < to.length; i++) if ((axis === 0 ? Math.floor(i / width) : i % width) !== at) to[i] = from[i]!;
}

function regime(o: Options): Regime<Params> {
  let held: { x: Tensor; before: Tensor; axis: 0 | 1 }[] = [];
  return {
    beforeForward({ live, rng }: Training<Params>) {
      live.values["dylora/rank"] = o.rMin + rng.integer(o.r - o.rMin + 1);
    },
    // momentum would move rows that had no gradient, so weights, moments and counts of the others are put back
    ...(o.frozen
      ? {
          beforeStep(t: Training<Params>) {
            held = t.views.flatMap(({ params }) =>
              (["A", "B"] as const).flatMap((name) => {
                const w = params[name] as Parameter;
                const axis = name === "A" ? 0 : 1;
                countsByElement(t, w);
                const moments = t.moments(w).flatMap((state) => Object.values(state).filter((x) => typeof x === "object")) as Tensor[];
                if (moments.some(({ size }) => size !== w.size))
                  throw new StrutError(
                    "option",
                    `dylora: the optimiser keeps no average for each number of ${w.name}, so the rows of other ranks cannot stand still`,
                    {
                      path: "frozen",
                      hint: "Use adamw or sgd with averages in f32, or leave out frozen.",
                    },
                  );
                return [w, ...moments].map((x) => ({ x, before: copyOf(x), axis }) as const);
              }),
            );
          },
          afterStep({ live }: Training<Params>) {
            for (const { x, before, axis } of held) restore(x, before, axis, live.values["dylora/rank"]! - 1);
            held = [];
          },
        }
      : {}),
  };
}

/**
 * DyLoRA: one LoRA that works at every rank b from rMin to r, ΔW_b = (α/b)·B[:, :b]·A[:b]; each step trains at one sampled rank.
 * Valipour et al. 2023, arXiv:2210.07558. `toLora(atRank(tuned, b))` is the plain LoRA of rank b.
 *
 * @example
 * const tuned = await adapt(model, dylora, { r: 8 });
 * const small = atRank(tuned, 2);
 */
export const dylora = adapter({
  id: "dylora",
  title: "DyLoRA",
  paper: "arXiv:2210.07558",
  kinds: ["linear"],
  options,
  waives: [
    {
      law: "gradients of its parameters match finite differences",
      because: 'dylora.md: "the first b−1 rows/columns are detached, only row b of A and column b of B learn"',
    },
  ],
  begins: "factors",
  init(site, o, context): Params {
    if (o.rMin > o.r || (o.rank ?? 1) > o.r)
      throw new StrutError("option", `dylora: rMin ${o.rMin} and rank ${o.rank ?? o.r} must not be above r ${o.r}`, { path: o.rMin > o.r ? "rMin" : "rank" });
    return initLora(site, o, context) as Params;
  },
  update: (p: Params, _site, o, live) => updateOf(p, o, live),
  forward: (x, y, p, site, o, live) => addAt(site, updateOf(p, o, live), y, dropInput(x, o, site, live)),
  regime,
  layout: {
    type: "LORA",
    beside: true,
    // PEFT would run at r
    own: { rank: undefined },
    options: loraPeftOptions,
    fixed: { use_dora: false },
    tensors: { linear: { A: "lora_A.weight", B: "lora_B.weight" } },
  },
});

/**
 * The same model with a DyLoRA at another rank; nothing is copied. Saved below r it is no directory for PEFT, which would run it at r;
 * `toLora` makes one.
 *
 * @example
 * const quarter = atRank(await adapt(model, dylora, { r: 8 }), 2);
 */
export function atRank(model: Model, rank: number, name = model.active[0] ?? "default"): Model {
  const set = attachedTo(model, name);
  if (set?.method !== dylora.id)
    throw new StrutError("adapter", `${name} is no DyLoRA, so its rank cannot be chosen`, { hint: "Convert it with toLora instead." });
  const r = set.options["r"] as number;
  if (!(Number.isInteger(rank) && rank >= 1 && rank <= r)) throw new StrutError("option", `rank is ${rank}; ${name} works at ranks 1…${r}`, { path: "rank" });
  const { rank: _, ...rest } = set.options;
  return withAdapters(model, new Map([...model.adapters, [name, { ...set, options: rank === r ? rest : { ...rest, rank } }]]), model.active);
}
