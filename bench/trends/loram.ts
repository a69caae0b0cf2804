import { chooseKept, lora, pruneModel, recover, type Kept, type PruneOptions } from "strut/adapters";
import { unfreeze, type Model } from "strut/models";
import { train } from "strut/training";
import { seeds, type Recipe, type Row } from "./recipe.ts";
import { characters } from "./scaffolds/characters.ts";
import { frozen, run } from "./scaffolds/model.ts";

const tuning = { steps: 150, learningRate: 3e-3 };

export default {
  title: "LoRAM: LoRA trained on a pruned base and put back into the full one, on capitals",
  sheet:
    "residual MLP, accuracy: no tuning .948, LoRA r4 on the full base .978; half pruned and aligned .969 → recovered .973, unaligned .964 → .954, random aligned .970, " +
    "normal fill .923; three quarters pruned .943 → .956; at a larger shift recovered .940 < pruned .949 < full LoRA .957 (loram.md)",
  better: "lower",
  async rows() {
    const [task, old] = [await characters("trained"), await characters("random")];
    // windows hold the character after the context too
    const calibration = [await old.batch(7, 0), await old.batch(7, 1)].map(({ ids }) => ({ ids: ids.map((window) => Array.from(window).slice(0, -1)) }));
    const choose = (options: Partial<PruneOptions>): Promise<Kept> => chooseKept(task.base, { ratio: 0.5, calibration, untouched: [0, 0], ...options });
    const aligned = async (small: Model): Promise<Model> =>
      frozen((await train(unfreeze(small), { batches: (k) => old.batch(8, k), steps: 150, learningRate: 2e-3, clip: 1 })).model);
    /** The figures on the pruned base and after recovery, by what fills the cut columns. */
    const trial = async (label: string, kept: Kept, small: Model, fills: readonly ("zero" | "normal")[] = ["zero"]): Promise<Row[]> => {
      const own: number[] = [];
      const recovered = fills.map((): number[] => []);
      let parameters = 0;
      for (const seed of seeds) {
        const { model, figure, parameters: count } = await run({ ...task, base: small }, lora, { r: 4, alpha: 8 }, seed, tuning);
        own.push(figure);
        for (const [i, fill] of fills.entries()) recovered[i]!.push(await task.measure(recover(model, task.base, kept, { fill, seed })));
        parameters = count;
      }
      return [
        { label: `${label}, on the pruned base`, parameters, values: own },
        ...fills.map((fill, i) => ({ label: `${label}, recovered${fill === "zero" ? "" : " with noise"}`, parameters, values: recovered[i]! })),
      ];
    };
    const [half, any, most] = [await choose({}), await choose({ select: "random" }), await choose({ ratio: 0.75 })];
    const whole: number[] = [];
    let parameters = 0;
    for (const seed of seeds) {
      const result = await run(task, lora, { r: 4, alpha: 8 }, seed, tuning);
      whole.push(result.figure);
      parameters = result.parameters;
    }
    return [
      { label: "no tuning", parameters: 0, values: [await task.measure(task.base)] },
      { label: "LoRA on the full base", parameters, values: whole },
      ...(await trial("half, aligned", half, await aligned(pruneModel(task.base, half)), ["zero", "normal"])),
      ...(await trial("half, unaligned", half, pruneModel(task.base, half))),
      ...(await trial("random half, aligned", any, await aligned(pruneModel(task.base, any)))),
      ...(await trial("three quarters, aligned", most, await aligned(pruneModel(task.base, most)))),
    ];
  },
  orders: [],
} satisfies Recipe;
