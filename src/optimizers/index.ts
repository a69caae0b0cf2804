export { adamCore, type AdamOptions } from "./adam-core.ts";
export { adamw } from "./adamw.ts";
export { clipByGlobalNorm, clipByValue } from "./clip.ts";
export { galore } from "./galore.ts";
export { accumulate, overwrite, scaleInPlace } from "./in-place.ts";
export { addDecayedWeights, correctBias, decayAfterUpdate, momentum, scaleByLearningRate } from "./links.ts";
export { chain, optimizer, type Optimizer, type RunStart } from "./optimizer.ts";
export { sgd } from "./sgd.ts";
