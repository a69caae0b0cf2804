import { atRank, dylora, lora } from "strut/adapters";
import { row, seeds, type Recipe, type Row } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";
import { run } from "./scaffolds/model.ts";

const teacher = { target: "full", inputs: "anisotropic" } as const;
const ranks = [1, 2, 4, 8];

/** One run a seed, measured at several ranks; truncated LoRA is a DyLoRA that only ever trains at r. */
async function atRanks(label: string, options: Readonly<Record<string, unknown>>, steps: number): Promise<Row[]> {
  const scaffold = await linearTeacher(teacher);
  const rows = ranks.map((b) => ({ label: `${label}, b ${b}`, parameters: 0, values: [] as number[] }));
  for (const seed of seeds) {
    const { model, parameters } = await run(scaffold, dylora, { r: 8, alpha: 8, ...options }, seed, { steps, learningRate: 3e-3 });
    for (const [i, b] of ranks.entries()) {
      rows[i]!.values.push(await scaffold.measure(atRank(model, b)));
      rows[i]!.parameters = parameters;
    }
  }
  return rows;
}

export default {
  title: "DyLoRA on the linear teacher, by the rank it is used at",
  sheet:
    "b = 1, 2, 4, 8: eight separate LoRAs .824 .698 .538 .354; LoRA-8 truncated .888 .806 .627 .354; constant scale .824 .698 .540 .360; α/b .876 .805 .640 .495",
  better: "lower",
  async rows() {
    const scaffold = await linearTeacher(teacher);
    const alone: Row[] = [];
    for (const r of ranks) alone.push(await row(`LoRA alone, b ${r}`, scaffold, lora, { r, alpha: r }, { steps: 1500, learningRate: 3e-3 }));
    return [
      ...alone,
      ...(await atRanks("truncated LoRA", { rMin: 8, scaling: "alpha/r" }, 1500)),
      ...(await atRanks("DyLoRA α/r", { scaling: "alpha/r" }, 4000)),
      ...(await atRanks("DyLoRA α/b", {}, 4000)),
    ];
  },
  orders: [
    ["DyLoRA α/r, b 1", "truncated LoRA, b 1"],
    ["DyLoRA α/r, b 2", "truncated LoRA, b 2"],
    ["DyLoRA α/r, b 4", "truncated LoRA, b 4"],
    ["DyLoRA α/r, b 1", "DyLoRA α/b, b 1"],
    ["DyLoRA α/r, b 8", "DyLoRA α/b, b 8"],
  ],
} satisfies Recipe;
