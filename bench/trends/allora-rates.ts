import { allora, dora, lora, type Adapter } from "strut/adapters";
import { sgd } from "strut/optimizers";
import { seeds, type Recipe, type Row } from "./recipe.ts";
import { linearTeacher } from "./scaffolds/linear-teacher.ts";
import { run } from "./scaffolds/model.ts";

// oxlint-disable-next-line typescript/no-explicit-any -- a method of any options
const methods: readonly (readonly [string, Adapter<any, any, any>, Readonly<Record<string, unknown>>])[] = [
  ["LoRA, α = r", lora, { r: 4, alpha: 4 }],
  ["LoRA, α = 2r", lora, { r: 4, alpha: 8 }],
  ["LoRA, dropout .05", lora, { r: 4, alpha: 4, dropout: 0.05 }],
  ["DoRA", dora, { r: 4, alpha: 4 }],
  ["ALLoRA, η² 1", allora, { r: 4, etaSquared: 1 }],
  ["ALLoRA, η² 2", allora, { r: 4, etaSquared: 2 }],
  ["ALLoRA, η² 4", allora, { r: 4 }],
  ["ALLoRA-OD", allora, { r: 4, scope: "outputs" }],
  ["ASF-LoRA", allora, { r: 4, asf: true }],
];

export default {
  title: "ALLoRA and its ablations over one grid of rates, 100 steps on the linear teacher",
  sheet: "not measured; accept not worse than LoRA at its best rate, and (worst − best over the grid) smaller (allora.md)",
  note:
    "Under SGD ALLoRA is flatter over the rates than LoRA at the same scale, as expected, but not flatter than LoRA at α = 2r: the worst is the smallest rate, which " +
    "η multiplies. Under Adam it is neither better nor flatter than LoRA, beyond the spread. Scaling by outputs or the forward pass is no worse than by rows; dropout costs most.",
  better: "lower",
  async rows() {
    const teacher = await linearTeacher({ target: "rank4", inputs: "flat" });
    const rows: Row[] = [];
    for (const [name, rates, more] of [
      ["SGD", [0.3, 1, 3, 6], { optimizer: sgd }],
      ["Adam", [1e-3, 3e-3, 1e-2, 3e-2], {}],
    ] as const)
      for (const [label, method, options] of methods) {
        const [best, width]: [number[], number[]] = [[], []];
        let count = 0;
        for (const seed of seeds) {
          const figures: number[] = [];
          for (const learningRate of rates) {
            const { figure, parameters } = await run(teacher, method, options, seed, { steps: 100, learningRate, more });
            figures.push(figure);
            count = parameters;
          }
          best.push(Math.min(...figures));
          width.push(Math.max(...figures) - Math.min(...figures));
        }
        rows.push(
          { label: `${label}, ${name}: best`, parameters: count, values: best },
          { label: `${label}, ${name}: worst − best`, parameters: count, values: width },
        );
      }
    return rows;
  },
  orders: [["ALLoRA, η² 4, SGD: worst − best", "LoRA, α = r, SGD: worst − best"]],
} satisfies Recipe;
