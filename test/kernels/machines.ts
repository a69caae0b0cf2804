import type { Backend, Block, Memory } from "../../src/tensor/backends/backend.ts";
import { nativeBackend } from "../../src/tensor/backends/native.ts";
import { SCRATCH_FLOATS } from "../../src/tensor/backends/signature.ts";
import { threadedWasmBackend, wasmBackend } from "../../src/tensor/backends/wasm.ts";

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

const started = new Map<string, Promise<Machine | string>>();

/** The machine, or why it is missing; started once. */
function once(label: string, key: string, start: () => Promise<Backend>): Promise<Machine | string> {
  const machine =
    started.get(key) ??
    start().then(
      (backend) => machineOn(label, backend),
      (error: Error) => `${key}: ${error.message}`,
    );
  started.set(key, machine);
  return machine;
}

/**
 * Every compiled backend this machine can run, on so many threads, and a line for each that it cannot. A machine has one
 * label however many threads it has. The native variants share one pool: all of them have the threads last asked for.
 */
export async function machines(threads: number): Promise<{ present: Machine[]; missing: string[] }> {
  const natives = ["baseline", "avx2", "avx512"].map((variant) => once(`native ${variant}`, `native ${variant}`, () => nativeBackend(threads, variant)));
  const wasm = threads === 1 ? once("wasm", "wasm", wasmBackend) : once("wasm", `wasm with ${threads} threads`, () => threadedWasmBackend(threads));
  const found = await Promise.all([...natives, wasm]);
  const present = found.filter((machine) => typeof machine !== "string");
  if (present.some(({ backend }) => backend.name === "native")) {
    const { threads: running } = await nativeBackend(threads, "baseline");
    if (running !== threads) throw new Error(`asked for ${threads} threads, ${running} run`);
  }
  return { present, missing: found.filter((machine) => typeof machine === "string") };
}
