import { flora, lokr, lora } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { textures } from "./scaffolds/textures.ts";

export default {
  title: "FLoRA beside a flattened LoRA on convolutions",
  sheet: "not measured there; expected: FLoRA [r, r, 2, 2] at least as good as the flattened LoRA of as many parameters where r is small (flora.md)",
  note: "FLoRA is not ahead here: behind LoRA in the mean and far more spread over the seeds, within that spread. One learning rate was tried for all; with less noise (0.8) and 100 steps every row is at its ceiling.",
  better: "higher",
  async rows() {
    const task = await textures();
    const targets = ["conv1", "conv2"];
    const course = { steps: 50, targets, learningRate: 1e-2 };
    return [
      await row("FLoRA [3, 3, 2, 2]", task, flora, { r: 3, dropout: 0 }, course, "higher"),
      await row("LoRA r 1", task, lora, { r: 1, alpha: 4 }, course, "higher"),
      await row("LoKr r 1", task, lokr, { r: 1, alpha: 4 }, course, "higher"),
    ];
  },
  orders: [],
} satisfies Recipe;
