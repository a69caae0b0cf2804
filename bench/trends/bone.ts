import { bone, lora } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

export default {
  title: "Bone beside LoRA on the linear teacher, early and late",
  sheet:
    "at 3e-4 after 20/60 steps: LoRA r4 (448) .945/.790, Bone r8 (384) .821/.695, bat .820/.696; at the end (600 steps): LoRA .537, Bone .671, bat .672 (bone.md)",
  better: "lower",
  async rows() {
    const teacher = await linearTeacher({ target: "full", inputs: "anisotropic" });
    const rows = [];
    for (const [when, steps, learningRate] of [
      ["20 steps", 20, 3e-4],
      ["60 steps", 60, 3e-4],
      ["600 steps, best rate", 600, [3e-3, 1e-2, 3e-2]],
    ] as const) {
      rows.push(await row(`LoRA r 4, ${when}`, teacher, lora, { r: 4, alpha: 8 }, { steps, learningRate }));
      for (const r of [4, 8]) rows.push(await row(`Bone r ${r}, ${when}`, teacher, bone, { r }, { steps, learningRate }));
      rows.push(await row(`bat r 8, ${when}`, teacher, bone, { r: 8, initWeights: "bat" }, { steps, learningRate }));
    }
    return rows;
  },
  orders: [
    ["Bone r 8, 20 steps", "LoRA r 4, 20 steps"],
    ["Bone r 8, 60 steps", "LoRA r 4, 60 steps"],
    ["LoRA r 4, 600 steps, best rate", "Bone r 8, 600 steps, best rate"],
  ],
} satisfies Recipe;
