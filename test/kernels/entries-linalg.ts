import type { Entry } from "./draw.ts";
import { eigh } from "./entries-eigh.ts";
import { moments } from "./entries-moments.ts";

export const linalg = { ...eigh, ...moments } satisfies Record<string, Entry>;
