import type { KernelName } from "../../src/tensor/backends/signatures.ts";
import type { Entry } from "./draw.ts";
import { elementwise } from "./entries-elementwise.ts";
import { products } from "./entries-products.ts";
import { rows } from "./entries-rows.ts";

/** How to draw a call of every kernel of the table. */
export const entries: Record<KernelName, Entry> = { ...products, ...elementwise, ...rows };
