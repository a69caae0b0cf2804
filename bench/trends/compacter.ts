import { bottleneck, compacter, lora } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { residualMlp } from "./scaffolds/residual-mlp.ts";

export default {
  title: "Compacter beside its dense bottleneck on the residual MLP",
  sheet:
    "not measured there; expected: parameters dense : PHM : Compacter ≈ 1 : .42 : .20, quality within 1–2 points of the dense adapter (compacter.md, corrected)",
  note: "After 300 batches Compacter is ten points behind the dense adapter, not one or two, and LoRA r 1 is ahead of it with fewer numbers; the ratios of parameters are as expected. The start of the rules makes no difference beyond the spread.",
  better: "higher",
  async rows() {
    const mlp = await residualMlp();
    const course = { steps: 300, learningRate: [3e-3, 1e-2] };
    const serial = { width: 8, unfreezeLayerNorms: false };
    return [
      await row("bottleneck, width 8", mlp, bottleneck, serial, course, "higher"),
      await row("PHM adapter, n 4", mlp, compacter, { ...serial, factorizedPhmW: false, sharedPhmRule: false }, course, "higher"),
      await row("Compacter, n 4", mlp, compacter, { ...serial, phmInitRange: 0.01 }, course, "higher"),
      await row("Compacter, n 4, rules from 1e-4", mlp, compacter, serial, course, "higher"),
      await row("LoRA r 1", mlp, lora, { r: 1, alpha: 1 }, course, "higher"),
    ];
  },
  orders: [
    ["bottleneck, width 8", "PHM adapter, n 4"],
    ["PHM adapter, n 4", "Compacter, n 4"],
    ["LoRA r 1", "Compacter, n 4"],
  ],
} satisfies Recipe;
