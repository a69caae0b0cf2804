import type { Entry } from "./draw.ts";

export const layers = {} satisfies Record<string, Entry>;
