import { lora } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

export default {
  title: "LoRA on the linear teacher, by rank",
  sheet: "target of full rank, flat inputs: LoRA r4 (448) .914; rank-4 target: LoRA r4 .000 (nola.md, randlora.md)",
  better: "lower",
  quick: true,
  async rows() {
    const [full, rank4] = [await linearTeacher({ target: "full", inputs: "flat" }), await linearTeacher({ target: "rank4", inputs: "flat" })];
    const course = { steps: 400, learningRate: 1e-2 };
    return [
      await row("full rank, r 1", full, lora, { r: 1, alpha: 1 }, course),
      await row("full rank, r 4", full, lora, { r: 4, alpha: 4 }, course),
      await row("rank 4, r 1", rank4, lora, { r: 1, alpha: 1 }, course),
      await row("rank 4, r 4", rank4, lora, { r: 4, alpha: 4 }, course),
    ];
  },
  orders: [
    ["full rank, r 4", "full rank, r 1"],
    ["rank 4, r 4", "rank 4, r 1"],
    ["rank 4, r 4", "full rank, r 4"],
  ],
} satisfies Recipe;
