import { StrutError } from "../errors.ts";
import { files } from "../formats/system.ts";
import { collectStatistics, type CalibrationBatches, type Model } from "../models/index.ts";
import { hostNumbers, noGrad } from "../tensor/index.ts";
import { blockOf } from "./layer-sampling.ts";

/**
 * Layerwise outlier distribution (Yin et al. 2023, arXiv:2310.05175): in percent, D of a block is the share of A_ij = |W_ij|·‖X_j‖₂ above
 * M times their mean, over all linear layers of the block together. One number a block, in order of depth.
 *
 * @example
 * const scores = await outlierScores(model, [{ ids: [[1, 403, 407, 261, 378, 432]] }], 5);
 */
export async function outlierScores(model: Model, batches: CalibrationBatches, threshold = 13): Promise<number[]> {
  const linear = model.sites.filter(({ path, kind }) => kind === "linear" && blockOf(path) !== undefined);
  const { sites } = await collectStatistics(model, batches, { wants: ["inputNorm"], sites: linear.map(({ path }) => path) });
  const count = Math.max(0, ...linear.map(({ path }) => blockOf(path)!.index + 1));
  return Array.from({ length: count }, (_, index) => {
    const own = linear
      .filter(({ path }) => blockOf(path)!.index === index)
      .map(({ path, weight }) => {
        const norms = hostNumbers(sites.get(path)!.inputNorm!) as Float64Array;
        const W = hostNumbers(noGrad(() => weight.toDense())) as Float32Array;
        return W.map((x, i) => Math.abs(x) * norms[i % norms.length]!);
      });
    const size = own.reduce((sum, { length }) => sum + length, 0);
    const mean = own.reduce((sum, values) => values.reduce((part, x) => part + x, sum), 0) / size;
    return (100 * own.reduce((sum, values) => sum + values.filter((x) => x > threshold * mean).length, 0)) / size;
  });
}

/** Scores from a file: numbers in order of depth, as a JSON list or between spaces, commas or lines. */
export async function readScores(path: string): Promise<number[]> {
  const text = (await files.readFile(path, "utf8")).trim();
  const numbers = text
    .replaceAll(/[[\]]/g, "")
    .split(/[\s,]+/)
    .map(Number);
  if (text !== "" && numbers.every((x) => x >= 0 && Number.isFinite(x))) return numbers;
  throw new StrutError("data", `${path} holds no scores`, { path, hint: "It must hold one number of at least 0 for each block, in order of depth." });
}
