import type { Entry } from "./draw.ts";
import { eigh } from "./entries-eigh.ts";
import { factor } from "./entries-factor.ts";
import { moments } from "./entries-moments.ts";

export const linalg = { ...eigh, ...factor, ...moments } satisfies Record<string, Entry>;
