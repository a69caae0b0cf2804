import { dora, fullFineTuning, ia3, loha, lokr, lora, olora, pissa, rslora } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

export default {
  title: "The baselines on the linear teacher, target of full rank",
  sheet:
    "not measured there but for LoRA r4 (448), .537 at the end (lora-sb.md, bone.md); on GSM8K, 3B parameters: rsLoRA r64 .513, LoRA r32 .478, r64 .474, full .472, DoRA .469, LoKr .466, LoHa .393, IA³ .311 (_lora-baselines.md)",
  note:
    "Asserted are orders that the sheet's table has too. rsLoRA is ahead of LoRA in short runs alone. PiSSA and OLoRA are behind LoRA: they must keep what " +
    "they took from the base while they learn the rest, and this target is far from the base in all directions. DoRA is ahead of LoRA by what its 48 more numbers buy.",
  better: "lower",
  async rows() {
    const teacher = await linearTeacher({ target: "full", inputs: "anisotropic" });
    const rows = [];
    for (const [when, steps, learningRate] of [
      ["60 steps", 60, [3e-3, 1e-2]],
      ["600 steps", 600, [3e-3, 1e-2, 3e-2]],
    ] as const) {
      const course = { steps, learningRate };
      rows.push(await row(`full (3072), ${when}`, teacher, fullFineTuning, {}, { steps, learningRate: [1e-3, 3e-3, 1e-2] }));
      rows.push(await row(`LoRA r 16, ${when}`, teacher, lora, { r: 16, alpha: 4 }, course));
      rows.push(await row(`rsLoRA r 16, ${when}`, teacher, rslora, { r: 16, alpha: 4 }, course));
      rows.push(await row(`LoRA r 4, ${when}`, teacher, lora, { r: 4, alpha: 4 }, course));
      rows.push(await row(`DoRA r 4, ${when}`, teacher, dora, { r: 4, alpha: 4 }, course));
      rows.push(await row(`PiSSA r 4, ${when}`, teacher, pissa, { r: 4, alpha: 4 }, course));
      rows.push(await row(`OLoRA r 4, ${when}`, teacher, olora, { r: 4, alpha: 4 }, course));
      rows.push(await row(`LoHa r 2, ${when}`, teacher, loha, { r: 2, alpha: 2 }, course));
      rows.push(await row(`LoRA r 1, ${when}`, teacher, lora, { r: 1, alpha: 1 }, course));
      rows.push(await row(`LoKr r 4, ${when}`, teacher, lokr, { r: 4, alpha: 4 }, course));
      rows.push(await row(`IA³, ${when}`, teacher, ia3, {}, course));
    }
    return rows;
  },
  orders: [
    ["full (3072), 600 steps", "LoRA r 16, 600 steps"],
    ["rsLoRA r 16, 60 steps", "LoRA r 16, 60 steps"],
    ["LoRA r 4, 600 steps", "LoHa r 2, 600 steps"],
    ["LoRA r 1, 600 steps", "LoKr r 4, 600 steps"],
    ["LoKr r 4, 600 steps", "IA³, 600 steps"],
    ["LoHa r 2, 600 steps", "IA³, 600 steps"],
  ],
} satisfies Recipe;
