import { lora } from "strut/adapters";
import { adamw, galore, lisa, owlore } from "strut/optimizers";
import { row, type Recipe } from "./recipe.ts";
import { characters } from "./scaffolds/characters.ts";

export default {
  title: "OwLore: two of six blocks at a time, drawn by their outliers, beside LISA's even draws and training all",
  sheet:
    "not measured; expected: full ≤ OwLore ≲ LISA < owl_reverse at equal steps; a toy of six layers has weak outliers, so owl no worse than even draws (owlore.md)",
  note:
    "Outliers are counted above five times the mean; all rows have the rate 3e-3. Only what training at all, and training all blocks, brings was " +
    "foreseen firmly enough to be asserted.",
  better: "lower",
  async rows() {
    const task = await characters("trained", "llama", 6);
    const course = { steps: 300, learningRate: 3e-3 };
    const low = { rank: 8, updateProjGap: 50, scale: 1 };
    const sampled = { activatedLayers: 2, intervalSteps: 10, outlierThreshold: 5 };
    return [
      await row("untrained", task, lora, { r: 8 }, { steps: 0, learningRate: 0 }),
      await row("AdamW, all blocks", task, adamw, { weightDecay: 0 }, course),
      await row("GaLore, all blocks", task, galore, low, course),
      await row("OwLore, owl", task, owlore, { ...low, ...sampled }, course),
      await row("OwLore, owl_reverse", task, owlore, { ...low, ...sampled, probMode: "owl_reverse" }, course),
      await row("OwLore, even draws", task, owlore, { ...low, ...sampled, probMode: "uniform" }, course),
      await row("LISA", task, lisa, { weightDecay: 0, activatedLayers: 2, intervalSteps: 10 }, course),
      await row("LoRA r8", task, lora, { r: 8, alpha: 16 }, course),
    ];
  },
  orders: [
    ["OwLore, owl", "untrained"],
    ["LISA", "untrained"],
    ["AdamW, all blocks", "OwLore, owl"],
  ],
} satisfies Recipe;
