import { loldu, lora, svfit } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

export default {
  title: "LoLDU on the linear teacher: on its manifold and off it",
  sheet:
    "other LDU diagonal: LoLDU r48 (48) .000, SVFit r48 .929, LoRA r1 (112) .647; other singular values: LoLDU r48 .919, SVFit .000; random full-rank target: LoLDU .958, SVFit .933, LoRA r1 .824 (loldu.md)",
  note: "As in the sheet each of the two wins on its own manifold only; off it LoRA r 1 is ahead.",
  better: "lower",
  async rows() {
    const own = await linearTeacher({ target: "ldu-diagonal", inputs: "anisotropic" });
    const spectrum = await linearTeacher({ target: "singular-values", inputs: "anisotropic" });
    const full = await linearTeacher({ target: "full", inputs: "anisotropic" });
    const course = { steps: 600, learningRate: [3e-3, 1e-2, 3e-2] };
    const whole = { r: 48, alpha: 48 };
    return [
      await row("own diagonal, LoLDU r 48", own, loldu, whole, course),
      await row("own diagonal, SVFit r 48", own, svfit, { r: 48 }, course),
      await row("own diagonal, LoRA r 1", own, lora, { r: 1, alpha: 1 }, course),
      await row("singular values, LoLDU r 48", spectrum, loldu, whole, course),
      await row("singular values, SVFit r 48", spectrum, svfit, { r: 48 }, course),
      await row("full rank, LoLDU r 48", full, loldu, whole, course),
      await row("full rank, SVFit r 48", full, svfit, { r: 48 }, course),
      await row("full rank, LoRA r 1", full, lora, { r: 1, alpha: 1 }, course),
    ];
  },
  orders: [
    ["own diagonal, LoLDU r 48", "own diagonal, LoRA r 1"],
    ["own diagonal, LoRA r 1", "own diagonal, SVFit r 48"],
    ["singular values, SVFit r 48", "singular values, LoLDU r 48"],
    ["full rank, LoRA r 1", "full rank, LoLDU r 48"],
  ],
} satisfies Recipe;
