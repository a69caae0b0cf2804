import { lora, s2lora } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { residualMlp } from "./scaffolds/residual-mlp.ts";

export default {
  title: "S2-LoRA beside LoRA of as many parameters, on the residual MLP",
  sheet:
    "S2 R12 (3144) .953/.962, LoRA r2 (3072) .954/.960; S2 R6 (1572) .882/.920, LoRA r1 (1536) .886/.899; on 24 modules a third of LoRA r1's parameters within two points of it, half of s zero for less than one (s2lora.md)",
  note:
    "Here S2 leads LoRA of as many parameters by one point, and by three where the norms of A and B are left free. Steering half of s towards zero " +
    "costs two points of twelve ranks, not less than one. With B at 0 and s at 1 at the start a point is lost. On 24 layers a third of LoRA r1's parameters stays three points behind it, and just under two where the norms are free, which the spread does not let us assert.",
  better: "higher",
  async rows() {
    const mlp = await residualMlp();
    const course = { steps: 400, learningRate: [3e-3, 1e-2] };
    const sparse = (label: string, options: Readonly<Record<string, unknown>>) => row(label, mlp, s2lora, options, course, "higher");
    const deep = await residualMlp(24);
    const deepLora = await row("LoRA r1, 24 layers", deep, lora, { r: 1, alpha: 1 }, course, "higher");
    return [
      await row("LoRA r1", mlp, lora, { r: 1, alpha: 1 }, course, "higher"),
      await sparse("S2 R6", { r: 6 }),
      await row("LoRA r2", mlp, lora, { r: 2, alpha: 2 }, course, "higher"),
      await sparse("S2 R12", { r: 12 }),
      await sparse("S2 R12, norms free", { r: 12, normalize: false }),
      await sparse("S2 R12, B at 0", { r: 12, zeroInit: "B" }),
      deepLora,
      { ...deepLora, label: "LoRA r1, 24 layers, less two points", values: deepLora.values.map((value) => value - 0.02) },
      await row("S2 R7, 24 layers", deep, s2lora, { r: 7 }, course, "higher"),
      await row("S2 R7, 24 layers, norms free", deep, s2lora, { r: 7, normalize: false }, course, "higher"),
      await sparse("S2 R12, half of s zero", { r: 12, lambda1: 1e-2, targetSparsity: 0.5 }),
    ];
  },
  orders: [
    ["S2 R12", "S2 R6"],
    ["S2 R6", "LoRA r1"],
    ["S2 R12, norms free", "LoRA r2"],
  ],
} satisfies Recipe;
