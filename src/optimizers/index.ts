export { adamCore, type AdamOptions } from "./adam-core.ts";
export { adamw } from "./adamw.ts";
export { clipByGlobalNorm, clipByValue } from "./clip.ts";
export { accumulate, overwrite, scaleInPlace } from "./in-place.ts";
export { addDecayedWeights, momentum, scaleByLearningRate } from "./links.ts";
export { chain, optimizer, type Optimizer } from "./optimizer.ts";
export { sgd } from "./sgd.ts";
