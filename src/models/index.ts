export { fullCache } from "./blocks.ts";
export { replicateLayers, unfreeze } from "./change.ts";
export { architectureOf, loadModel, randomModel } from "./load.ts";
export { forward, hidden, parameters, type Architecture, type Layer, type Model } from "./model.ts";
export { saveModel, type SaveOptions } from "./save.ts";
