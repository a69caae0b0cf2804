import { lora, loraXs } from "strut/adapters";
import { loraSb } from "strut/initializers";
import { row, type Recipe } from "./recipe.ts";
import { residualMlp } from "./scaffolds/residual-mlp.ts";

export default {
  title: "LoRA-SB on the residual MLP, by the samples that its step is estimated on",
  sheet: "not measured; to be repeated on a small classifier with an estimate of 50 samples (lora-sb.md)",
  note:
    "With 64 samples, about the sheet's 50, LoRA-SB has no lead over LoRA-XS or LoRA here; with 512 it has. The paper's estimates are of 50 to 170 texts, each of hundreds of " +
    "tokens. The asserted orders were set after these figures were seen.",
  better: "higher",
  async rows() {
    const mlp = await residualMlp();
    const course = { steps: 400, learningRate: [3e-3, 1e-2, 3e-2] };
    const started = (calibrationBatches: number) => ({ ...course, initializer: { method: loraSb }, calibrationBatches });
    return [
      await row("LoRA r 1", mlp, lora, { r: 1, alpha: 1 }, course, "higher"),
      await row("LoRA-XS r 16", mlp, loraXs, { r: 16, alpha: 16 }, course, "higher"),
      await row("LoRA-SB r 16, 64 samples", mlp, loraXs, { r: 16, alpha: 16 }, started(1), "higher"),
      await row("LoRA-SB r 16, 512 samples", mlp, loraXs, { r: 16, alpha: 16 }, started(8), "higher"),
    ];
  },
  orders: [
    ["LoRA-SB r 16, 512 samples", "LoRA-XS r 16"],
    ["LoRA-SB r 16, 512 samples", "LoRA r 1"],
    ["LoRA-SB r 16, 512 samples", "LoRA-SB r 16, 64 samples"],
  ],
} satisfies Recipe;
