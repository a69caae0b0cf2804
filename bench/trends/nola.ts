import { lora, nola } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

export default {
  title: "NOLA and LoRA of equal size on the linear teacher",
  sheet:
    "112 and 448 parameters: flat spectrum LoRA .978 and .914, NOLA r8 .939 and .841; anisotropic .824 and .537, .795 and .497; rank-4 target .517 and .000, .665 and .158 (nola.md)",
  note: "Our figure is a norm, the sheet's its square. A quarter of LoRA r1's parameters still improves on the base, by half a percent. With anisotropic inputs LoRA is ahead at 112 parameters (.854, .865) and NOLA at 448 (.674, .694), where the sheet has NOLA ahead at both. On Gaussian numbers as the target LoRA is ahead at 112 (.963, .974) and level at 448.",
  better: "lower",
  async rows() {
    const flat = await linearTeacher({ target: "orthogonal", inputs: "flat" });
    const anisotropic = await linearTeacher({ target: "full", inputs: "anisotropic" });
    const rank4 = await linearTeacher({ target: "rank4", inputs: "flat" });
    const [low, high] = [
      { steps: 600, learningRate: [1e-2, 3e-2] },
      { steps: 600, learningRate: [3e-2, 1e-1] },
    ];
    const mixed = (numBasis: number) => ({ r: 8, alpha: 8, numBasis });
    return [
      await row("flat, NOLA 28", flat, nola, mixed(14), high),
      await row("flat, LoRA 112", flat, lora, { r: 1, alpha: 1 }, low),
      await row("flat, NOLA 112", flat, nola, mixed(56), high),
      await row("flat, LoRA 448", flat, lora, { r: 4, alpha: 4 }, low),
      await row("flat, NOLA 448", flat, nola, mixed(224), high),
      await row("anisotropic, LoRA 112", anisotropic, lora, { r: 1, alpha: 1 }, low),
      await row("anisotropic, NOLA 112", anisotropic, nola, mixed(56), high),
      await row("anisotropic, LoRA 448", anisotropic, lora, { r: 4, alpha: 4 }, low),
      await row("anisotropic, NOLA 448", anisotropic, nola, mixed(224), high),
      await row("rank 4, LoRA 448", rank4, lora, { r: 4, alpha: 4 }, low),
      await row("rank 4, NOLA 448", rank4, nola, mixed(224), high),
    ];
  },
  orders: [
    ["flat, NOLA 112", "flat, LoRA 112"],
    ["flat, NOLA 448", "flat, LoRA 448"],
    ["flat, NOLA 112", "flat, NOLA 28"],
    ["flat, NOLA 448", "flat, NOLA 112"],
    ["anisotropic, NOLA 448", "anisotropic, LoRA 448"],
    ["rank 4, LoRA 448", "rank 4, NOLA 448"],
  ],
} satisfies Recipe;
