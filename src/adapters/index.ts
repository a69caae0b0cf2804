export { activate, adapt, coverage, removeAdapter, type AdaptOptions } from "./adapt.ts";
export { adapter, addAt, applyAt, type Adapter, type AdapterLayout, type InitContext } from "./adapter.ts";
export { adapterParameters, attachedTo, type AttachedAdapter, type Coverage, type Targeting } from "./attach.ts";
export { dora } from "./dora.ts";
export { lora, rslora } from "./lora.ts";
export { merge, unmerge } from "./merge.ts";
export { loadAdapter } from "./read.ts";
export { saveAdapter } from "./write.ts";
