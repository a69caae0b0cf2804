import { adapt, adapterParameters, dsee, lora } from "strut/adapters";
import { trainWithFewerHeads } from "strut/training";
import { row, seeds, type Recipe, type Row } from "./recipe.ts";
import { characters } from "./scaffolds/characters.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

/** Capitals with one head of four gone from every block after half of the run, by what the heads are judged. */
async function fewerHeads(score: "ABS" | "WABS"): Promise<Row> {
  const { base, batch, measure } = await characters("trained");
  const values: number[] = [];
  let parameters = 0;
  for (const seed of seeds) {
    const tuned = await adapt(base, dsee, heads, { seed, targets: ["q_proj", "v_proj"] });
    const half = { batches: (k: number) => batch(seed, k), steps: 50, learningRate: 3e-3, weightDecay: 0, seed };
    const after = { ...half, batches: (k: number) => batch(seed, 50 + k) };
    const { model } = await trainWithFewerHeads(tuned, { count: 1, score, before: half, after });
    parameters = [...adapterParameters(model.adapters.get("default")!).values()].reduce((sum, { size }) => sum + size, 0);
    values.push(await measure(model));
  }
  return { label: `capitals, 3 of 4 heads by ${score}`, parameters, values };
}

const heads = { r: 4, alpha: 8, numSparse: 16 };

export default {
  title: "DSEE beside LoRA on the linear teacher: free entries by support, and pruning by score",
  sheet:
    "not measured; expected: free entries at equal parameters within noise of LoRA, a small gain at r 1 or 2; after pruning W/WABS ≥ ABS > random at 50 % (dsee.md)",
  note: "Here free entries are no match for another rank: LoRA is ahead at r 2 and at r 4 beyond the spread, against the sheet's expectation, and a random support is no worse than a chosen one. After pruning W and WABS are far ahead of ABS, which is no better than random even at 20 %: where the update is small says nothing of the base. On capitals one head of four gone halfway costs some .04 nats, by either score.",
  better: "lower",
  async rows() {
    const task = await linearTeacher({ target: "full", inputs: "anisotropic" });
    const course = { steps: 600, learningRate: [3e-3, 1e-2] };
    const of = (label: string, options: Readonly<Record<string, unknown>> & { r: number }) => row(label, task, dsee, { alpha: options.r, ...options }, course);
    const pruned = (adPruningRatio: number, pruneMode: string) =>
      of(`${adPruningRatio * 100} % pruned by ${pruneMode}`, { r: 2, numSparse: 16, sparseMethod: "omp", adPruningRatio, pruneMode });
    return [
      await row("LoRA r 2", task, lora, { r: 2, alpha: 2 }, course),
      await of("r 1 + 112 grebsmo", { r: 1, numSparse: 112 }),
      await of("r 1 + 112 omp", { r: 1, numSparse: 112, sparseMethod: "omp" }),
      await of("r 1 + 112 random", { r: 1, numSparse: 112, sparseMethod: "rp" }),
      await row("LoRA r 4", task, lora, { r: 4, alpha: 4 }, course),
      await of("r 3 + 112 grebsmo", { r: 3, numSparse: 112 }),
      await of("r 3 + 112 omp", { r: 3, numSparse: 112, sparseMethod: "omp" }),
      await of("r 3 + 112 random", { r: 3, numSparse: 112, sparseMethod: "rp" }),
      await pruned(0.2, "W"),
      await pruned(0.2, "WABS"),
      await pruned(0.2, "ABS"),
      await pruned(0.2, "random"),
      await pruned(0.5, "W"),
      await pruned(0.5, "WABS"),
      await pruned(0.5, "ABS"),
      await pruned(0.5, "random"),
      await row("capitals, all heads", await characters("trained"), dsee, heads, { steps: 100, learningRate: 3e-3, targets: ["q_proj", "v_proj"] }),
      await fewerHeads("ABS"),
      await fewerHeads("WABS"),
    ];
  },
  orders: [
    ["LoRA r 2", "r 1 + 112 random"],
    ["LoRA r 4", "r 3 + 112 random"],
    ["20 % pruned by W", "20 % pruned by random"],
    ["50 % pruned by W", "50 % pruned by ABS"],
    ["50 % pruned by WABS", "50 % pruned by ABS"],
    ["50 % pruned by WABS", "50 % pruned by random"],
  ],
} satisfies Recipe;
