export { eva, spreadRanks } from "./eva.ts";
export { saveEvaState } from "./eva-state.ts";
export { initializer, type Initializer, type Start, type StartContext } from "./initializer.ts";
export { loraSb } from "./lora-sb.ts";
