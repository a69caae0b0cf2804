export { cycled, fingerprint, type BatchSource } from "./batches.ts";
export { imageBatches, readCifar10, type LabelledImages } from "./images.ts";
export { splitTail, textsOf, tokenBatches, tokenStream, type Encoder, type TokenBatchOptions } from "./text.ts";
