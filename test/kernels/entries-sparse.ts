import type { Entry } from "./draw.ts";

export const sparse = {} satisfies Record<string, Entry>;
