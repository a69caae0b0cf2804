import type { Entry } from "./draw.ts";

export const select = {} satisfies Record<string, Entry>;
