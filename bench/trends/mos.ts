import { lora, mos } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { residualMlp } from "./scaffolds/residual-mlp.ts";

export default {
  title: "MoS beside LoRA of as many parameters, on the residual MLP",
  sheet:
    "1536 parameters: LoRA r1 .886/.899, MoS e1 r4 l4 .927/.945 (lr 3e-3/1e-2); 3072: LoRA r2 .954/.960, MoS e2 r6 l4 .957/.965, " +
    "without sharding .943/.958, pure sharing r12 .949/.965; LoRA r8 .972/.983 (mos.md)",
  note:
    "Here 400 steps of fresh points: MoS e1 leads LoRA r1 by one point, within the spread of the seeds and not by the two of the sheet; at 3072 " +
    "parameters sharing, sharding and private shards are all within a point of LoRA r2, pure sharing first. No saving factor shows at six sites.",
  better: "higher",
  async rows() {
    const mlp = await residualMlp();
    const course = { steps: 400, learningRate: [3e-3, 1e-2] };
    const shared = (label: string, options: Readonly<Record<string, unknown>> & { r: number }) =>
      row(label, mlp, mos, { alpha: options.r, dropout: 0, ...options }, course, "higher");
    return [
      await row("LoRA r1", mlp, lora, { r: 1, alpha: 1 }, course, "higher"),
      await shared("MoS e1 r4 l4", { validR: 1, r: 4, numChunkPerVec: 4 }),
      await row("LoRA r2", mlp, lora, { r: 2, alpha: 2 }, course, "higher"),
      await shared("MoS e2 r6 l4", { validR: 2, r: 6, numChunkPerVec: 4 }),
      await shared("MoS e2 r6 l4, one private", { validR: 2, r: 6, numChunkPerVec: 4, privateR: 1 }),
      await shared("MoS e2 r6 l1", { validR: 2, r: 6 }),
      await shared("pure sharing r12", { validR: 2, r: 12, pairDissociation: false }),
      await row("LoRA r8", mlp, lora, { r: 8, alpha: 8 }, course, "higher"),
    ];
  },
  orders: [
    ["MoS e2 r6 l4", "LoRA r1"],
    ["MoS e2 r6 l4", "MoS e1 r4 l4"],
    ["LoRA r2", "MoS e1 r4 l4"],
    ["LoRA r8", "MoS e2 r6 l4"],
  ],
} satisfies Recipe;
