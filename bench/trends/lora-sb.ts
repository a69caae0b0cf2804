import { lora, loraXs } from "strut/adapters";
import { loraSb } from "strut/initializers";
import { row, type Recipe, type Row } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

const initializer = { method: loraSb };

export default {
  title: "LoRA-SB beside LoRA-XS and LoRA on the linear teacher",
  sheet:
    "600 steps, best of four rates, target of full rank: LoRA-XS r20 (400) .767, LoRA-SB r20 (400) .425, LoRA r4 (448) .537; LoRA-XS r8 (64) .960, LoRA-SB r8 .559, " +
    "LoRA r1 (112) .824; rank-4 target: LoRA-XS r20 .786, LoRA-SB r20 .318, r8 .432, LoRA r4 .000 (lora-sb.md)",
  note: "Every order of the sheet holds. The step is −1e-3·sign(G) with G of four batches; ten times its size changes no third digit.",
  better: "lower",
  async rows() {
    const rows: Row[] = [];
    const course = { steps: 600, learningRate: [1e-3, 3e-3, 1e-2, 3e-2] };
    for (const [target, name] of [
      ["full", "full rank"],
      ["rank4", "rank 4"],
    ] as const) {
      const task = await linearTeacher({ target, inputs: "anisotropic" });
      for (const r of [20, 8]) {
        rows.push(await row(`${name}, LoRA-XS r ${r}`, task, loraXs, { r, alpha: r }, course));
        rows.push(await row(`${name}, LoRA-SB r ${r}`, task, loraXs, { r, alpha: r }, { ...course, initializer }));
      }
      for (const r of [4, 1]) rows.push(await row(`${name}, LoRA r ${r}`, task, lora, { r, alpha: r }, course));
    }
    return rows;
  },
  orders: [
    ["full rank, LoRA-SB r 20", "full rank, LoRA-XS r 20"],
    ["full rank, LoRA-SB r 20", "full rank, LoRA r 4"],
    ["full rank, LoRA-SB r 8", "full rank, LoRA-XS r 8"],
    ["full rank, LoRA-SB r 8", "full rank, LoRA r 1"],
    ["rank 4, LoRA-SB r 20", "rank 4, LoRA-XS r 20"],
    ["rank 4, LoRA-SB r 8", "rank 4, LoRA-XS r 8"],
    ["rank 4, LoRA r 4", "rank 4, LoRA-SB r 20"],
  ],
} satisfies Recipe;
