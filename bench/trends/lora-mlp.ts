import { lora } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { residualMlp } from "./scaffolds/residual-mlp.ts";

export default {
  title: "LoRA on the residual MLP, by rank",
  sheet: "LoRA r1 (1536) .886/.899, r2 (3072) .954/.960, r8 (12288) .972/.983, at lr 3e-3/1e-2 (mos.md)",
  better: "higher",
  async rows() {
    const mlp = await residualMlp();
    const course = { steps: 400, learningRate: [3e-3, 1e-2] };
    return [
      await row("untrained", mlp, lora, { r: 1, alpha: 1 }, { steps: 0, learningRate: 0 }, "higher"),
      await row("r 1", mlp, lora, { r: 1, alpha: 1 }, course, "higher"),
      await row("r 2", mlp, lora, { r: 2, alpha: 2 }, course, "higher"),
      await row("r 8", mlp, lora, { r: 8, alpha: 8 }, course, "higher"),
    ];
  },
  orders: [
    ["r 1", "untrained"],
    ["r 2", "r 1"],
    ["r 8", "r 2"],
  ],
} satisfies Recipe;
