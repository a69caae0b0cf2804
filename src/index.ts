export * from "./tensor/index.ts";
export * from "./operators/index.ts";
export * from "./data/index.ts";
export * from "./models/index.ts";
export * from "./adapters/index.ts";
export * from "./optimizers/index.ts";
export * from "./training/index.ts";
export { adapters, methodById, methodIds, optimizerById } from "./catalog.ts";
export { StrutError } from "./errors.ts";
