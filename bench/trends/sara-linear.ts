import { lora, sara } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

export default {
  title: "SaRA's fit on the linear teacher: how many weights, the switch halfway, the nuclear norm",
  sheet:
    "20 % smallest (613) .612, 10 % .763, LoRA r4 (448) .537; switch at half of the run .611; λ 5e-4/5e-3/2e-2 mostly shrinks the change: fit alone does not favour SaRA (sara.md)",
  note: "Our figure is a norm, the sheet's its square. The switch costs nothing, as in the sheet. The pull does more here than shrink: at 2e-2 it outweighs the loss, whose gradient is small on this teacher, and the error ends above the base's.",
  better: "lower",
  async rows() {
    const full = await linearTeacher({ target: "full", inputs: "flat" });
    const course = { steps: 600, learningRate: [3e-3, 1e-2] };
    const smallest = (label: string, share: number, more: Readonly<Record<string, number>> = {}) =>
      row(label, full, sara, { share, leastSide: 0, leastCount: 0, ...more }, course);
    return [
      await smallest("SaRA 10 %", 0.1),
      await smallest("SaRA 20 %", 0.2),
      await smallest("SaRA 20 %, switch at half", 0.2, { progressiveIter: 300 }),
      await smallest("SaRA 20 %, λ 5e-4", 0.2, { lambdaRank: 5e-4 }),
      await smallest("SaRA 20 %, λ 2e-2", 0.2, { lambdaRank: 2e-2 }),
      await row("LoRA r 4", full, lora, { r: 4, alpha: 4 }, course),
    ];
  },
  orders: [
    ["SaRA 20 %", "SaRA 10 %"],
    ["LoRA r 4", "SaRA 20 %"],
  ],
} satisfies Recipe;
