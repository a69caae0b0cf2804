import { flora, lokr, lora } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { textures } from "./scaffolds/textures.ts";

export default {
  title: "FLoRA beside a flattened LoRA on convolutions",
  sheet: "not measured there; expected: FLoRA [r, r, 2, 2] at least as good as the flattened LoRA of as many parameters where r is small (flora.md)",
  note:
    "As expected, with 300 steps and the best of three rates each. After 50 steps at 1e-2 no order shows (FLoRA .199, LoRA .224 ± .047, LoKr .163), " +
    "all of them near the .125 of guessing.",
  better: "higher",
  async rows() {
    const task = await textures();
    const targets = ["conv1", "conv2"];
    const course = { steps: 300, targets, learningRate: [3e-3, 1e-2, 3e-2] };
    return [
      await row("untrained", task, lora, { r: 1, alpha: 4 }, { ...course, steps: 0, learningRate: 0 }, "higher"),
      await row("FLoRA [3, 3, 2, 2]", task, flora, { r: 3, dropout: 0 }, course, "higher"),
      await row("LoRA r 1", task, lora, { r: 1, alpha: 4 }, course, "higher"),
      await row("LoKr r 1", task, lokr, { r: 1, alpha: 4 }, course, "higher"),
    ];
  },
  orders: [["FLoRA [3, 3, 2, 2]", "LoRA r 1"]],
} satisfies Recipe;
