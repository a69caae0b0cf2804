import { lora, loram, recover } from "strut/adapters";
import { chooseKept, prune, pruneModel, quantizeModel, unfreeze, type Kept, type Model, type PruneOptions } from "strut/models";
import { train } from "strut/training";
import { row, seeds, type Recipe, type Row } from "./recipe.ts";
import { characters } from "./scaffolds/characters.ts";
import { frozen, run, type Scaffold } from "./scaffolds/model.ts";

const tuning = { steps: 100, learningRate: 3e-3 };

export default {
  title: "LoRAM: LoRA trained on a pruned base and put back into the full one",
  sheet:
    "residual MLP, accuracy: no tuning .948, LoRA r4 on the full base .978; half pruned and aligned .969 → recovered .973, unaligned .964 → .954, random aligned .970, " +
    "normal fill .923; three quarters pruned .943 → .956; at a larger shift recovered .940 < pruned .949 < full LoRA .957 (loram.md)",
  note: "Where the task is more of what the base knows, recovery improves on the aligned pruned model and alignment is what makes it work, as in the sheet; but recovered it does not reach the untuned base, which plain LoRA does improve on. On capitals, a large shift, recovery loses much of what was learnt, more so the longer the pruned model was aligned. Noise in the cut columns makes no difference beyond the spread. In 4 bits the pruned base loses .004 nats and the recovered one .007. Zeros in places instead of cuts (SparseGPT: half of fours, half of the entries, neither aligned) leave the pruned base nearly as good as the untuned one, far ahead of unaligned cuts; recovery loses again what was learnt there, .02 to .03 nats: what made up for the zeros is in the way once the weights are back.",
  better: "lower",
  async rows() {
    const [task, old] = [await characters("trained"), await characters("random")];
    // windows hold the character after the context too
    const calibration = [await old.batch(7, 0), await old.batch(7, 1)].map(({ ids }) => ({ ids: ids.map((window) => Array.from(window).slice(0, -1)) }));
    const choose = (options: Partial<PruneOptions>): Promise<Kept> => chooseKept(task.base, { ratio: 0.5, calibration, untouched: [0, 0], ...options });
    const aligned = async (small: Model): Promise<Model> =>
      frozen((await train(unfreeze(small), { batches: (k) => old.batch(8, k), steps: 150, learningRate: 5e-4, clip: 1 })).model);
    /** The figures on the pruned base and after recovery, by what fills the cut columns. */
    const trial = async (scaffold: Scaffold, label: string, kept: Kept, small: Model, fills: readonly ("zero" | "normal")[] = ["zero"]): Promise<Row[]> => {
      const own: number[] = [];
      const recovered = fills.map((): number[] => []);
      let parameters = 0;
      for (const seed of seeds) {
        const { model, figure, parameters: count } = await run({ ...scaffold, base: small }, loram, { r: 4, alpha: 8, dropout: 0 }, seed, tuning);
        own.push(figure);
        for (const [i, fill] of fills.entries()) recovered[i]!.push(await scaffold.measure(recover(model, task.base, kept, { fill, seed })));
        parameters = count;
      }
      return [
        { label: `${label}, on the pruned base`, parameters, values: own },
        ...fills.map((fill, i) => ({ label: `${label}, recovered${fill === "zero" ? "" : " with noise"}`, parameters, values: recovered[i]! })),
      ];
    };
    const whole = async (scaffold: Scaffold, label: string): Promise<Row[]> => [
      { label: `${label}, no tuning`, parameters: 0, values: [await scaffold.measure(scaffold.base)] },
      await row(`${label}, LoRA on the full base`, scaffold, lora, { r: 4, alpha: 8 }, tuning),
    ];
    const [half, any] = [await choose({}), await choose({ variant: "rand" })];
    const small = pruneModel(task.base, half);
    const [ready, random] = [await aligned(small), await aligned(pruneModel(task.base, any))];
    const sparse = async (variant: "semi" | "unst") => prune(task.base, { variant, ratio: 0.5, calibration, untouched: [0, 0] });
    const [fours, entries] = [await sparse("semi"), await sparse("unst")];
    const more = { ...old, base: task.base };
    return [
      ...(await whole(more, "same text")),
      ...(await trial(more, "same text, aligned", half, ready, ["zero", "normal"])),
      ...(await trial(more, "same text, aligned, in 4 bits", half, quantizeModel(ready))),
      ...(await trial(more, "same text, unaligned", half, small)),
      ...(await trial(more, "same text, half of fours, unaligned", fours.kept, fours.model)),
      ...(await trial(more, "same text, half of the entries, unaligned", entries.kept, entries.model)),
      ...(await trial(more, "same text, random half, aligned", any, random)),
      ...(await whole(task, "capitals")),
      ...(await trial(task, "capitals, aligned", half, ready)),
      ...(await trial(task, "capitals, unaligned", half, small)),
    ];
  },
  orders: [
    ["same text, aligned, recovered", "same text, aligned, on the pruned base"],
    ["same text, aligned, recovered", "same text, unaligned, recovered"],
    ["same text, LoRA on the full base", "same text, aligned, recovered"],
    ["capitals, aligned, on the pruned base", "capitals, aligned, recovered"],
    ["capitals, aligned, recovered", "capitals, no tuning"],
  ],
} satisfies Recipe;
