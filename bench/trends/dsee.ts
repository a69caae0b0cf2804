import { dsee, lora } from "strut/adapters";
import { row, type Recipe } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";

export default {
  title: "DSEE beside LoRA on the linear teacher: free entries by support, and pruning by score",
  sheet:
    "not measured; expected: free entries at equal parameters within noise of LoRA, a small gain at r 1 or 2; after pruning W/WABS ≥ ABS > random at 50 % (dsee.md)",
  better: "lower",
  async rows() {
    const task = await linearTeacher({ target: "full", inputs: "anisotropic" });
    const course = { steps: 600, learningRate: [3e-3, 1e-2] };
    const of = (label: string, options: Readonly<Record<string, unknown>> & { r: number }) => row(label, task, dsee, { alpha: options.r, ...options }, course);
    const pruned = (pruningRatio: number, pruneMode: string) =>
      of(`${pruningRatio * 100} % pruned by ${pruneMode}`, { r: 2, numSparse: 16, sparseMethod: "omp", pruningRatio, pruneMode });
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
    ];
  },
  orders: [],
} satisfies Recipe;
