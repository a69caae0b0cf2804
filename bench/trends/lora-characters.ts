import { fullFineTuning, lora } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { characters } from "./scaffolds/characters.ts";

export default {
  title: "LoRA on characters, by rank and base",
  sheet: "500 steps on licence texts, best rate: AdamW on all weights 1.63/1.73, LoRA r8 on a frozen random base 2.19/2.19 (galore.md)",
  note: "Here 100 steps at one rate each, on the matrices between embedding and head alone: the order of the sheet, its distance (.5 nats) not.",
  better: "lower",
  async rows() {
    const [fresh, trained] = [await characters("random"), await characters("trained")];
    const course = { steps: 100, learningRate: 1e-2 };
    return [
      await row("random base, r 8", fresh, lora, { r: 8, alpha: 8 }, course),
      await row("trained base, untrained r 1", trained, lora, { r: 1, alpha: 1 }, { steps: 0, learningRate: 0 }),
      await row("trained base, r 1", trained, lora, { r: 1, alpha: 1 }, course),
      await row("trained base, r 8", trained, lora, { r: 8, alpha: 8 }, course),
      await row("random base, all matrices", fresh, fullFineTuning, {}, { steps: 100, learningRate: 3e-3 }),
    ];
  },
  orders: [
    ["trained base, r 1", "trained base, untrained r 1"],
    ["trained base, r 8", "trained base, r 1"],
    ["random base, all matrices", "random base, r 8"],
  ],
} satisfies Recipe;
