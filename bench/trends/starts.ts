import { lora, loraXs } from "strut/adapters";
import { eva, loraSb } from "strut/initializers";
import { row, type Recipe } from "./recipe.ts";
import { characters } from "./scaffolds/characters.ts";

export default {
  title: "Starts from data on characters: EVA beside LoRA, LoRA-SB beside LoRA-XS",
  sheet: "measured on the linear teacher only, see the recipes eva and lora-sb (eva.md, lora-sb.md)",
  note:
    "EVA's early lead is as on the linear teacher; after 60 steps a little of it is left. LoRA-SB, with its step as it is by default and gradients of four batches, is " +
    "behind LoRA-XS here, against the linear teacher.",
  better: "lower",
  async rows() {
    const task = await characters("trained");
    const rows = [];
    for (const [when, steps, learningRate] of [
      ["10 steps", 10, 3e-3],
      ["60 steps", 60, [3e-3, 1e-2]],
    ] as const) {
      rows.push(await row(`LoRA r 4, ${when}`, task, lora, { r: 4, alpha: 4 }, { steps, learningRate }));
      rows.push(await row(`EVA r 4, ${when}`, task, lora, { r: 4, alpha: 4 }, { steps, learningRate, initializer: { method: eva } }));
      rows.push(await row(`LoRA-XS r 16, ${when}`, task, loraXs, { r: 16, alpha: 16 }, { steps, learningRate }));
      rows.push(await row(`LoRA-SB r 16, ${when}`, task, loraXs, { r: 16, alpha: 16 }, { steps, learningRate, initializer: { method: loraSb } }));
    }
    return rows;
  },
  orders: [
    ["EVA r 4, 10 steps", "LoRA r 4, 10 steps"],
    ["EVA r 4, 60 steps", "LoRA r 4, 60 steps"],
  ],
} satisfies Recipe;
