import { adapter, lora, merge, pst, sparsityAt } from "strut/adapters";
import type { Model } from "strut/models";
import { dense } from "strut/operators";
import { abs, affine, copyOf, customGradient, globalMasks, mul, noGrad, tensor, zeros, type Tensor } from "strut/tensor";
import { row, seeds, type Recipe, type Row } from "./recipe.ts";
import { run } from "./scaffolds/model.ts";
import { residualMlp } from "./scaffolds/residual-mlp.ts";

/** The model with the smallest weights of each matrix but the head at zero. */
async function pruned(model: Model, share: number): Promise<Model> {
  const merged = merge(model);
  for (const [path, { weight }] of merged.layers) {
    if (path === "head") continue;
    const values = (await weight.data()) as Float32Array;
    const edge = values.map(Math.abs).sort()[Math.floor(share * values.length)]!;
    values.forEach((w, i) => Math.abs(w) < edge && (values[i] = 0));
    weight.assign(tensor(values, weight.shape));
  }
  return merged;
}

/** 0 at the smallest share of the scores, else 1; the gradient goes straight through. */
const mask = (scores: Tensor, share: number): Tensor =>
  customGradient(
    [scores],
    (S) => affine(globalMasks([S], Math.floor(share * S.size), { largest: false })[0]!, -1, 1),
    (g) => [g],
  );

/**
 * All weights train, as dense as they are, under a mask on PST's schedule: of the largest magnitudes, or of the largest learnt scores,
 * one a weight, whose gradient is that of the weight times the weight (movement pruning, Sanh, Wolf & Rush 2020, arXiv:2005.07683).
 */
const allWeights = (scores: "magnitude" | "movement") =>
  adapter({
    id: scores,
    title: scores,
    paper: "arXiv:2005.07683",
    kinds: ["linear"],
    options: pst.options,
    init: ({ weight }, _o, { dtype }): Record<string, Tensor> => ({
      W: copyOf(weight.toDense()),
      ...(scores === "movement" ? { S: zeros([weight.out, weight.in], dtype) } : {}),
    }),
    weight: ({ W, S }, _site, _o, { values }) => dense(mul(W!, S ? mask(S, values["v"] ?? 0) : noGrad(() => mask(abs(W!), values["v"] ?? 0)))),
    regime: (o) => ({
      beforeForward: ({ live, step, steps }) => void (live.values["v"] = sparsityAt(step, steps, o)),
      afterStep: ({ live, step, steps }) => void (live.values["v"] = sparsityAt(step + 1, steps, o)),
    }),
    layout: { tensors: {} },
  });

export default {
  title: "PST on the residual MLP, by sparsity",
  sheet:
    "accuracy at 80/90/95 %: LoRA then one-shot magnitude .61/.36/.23, LoRA r4 + gradual magnitude .84/.76/.63, PST .94/.91/.86, all weights with gradual magnitude .96/.93/.84, with movement pruning .99/.99/.97; of as many parameters LoRA r9 + gradual magnitude .919 at 90 % (pst.md)",
  note: "One-shot < gradual at low rank < PST as in the sheet, at 500 steps of fresh points. At as many parameters (90 %, LoRA r9) there is no gain, as in the sheet. The sheet's PST within 3 points of all weights under gradual magnitude does not hold: it is 9 to 14 points below, with a seventh of the parameters; these orders were added after that was seen. Movement scores lead magnitude at 95 % alone. Rows of all weights take the better of the rates 1e-3 and 3e-3, the others 3e-3. LoRA with gradual magnitude is PST whose scores are |W + U·V| alone: its R and C stand still and are not counted.",
  better: "higher",
  async rows() {
    const mlp = await residualMlp();
    const course = { steps: 500, learningRate: 3e-3 };
    const rows: Row[] = [];
    const shots = new Map<number, number[]>([0.8, 0.9, 0.95].map((share) => [share, []]));
    let parameters = 0;
    for (const seed of seeds) {
      const { model, parameters: count } = await run(mlp, lora, { r: 4, alpha: 4 }, seed, course);
      parameters = count;
      for (const [share, values] of shots) values.push(await mlp.measure(await pruned(model, share)));
    }
    for (const [sparsity, values] of shots) {
      const at = `${sparsity * 100} %`;
      const gradual = (label: string, weightRank: number, scores: Readonly<Record<string, number>>) =>
        row(`${label}, ${at}`, mlp, pst, { weightRank, sparsity, ...scores }, course, "higher");
      const byMagnitude = async (r: number): Promise<Row> => {
        const found = await gradual(`LoRA r${r}, gradual magnitude`, r, { maskRank: 0, maskAlpha1: 0, maskAlpha2: 0 });
        return { ...found, parameters: found.parameters - 6 * (128 + 128) };
      };
      rows.push({ label: `LoRA r4, one-shot magnitude, ${at}`, parameters, values });
      rows.push(await byMagnitude(4));
      rows.push(await gradual("PST r4 + 4", 4, { maskRank: 4 }));
      for (const scores of ["magnitude", "movement"] as const)
        rows.push(
          await row(`all weights, gradual ${scores}, ${at}`, mlp, allWeights(scores), { sparsity }, { ...course, learningRate: [1e-3, 3e-3] }, "higher"),
        );
      if (sparsity === 0.9) rows.push(await byMagnitude(9));
    }
    return rows;
  },
  orders: ["80 %", "90 %", "95 %"].flatMap((at) => [
    [`all weights, gradual magnitude, ${at}`, `PST r4 + 4, ${at}`] as const,
    [`LoRA r4, gradual magnitude, ${at}`, `LoRA r4, one-shot magnitude, ${at}`] as const,
    [`PST r4 + 4, ${at}`, `LoRA r4, gradual magnitude, ${at}`] as const,
  ]),
} satisfies Recipe;
