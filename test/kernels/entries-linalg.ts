import type { Entry } from "./draw.ts";
import { eigh } from "./entries-eigh.ts";

export const linalg = { ...eigh } satisfies Record<string, Entry>;
