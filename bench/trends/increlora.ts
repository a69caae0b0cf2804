import { increlora, lora } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { residualMlp } from "./scaffolds/residual-mlp.ts";

export default {
  title: "IncreLoRA on the residual MLP, to a mean rank of 2",
  sheet: "growth .962±.001, random .955±.002, round-robin .951±.004, LoRA of rank 2 .962±.004",
  note: "It ties with LoRA of rank 2 here, as in the sheet, and leads growth in turn by a point; random growth lies within the spread of both. The parameters are those at the start; at the end they are LoRA's and a number a component.",
  better: "higher",
  async rows() {
    const scaffold = await residualMlp();
    const course = { steps: 450, learningRate: 1e-2 };
    // IncreLoRA's components have such a schedule of their own
    const falling = { ...course, more: { schedule: "linear" } } as const;
    const growing = { targetRank: 2, topH: 1, increInterval: 30, initWarmup: 20 };
    return [
      await row("IncreLoRA to rank 2", scaffold, increlora, growing, course, "higher"),
      await row("random growth to rank 2", scaffold, increlora, { ...growing, allocation: "random" }, course, "higher"),
      await row("growth in turn to rank 2", scaffold, increlora, { ...growing, allocation: "round-robin" }, course, "higher"),
      await row("LoRA, rank 2", scaffold, lora, { r: 2, alpha: 16 }, falling, "higher"),
      await row("LoRA, rank 1", scaffold, lora, { r: 1, alpha: 16 }, falling, "higher"),
    ];
  },
  orders: [
    ["IncreLoRA to rank 2", "LoRA, rank 1"],
    ["IncreLoRA to rank 2", "growth in turn to rank 2"],
  ],
} satisfies Recipe;
