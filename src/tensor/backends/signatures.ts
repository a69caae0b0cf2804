import { core } from "./signatures-core.ts";
import { layers } from "./signatures-layers.ts";
import { linalg } from "./signatures-linalg.ts";
import { select } from "./signatures-select.ts";
import { sparse } from "./signatures-sparse.ts";

/** Every kernel: the bindings, the C header and the tests are made from this table. */
export const signatures = { ...core, ...linalg, ...select, ...sparse, ...layers };

export type KernelName = keyof typeof signatures;

/** `real*` kernels whose f64 form exists in C too. */
export const f64Kernels: ReadonlySet<KernelName> = new Set((Object.keys(signatures) as KernelName[]).filter((name) => signatures[name].wide));
