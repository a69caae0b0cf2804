export { activate, adapt, coverage, removeAdapter, type AdaptOptions } from "./adapt.ts";
export { adapter, type Adapter, type InitContext, type PeftLayout } from "./adapter.ts";
export { adapterParameters, attachedTo, type AttachedAdapter, type Coverage, type Targeting } from "./attach.ts";
export { dora } from "./dora.ts";
export { lora, rslora } from "./lora.ts";
export { merge, unmerge } from "./merge.ts";
export { loadPeft, savePeft } from "./peft.ts";
