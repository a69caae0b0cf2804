import type { KernelName } from "../../src/tensor/backends/signatures.ts";
import type { Entry } from "./draw.ts";
import { elementwise } from "./entries-elementwise.ts";
import { layers } from "./entries-layers.ts";
import { linalg } from "./entries-linalg.ts";
import { products } from "./entries-products.ts";
import { rows } from "./entries-rows.ts";
import { select } from "./entries-select.ts";
import { sparse } from "./entries-sparse.ts";

/** How to draw a call of every kernel of the table. */
export const entries: Record<KernelName, Entry> = { ...products, ...elementwise, ...rows, ...linalg, ...select, ...sparse, ...layers };
