import { z } from "zod";
import { areLanguage, type Model } from "../models/index.ts";
import type { Regime, Transform } from "../nn/contracts.ts";
import { adamCore } from "./adam-core.ts";
import { adamw } from "./adamw.ts";
import { galoreLink, projection } from "./galore.ts";
import { blockOf, layerSampling } from "./layer-sampling.ts";
import { decayAfterUpdate, scaleByLearningRate } from "./links.ts";
import { chain, optimizer, type RunStart } from "./optimizer.ts";
import { outlierScores, readScores } from "./outliers.ts";

const sampling = {
  activatedLayers: z.int().positive().default(2).describe("blocks that train at a time; defaults to 2"),
  intervalSteps: z.int().positive().default(20).describe("steps until others are drawn; defaults to 20"),
  frozenState: z
    .enum(["drop", "keep"])
    .default("drop")
    .describe("optimiser state of a block that is frozen: dropped, or kept, whose memory grows to that of all blocks; defaults to drop"),
};
const probMode = z
  .enum(["owl", "owl_reverse", "uniform", "norm", "decrease", "increase"])
  .describe("chance of a block: by its outliers (owl), by few of them, alike, by the norm of its weights, falling or rising with depth");

type Options = z.output<typeof owlore.options>;

/** Chances that add up to 1 of scores that may all be 0, which then are alike. */
function normalised(scores: readonly number[], warn: RunStart["warn"]): number[] {
  const sum = scores.reduce((total, x) => total + x, 0);
  if (sum > 0) return scores.map((x) => x / sum);
  warn("every block scores 0, so all are drawn with the same chance; a lower outlierThreshold tells them apart");
  return scores.map(() => 1 / scores.length);
}

/** The chance of each block to be drawn first. */
export async function blockChances(o: Pick<Options, "probMode" | "scores" | "outlierThreshold" | "calibrationBatches">, run: RunStart): Promise<number[]> {
  const blocks = Math.max(0, ...run.model.sites.map(({ path }) => (blockOf(path)?.index ?? -1) + 1));
  const each = (of: (index: number) => number): number[] => Array.from({ length: blocks }, (_, index) => of(index));
  const given = typeof o.scores === "string" ? await readScores(o.scores) : o.scores;
  const calibrated = async (): Promise<number[]> => {
    const model = run.model as Model;
    const batches = await Promise.all(Array.from({ length: o.calibrationBatches }, async (_, k) => run.batch(k)));
    // a row may have one token more than the context, which is only predicted
    const most = areLanguage(model.dimensions) ? model.dimensions.context : Infinity;
    const cut = batches.map((batch) => ({ ...batch, ids: batch.ids.map((row) => Array.from(row).slice(0, most)) }));
    return outlierScores(model, cut, o.outlierThreshold);
  };
  switch (o.probMode) {
    case "uniform":
      return each(() => 1 / blocks);
    case "decrease":
      return normalised(
        each((index) => blocks - index),
        run.warn,
      );
    case "increase":
      return normalised(
        each((index) => index + 1),
        run.warn,
      );
    case "norm":
      return normalised(given ?? (await weightNorms(run.model as Model, blocks)), run.warn);
    default: {
      const scores = normalised(given ?? (await calibrated()), run.warn);
      const top = Math.max(...scores);
      return o.probMode === "owl"
        ? scores
        : normalised(
            scores.map((p) => top - p),
            run.warn,
          );
    }
  }
}

/** Frobenius norm of all matrices of a block together. */
async function weightNorms(model: Model, blocks: number): Promise<number[]> {
  const squares = new Array<number>(blocks).fill(0);
  for (const { path, weight } of model.sites) {
    const block = blockOf(path);
    if (block) for (const x of (await weight.toDense().data()) as Float32Array) squares[block.index]! += x * x;
  }
  return squares.map(Math.sqrt);
}

/**
 * OwLore: a few blocks train at a time, drawn more often the more outliers they have, and their matrices by GaLore. Li et al. 2024,
 * arXiv:2405.18380. Embeddings, head and last norm always train.
 *
 * @example
 * const optimizer = { method: owlore, options: { activatedLayers: 2, rank: 16, outlierThreshold: 5 } }; // for train()
 */
export const owlore = optimizer({
  id: "owlore",
  title: "OwLore",
  paper: "arXiv:2405.18380",
  needs: ["inputNorm"],
  options: z.object({
    lr: z.number().nonnegative().default(3e-4).describe("learning rate; defaults to 3e-4"),
    weightDecay: z.number().nonnegative().default(0).describe("pull of the weights towards 0, times the learning rate, after the update; defaults to 0"),
    ...sampling,
    activatedLayers: sampling.activatedLayers.default(5).describe("blocks that train at a time; defaults to 5"),
    intervalSteps: sampling.intervalSteps.default(50).describe("steps until others are drawn; defaults to 50"),
    probMode: probMode.default("owl").describe(`${probMode.description}; defaults to owl`),
    outlierThreshold: z.number().nonnegative().default(13).describe("an outlier is this many times the mean; defaults to 13, models of few features need less"),
    calibrationBatches: z.int().positive().default(8).describe("batches of the training data that the outliers are counted on; defaults to 8"),
    scores: z
      .union([z.array(z.number().nonnegative()), z.string()])
      .optional()
      .describe("a score for each block, or a file of them, in place of counting"),
    galore: z.boolean().default(true).describe("project the gradients of the blocks that train; defaults to true"),
    scale: z.number().default(1).describe("factor of projected updates; defaults to 1"),
    ...projection,
    rank: projection.rank.default(256).describe("directions kept of the projected side; defaults to 256"),
    updateProjGap: projection.updateProjGap.default(100).describe("steps of a matrix between two projectors; defaults to 100"),
  }),
  build: (o, inner: Transform = adamCore({ eps: 1e-6, form: "hf" })) =>
    chain(o.galore ? galoreLink(o, inner) : inner, scaleByLearningRate(), decayAfterUpdate()),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
  regime: async (o, run): Promise<Regime> => layerSampling(o, await blockChances(o, run)),
});

/**
 * LISA: AdamW on a few blocks at a time, drawn alike; embeddings, head and last norm always train. Pan et al. 2024, arXiv:2403.17919.
 *
 * @example
 * const optimizer = { method: lisa, options: { activatedLayers: 2, intervalSteps: 20 } }; // for train()
 */
export const lisa = optimizer({
  id: "lisa",
  title: "LISA",
  paper: "arXiv:2403.17919",
  options: z.object({ ...adamw.options.shape, ...sampling }),
  build: (o, inner) => adamw.build(o, inner),
  rates: (o) => ({ learningRate: o.lr, weightDecay: o.weightDecay }),
  regime: async (o, run) => layerSampling(o, await blockChances({ probMode: "uniform", outlierThreshold: 0, calibrationBatches: 1 }, run)),
});
