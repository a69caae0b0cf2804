import { bytesOf, viewOf, type TypedArray } from "../dtype.ts";
import { bindKernels, type Backend, type Memory } from "./backend.ts";
import * as attention from "./reference/attention.ts";
import * as elementwise from "./reference/elementwise.ts";
import * as layers from "./reference/layers.ts";
import * as linalg from "./reference/linalg.ts";
import * as optimizer from "./reference/optimizer.ts";
import * as random from "./reference/random.ts";
import * as rows from "./reference/rows.ts";
import * as select from "./reference/select.ts";
import * as sparse from "./reference/sparse.ts";
import type { KernelName } from "./signatures.ts";

/** Every kernel in plain TypeScript: slow, obvious, and the oracle the compiled ones are tested against. */
export const referenceKernels: Record<KernelName, (...values: never[]) => void> = {
  ...elementwise,
  ...rows,
  ...attention,
  ...random,
  ...optimizer,
  ...linalg,
  ...select,
  ...sparse,
  ...layers,
};

/** Runs a reference kernel on tensors of a backend whose memory the host can see. */
export function callReference(backend: Pick<Backend, "locate">, name: KernelName, values: readonly (number | Memory | null)[]): void {
  const views = values.map((value): number | TypedArray | null => {
    if (value === null || typeof value === "number") return value;
    const { buffer, byteOffset } = backend.locate(value.block);
    const size = bytesOf(value.dtype);
    return viewOf(value.dtype, buffer, byteOffset + value.offset * size, Math.floor(value.block.bytes / size) - value.offset);
  });
  (referenceKernels[name] as (...views: unknown[]) => void)(...views);
}

/** Blocks that are ArrayBuffers of their own. */
export const arrayBufferMemory: Pick<Backend, "allocate" | "locate"> = {
  allocate: (bytes) => ({ bytes, buffer: new ArrayBuffer(bytes), address: 0 }),
  locate: (block) => ({ buffer: block.buffer!, byteOffset: 0 }),
};

export function referenceBackend(): Backend {
  return {
    name: "reference",
    variant: "typescript",
    threads: 1,
    kernels: bindKernels((name, _real, values) => callReference(arrayBufferMemory, name, values)),
    ...arrayBufferMemory,
    stop() {},
  };
}
