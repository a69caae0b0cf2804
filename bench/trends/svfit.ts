import { lora, svfit } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

export default {
  title: "SVFit on the linear teacher: on its manifold and off it",
  sheet:
    "other singular values: SVFit r48 (48) .000, SVFit r16 .727, LoRA r1 (112) .773, LoRA r16 (1792) .127; random full-rank change: SVFit r48 .933, LoRA r1 .824 (svfit.md)",
  note: "No seed of SVFit differs at its start; the spread is that of the batches. Off its manifold LoRA r 1 is ahead, as in the sheet.",
  better: "lower",
  async rows() {
    const own = await linearTeacher({ target: "singular-values", inputs: "anisotropic" });
    const full = await linearTeacher({ target: "full", inputs: "anisotropic" });
    const course = { steps: 600, learningRate: [1e-2, 3e-2] };
    return [
      await row("own singular values, SVFit r 48", own, svfit, { r: 48 }, course),
      await row("own singular values, SVFit r 16", own, svfit, { r: 16 }, course),
      await row("own singular values, LoRA r 1", own, lora, { r: 1, alpha: 1 }, course),
      await row("full rank, SVFit r 48", full, svfit, { r: 48 }, course),
      await row("full rank, LoRA r 1", full, lora, { r: 1, alpha: 1 }, course),
    ];
  },
  orders: [
    ["own singular values, SVFit r 48", "own singular values, LoRA r 1"],
    ["own singular values, SVFit r 48", "own singular values, SVFit r 16"],
    ["own singular values, SVFit r 16", "own singular values, LoRA r 1"],
    ["full rank, LoRA r 1", "full rank, SVFit r 48"],
  ],
} satisfies Recipe;
