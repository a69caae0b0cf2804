import { allora, lora } from "strut/adapters";
import { sgd } from "strut/optimizers";
import { row, type Recipe } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

export default {
  title: "ALLoRA beside LoRA in short runs on the linear teacher",
  sheet: "not measured; expectation: fewer steps to LoRA's 100-step loss under SGD, not worse under Adam (allora.md)",
  note:
    "Under SGD at one rate ALLoRA is where LoRA is after 100 steps before its 75th; LoRA at twice the rate, which is η, is there as well: the gain is " +
    "the larger step. At 30 steps with the best of three rates it leads within the spread of LoRA's seeds, under Adam at the best rate the two are alike.",
  better: "lower",
  quick: true,
  async rows() {
    const teacher = await linearTeacher({ target: "rank4", inputs: "flat" });
    const both = async (name: string, steps: number, learningRate: number | readonly number[], more: { optimizer?: typeof sgd }) => [
      await row(`LoRA, ${name}`, teacher, lora, { r: 4, alpha: 4 }, { steps, learningRate, more }),
      await row(`ALLoRA, ${name}`, teacher, allora, { r: 4 }, { steps, learningRate, more }),
    ];
    return [
      ...(await both("SGD, 75 steps", 75, 1, { optimizer: sgd })),
      ...(await both("SGD, 100 steps", 100, 1, { optimizer: sgd })),
      await row("LoRA, SGD, 100 steps, twice the rate", teacher, lora, { r: 4, alpha: 4 }, { steps: 100, learningRate: 2, more: { optimizer: sgd } }),
      ...(await both("SGD, 30 steps, best rate", 30, [1, 3, 6], { optimizer: sgd })),
      ...(await both("Adam, 100 steps", 100, 3e-3, {})),
      ...(await both("Adam, 100 steps, best rate", 100, [3e-3, 1e-2, 3e-2], {})),
    ];
  },
  orders: [["ALLoRA, SGD, 100 steps", "LoRA, SGD, 100 steps"]],
} satisfies Recipe;
