import type { Entry } from "./draw.ts";

export const linalg = {} satisfies Record<string, Entry>;
