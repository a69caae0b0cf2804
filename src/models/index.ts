export { fullCache } from "./blocks.ts";
export { quantizeModel, replicateLayers, unfreeze } from "./change.ts";
export { evaluate, evaluateText, evaluationOptions, type EvaluateOptions, type Evaluation, type EvaluationProgress } from "./evaluate.ts";
export { generate, type GenerateOptions, type Generation, type Reason, type TokenEvent } from "./generate.ts";
export { architectureOf, loadModel, randomModel } from "./load.ts";
export {
  applyLinear,
  areLanguage,
  forward,
  hidden,
  languageDimensions,
  makeLayer,
  makeModel,
  parameters,
  type Architecture,
  type LanguageDimensions,
  type Layer,
  type LayerSpec,
  type Model,
} from "./model.ts";
export { chooseKept, prune, pruneModel, pruneOptions, type Kept, type Pruned, type PruneOptions } from "./pruning.ts";
export { saveModel, type SaveOptions } from "./save.ts";
export { generationOptions, type GenerationOptions } from "./sampling.ts";
export type { CalibrationBatch, CalibrationBatches } from "./calibration.ts";
export type { SiteStatistics } from "./recorder.ts";
export { collectStatistics, type Statistics, type StatisticsOptions, type StatisticsProgress } from "./statistics.ts";
export { loadStatistics, saveStatistics } from "./statistics-file.ts";
