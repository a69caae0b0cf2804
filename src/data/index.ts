export { cycled, fingerprint, type BatchSource } from "./batches.ts";
export { splitTail, textsOf, tokenBatches, tokenStream, type Encoder, type TokenBatchOptions } from "./text.ts";
