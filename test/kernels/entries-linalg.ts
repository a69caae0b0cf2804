import type { Entry } from "./draw.ts";
import { factor } from "./entries-factor.ts";

export const linalg = { ...factor } satisfies Record<string, Entry>;
