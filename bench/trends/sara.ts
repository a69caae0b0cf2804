import { activate, adapt, fullFineTuning, lora, merge, sara, type Adapter } from "strut/adapters";
import type { Model } from "strut/models";
import { Rng, tensor } from "strut/tensor";
import { seeds, type Recipe, type Row } from "./recipe.ts";
import { characters } from "./scaffolds/characters.ts";
import { run } from "./scaffolds/model.ts";

/** Cross-entropy on the new text at which a run ends; the base has 4.08. */
const GOAL = 2.7;
const inside = ({ path }: { readonly path: string }): boolean => path.startsWith("model.layers.") && !path.includes("norm");

/** The base with a share of each matrix at zero: its smallest weights, or any. */
async function zeroed(base: Model, share: number, order: (values: Float32Array, path: string) => ArrayLike<number>): Promise<Model> {
  // merging an adapter that does nothing copies its matrices
  const copy = merge(await adapt(activate(base, []), fullFineTuning, {}, { targets: "all-linear" }));
  for (const [path, { spec, weight }] of copy.layers) {
    if (!inside(spec)) continue;
    const values = (await weight.data()) as Float32Array;
    const keys = order(values, path);
    const places = [...values.keys()].sort((a, b) => keys[a]! - keys[b]!);
    for (const place of places.slice(0, Math.round(share * values.length))) values[place] = 0;
    weight.assign(tensor(values, weight.shape));
  }
  return copy;
}

export default {
  title: "SaRA's retention: loss on the old text when the new one is learnt, beside LoRA and full fine-tuning",
  sheet:
    "not measured; expected: zeroing the smallest 10 to 20 % barely moves the old loss, a random 20 % hurts; at equal loss on the new task " +
    "SaRA ≤ LoRA < full on the old one (sara.md)",
  note: "At one learning rate the sheet's order holds, SaRA before LoRA before full; but much of it is the rate: full fine-tuning at a tenth of it, which takes as many steps as SaRA at half, forgets as little. A run ends at the first cross-entropy of 2.7 on the new text, seen every five steps.",
  better: "lower",
  async rows() {
    const [task, old] = [await characters("trained"), await characters("random")];
    // oxlint-disable-next-line typescript/no-explicit-any -- a method of any options
    const learnt = async (label: string, method: Adapter<any, any, any>, options: Readonly<Record<string, unknown>>, learningRate: number): Promise<Row> => {
      const values: number[] = [];
      let count = 0;
      for (const seed of seeds) {
        const stop = new AbortController();
        const until = {
          afterStep: async (t: { step: number; model: object }) => void (t.step % 5 === 4 && (await task.measure(t.model as Model)) <= GOAL && stop.abort()),
        };
        const { model, figure, parameters } = await run(task, method, options, seed, {
          steps: 400,
          learningRate,
          more: { regimes: [until], signal: stop.signal },
        });
        if (figure > GOAL) throw new Error(`${label} does not come to ${GOAL}: ${figure}`);
        values.push(await old.measure(model));
        count = parameters;
      }
      return { label, parameters: count, values };
    };
    const without = async (label: string, models: readonly Model[]): Promise<Row> => {
      const values: number[] = [];
      for (const model of models) values.push(await old.measure(model));
      return { label, parameters: 0, values };
    };
    const smallest = (share: number): Promise<Model> => zeroed(task.base, share, (values) => values.map(Math.abs));
    const random = (seed: number): Promise<Model> => zeroed(task.base, 0.2, (values, path) => new Rng(seed).fork(path).permutation(values.length));
    const holed: Model[] = [];
    for (const seed of seeds) holed.push(await random(seed));
    return [
      await without("base", [task.base]),
      await without("smallest 10 % at zero", [await smallest(0.1)]),
      await without("smallest 20 % at zero", [await smallest(0.2)]),
      await without("random 20 % at zero", holed),
      await learnt("SaRA 20 %, rate 1e-3", sara, { share: 0.2 }, 1e-3),
      await learnt("SaRA 20 %, rate 5e-4", sara, { share: 0.2 }, 5e-4),
      await learnt("LoRA r 9, rate 1e-3", lora, { r: 9, alpha: 9 }, 1e-3),
      await learnt("LoRA r 9, rate 5e-4", lora, { r: 9, alpha: 9 }, 5e-4),
      await learnt("full, rate 1e-3", fullFineTuning, {}, 1e-3),
      await learnt("full, rate 1e-4", fullFineTuning, {}, 1e-4),
    ];
  },
  orders: [
    ["smallest 20 % at zero", "random 20 % at zero"],
    ["SaRA 20 %, rate 1e-3", "LoRA r 9, rate 1e-3"],
    ["LoRA r 9, rate 1e-3", "full, rate 1e-3"],
    ["full, rate 1e-4", "LoRA r 9, rate 5e-4"],
  ],
} satisfies Recipe;
