import { lora, randlora } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

export default {
  title: "RandLoRA and LoRA of like size on the linear teacher",
  sheet:
    "flat spectrum: LoRA r4 (448) .914, RandLoRA r6 (432) .805; r7 (784) .851, r3 (816) .702; r1 (112) .978, r48 (96) .947; rank-4 target .000 and .480 (randlora.md)",
  note: "Our figure is a norm, the sheet's its square: .805 is .897 here. The order turns on a random target of full rank whose singular values fall (Gaussian numbers): LoRA r4 .870, RandLoRA r6 .896.",
  better: "lower",
  async rows() {
    const [flat, rank4] = [await linearTeacher({ target: "orthogonal", inputs: "flat" }), await linearTeacher({ target: "rank4", inputs: "flat" })];
    const course = { steps: 600, learningRate: [1e-2, 3e-2] };
    const bases = (r: number) => ({ r, randloraAlpha: 2 * r });
    return [
      await row("flat, LoRA r 1", flat, lora, { r: 1, alpha: 1 }, course),
      await row("flat, RandLoRA r 48", flat, randlora, bases(48), course),
      await row("flat, LoRA r 4", flat, lora, { r: 4, alpha: 4 }, course),
      await row("flat, RandLoRA r 6", flat, randlora, bases(6), course),
      await row("flat, LoRA r 7", flat, lora, { r: 7, alpha: 7 }, course),
      await row("flat, RandLoRA r 3", flat, randlora, bases(3), course),
      await row("rank 4, LoRA r 4", rank4, lora, { r: 4, alpha: 4 }, course),
      await row("rank 4, RandLoRA r 6", rank4, randlora, bases(6), course),
    ];
  },
  orders: [
    ["flat, RandLoRA r 48", "flat, LoRA r 1"],
    ["flat, RandLoRA r 6", "flat, LoRA r 4"],
    ["flat, RandLoRA r 3", "flat, LoRA r 7"],
    ["flat, RandLoRA r 3", "flat, RandLoRA r 6"],
    ["flat, RandLoRA r 6", "flat, RandLoRA r 48"],
    ["rank 4, LoRA r 4", "rank 4, RandLoRA r 6"],
  ],
} satisfies Recipe;
