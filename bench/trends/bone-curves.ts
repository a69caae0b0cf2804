import { bone, dora, lora, pissa, vera } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { sine } from "./scaffolds/sine.ts";

export default {
  title: "Bone beside LoRA, PiSSA, DoRA and VeRA on the sine of its paper",
  sheet:
    "paper's toy: a 64-wide MLP from sin 2πx to sin 2πx + 0.3 cos 3πx, MiSS r4, LoRA and PiSSA r2, DoRA r1, VeRA r64, 100 epochs at 1e-3; MiSS falls fastest (bone.md)",
  note: "Bone falls fastest here too; LoRA, which starts with a gradient of B alone, has caught up after 100 steps. Only the curves are compared: the paper's picture has no numbers.",
  better: "lower",
  quick: true,
  async rows() {
    const task = await sine();
    const methods = [
      ["Bone r 4", bone, { r: 4 }],
      ["LoRA r 2", lora, { r: 2, alpha: 2 }],
      ["PiSSA r 2", pissa, { r: 2, alpha: 2 }],
      ["DoRA r 1", dora, { r: 1, alpha: 1 }],
      ["VeRA r 64", vera, { r: 64 }],
    ] as const;
    const rows = [await row("untrained", task, lora, { r: 1, alpha: 1 }, { steps: 0, learningRate: 0, targets: ["hidden"] })];
    for (const steps of [20, 50, 100])
      for (const [label, method, options] of methods)
        rows.push(await row(`${label}, ${steps} steps`, task, method, options, { steps, learningRate: 1e-3, targets: ["hidden"] }));
    return rows;
  },
  orders: [
    ["Bone r 4, 20 steps", "LoRA r 2, 20 steps"],
    ["Bone r 4, 50 steps", "LoRA r 2, 50 steps"],
    ["Bone r 4, 50 steps", "PiSSA r 2, 50 steps"],
    ["Bone r 4, 100 steps", "DoRA r 1, 100 steps"],
    ["Bone r 4, 100 steps", "VeRA r 64, 100 steps"],
  ],
} satisfies Recipe;
