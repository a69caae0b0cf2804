export * from "./tensor/index.ts";
export * from "./operators/index.ts";
export * from "./models/index.ts";
export * from "./adapters/index.ts";
export { adapters, methodById, methodIds } from "./catalog.ts";
export { StrutError } from "./errors.ts";
