import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import koffi from "koffi";
import type { Backend, Block, Memory } from "../../src/tensor/backends/backend.ts";
import { nativeBackend } from "../../src/tensor/backends/native.ts";
import { SCRATCH_FLOATS } from "../../src/tensor/backends/signature.ts";
import { wasmBackend } from "../../src/tensor/backends/wasm.ts";

/** A compiled backend under test, with memory that is used again for every call. */
export interface Machine {
  readonly label: string;
  readonly backend: Backend;
  readonly scratch: Memory;
  /** Room for one call; what it gave before may be overwritten after `reset`. */
  block(bytes: number): Block;
  reset(): void;
}

const ROOM = 96 * 2 ** 20;

function machineOn(label: string, backend: Backend): Machine {
  const heap = backend.name === "wasm" ? backend.allocate(ROOM) : undefined;
  let used = 0;
  return {
    label,
    backend,
    scratch: { dtype: "f32", block: backend.allocate(SCRATCH_FLOATS * 4), offset: 0 },
    block(bytes) {
      if (!heap) return backend.allocate(bytes);
      const address = heap.address + used;
      used += Math.ceil(bytes / 64) * 64;
      if (used > ROOM) throw new Error("the test's WebAssembly heap is too small");
      return { bytes, address };
    },
    reset() {
      used = 0;
    },
  };
}

const libraryPath = fileURLToPath(
  new URL(`../../dist/kernels/strut-${process.platform}-${process.arch}.${process.platform === "darwin" ? "dylib" : "so"}`, import.meta.url),
);

/** Every compiled backend this machine can run, and a line for each that it cannot. */
export async function machines(): Promise<{ present: Machine[]; missing: string[] }> {
  const present: Machine[] = [];
  const missing: string[] = [];
  for (const variant of ["baseline", "avx2", "avx512"]) {
    try {
      present.push(machineOn(`native ${variant}`, await nativeBackend(1, variant)));
    } catch (error) {
      missing.push(`native ${variant}: ${(error as Error).message}`);
    }
  }
  present.push(machineOn("wasm", await wasmBackend()));
  return { present, missing };
}

/** Sets the number of threads of every native variant: the pool is one a process. */
export function useThreads(threads: number): void {
  if (!existsSync(libraryPath)) return;
  const running = koffi.load(libraryPath).func("int32_t strut_start(int32_t threads)")(threads) as number;
  if (running !== threads) throw new Error(`asked for ${threads} threads, ${running} run`);
}
