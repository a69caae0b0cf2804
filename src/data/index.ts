export { cycled, fingerprint, type BatchSource } from "./batches.ts";
export { cifar10Images, imageBatches, type LabelledImages } from "./images.ts";
export { splitTail, textsOf, tokenBatches, tokenStream, type Encoder, type TokenBatchOptions } from "./text.ts";
