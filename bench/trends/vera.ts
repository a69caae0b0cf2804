import { lora, loraXs, vera } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

export default {
  title: "VeRA and LoRA-XS beside LoRA of like size on the linear teacher",
  sheet: "LoRA-XS r20 (400) .767, LoRA r4 (448) .537 on a target of full rank; .786 and .000 on one of rank 4 (lora-sb.md); VeRA was not measured",
  note: "On a flat target, where LoRA can only take 4 of 48 directions, VeRA and LoRA-XS are ahead of LoRA r4; on Gaussian numbers as the target LoRA r4 is (.870; VeRA .884, LoRA-XS .932).",
  better: "lower",
  async rows() {
    const [flat, rank4] = [await linearTeacher({ target: "orthogonal", inputs: "flat" }), await linearTeacher({ target: "rank4", inputs: "flat" })];
    const course = { steps: 600, learningRate: [1e-2, 3e-2] };
    return [
      await row("flat, LoRA r 1 (112)", flat, lora, { r: 1, alpha: 1 }, course),
      await row("flat, VeRA r 64 (112)", flat, vera, { r: 64 }, course),
      await row("flat, VeRA r 400 (448)", flat, vera, { r: 400 }, course),
      await row("flat, LoRA-XS r 20 (400)", flat, loraXs, { r: 20, alpha: 20 }, course),
      await row("flat, LoRA r 4 (448)", flat, lora, { r: 4, alpha: 4 }, course),
      await row("rank 4, LoRA-XS r 20 (400)", rank4, loraXs, { r: 20, alpha: 20 }, course),
      await row("rank 4, LoRA r 4 (448)", rank4, lora, { r: 4, alpha: 4 }, course),
    ];
  },
  orders: [
    ["flat, VeRA r 64 (112)", "flat, LoRA r 1 (112)"],
    ["flat, VeRA r 400 (448)", "flat, LoRA r 4 (448)"],
    ["flat, LoRA-XS r 20 (400)", "flat, LoRA r 4 (448)"],
    ["rank 4, LoRA r 4 (448)", "rank 4, LoRA-XS r 20 (400)"],
  ],
} satisfies Recipe;
