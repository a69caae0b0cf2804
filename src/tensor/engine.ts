import { StrutError } from "../errors.ts";
import type { Backend, BackendName, Block, Kernels } from "./backends/backend.ts";
import { SCRATCH_FLOATS } from "./backends/signature.ts";
import { Pool } from "./memory.ts";

export interface StartOptions {
  /** native, wasm or reference; defaults to STRUT_BACKEND, else to the fastest that works. */
  backend?: BackendName | undefined;
  /** Compute threads; defaults to STRUT_THREADS, else to the processors available. */
  threads?: number | undefined;
  /** CPU variant of the native backend: avx512, avx2 or baseline; defaults to STRUT_CPU, else the best this machine has. */
  cpu?: string | undefined;
}

export interface Engine {
  readonly backend: Backend;
  readonly pool: Pool;
  readonly scratch: { readonly dtype: "f32"; readonly block: Block; readonly offset: 0 };
  /** Why faster backends were passed over, for `strut info`. */
  readonly notes: readonly string[];
}

let current: Engine | undefined;
let starting: Promise<Engine> | undefined;

/** The running engine; throws before `start`. */
export function engine(): Engine {
  if (!current) throw new StrutError("engine", "an operation ran before the engine was started", { hint: "Call `await start()` once, first." });
  return current;
}

export const kernels = (): Kernels => engine().backend.kernels;

const environment = (name: string): string | undefined => globalThis.process?.env?.[name] || undefined;

/** The value if it is one of those allowed, else a StrutError that names the variable. */
function oneOf<T extends string>(value: string | undefined, allowed: readonly T[], what: string): T | undefined {
  if (value === undefined || allowed.includes(value as T)) return value as T | undefined;
  throw new StrutError("usage", `${what} is "${value}"; it must be one of ${allowed.join(", ")}`, { hint: `Unset ${what} to let strut choose.` });
}

/**
 * Starts the compute engine: native kernels where they were built, else WebAssembly, else plain TypeScript.
 * Calling it again returns the running engine; asking for another backend then is an error.
 *
 * @example
 * const engine = await start({ threads: 1 });
 * console.log(engine.backend.name);
 */
export async function start(options: StartOptions = {}): Promise<Engine> {
  const wanted = oneOf(options.backend ?? environment("STRUT_BACKEND"), ["native", "wasm", "reference"], "STRUT_BACKEND");
  const cpu = oneOf(options.cpu ?? environment("STRUT_CPU"), ["avx512", "avx2", "baseline"], "STRUT_CPU");
  const asked = options.threads ?? (environment("STRUT_THREADS") === undefined ? undefined : Number(environment("STRUT_THREADS")));
  if (asked !== undefined && !(Number.isInteger(asked) && asked >= 1 && asked <= 256))
    throw new StrutError("usage", `STRUT_THREADS is ${asked}; it must be a whole number from 1 to 256`);
  const running = current ?? (starting && (await starting));
  if (running) {
    if (wanted && running.backend.name !== wanted)
      throw new StrutError("engine", `the engine already runs on ${running.backend.name}; ${wanted} was asked for`, {
        hint: "Call `stop()` first; tensors of the old engine are lost.",
      });
    return running;
  }
  starting = first(wanted, cpu, asked);
  try {
    return (current = await starting);
  } finally {
    starting = undefined;
  }
}

interface Way {
  readonly name: BackendName;
  readonly label: string;
  /** Threads below which it is not tried; defaults to 1. */
  readonly least?: number;
  load(threads: number, cpu: string | undefined): Promise<Backend>;
}

/** The ways to compute, fastest first. */
const ways: readonly Way[] = [
  { name: "native", label: "native", load: async (threads, cpu) => (await import("./backends/native.ts")).nativeBackend(threads, cpu) },
  { name: "wasm", label: "wasm with threads", least: 2, load: async (threads) => (await import("./backends/wasm.ts")).threadedWasmBackend(threads) },
  { name: "wasm", label: "wasm", load: async () => (await import("./backends/wasm.ts")).wasmBackend() },
  { name: "reference", label: "reference", load: async () => (await import("./backends/reference.ts")).referenceBackend() },
];

/** The fastest way that works, of the wanted backend if one is wanted. */
async function first(wanted: BackendName | undefined, cpu: string | undefined, asked: number | undefined): Promise<Engine> {
  const threads = asked ?? globalThis.navigator?.hardwareConcurrency ?? process.getBuiltinModule("node:os").availableParallelism();
  const notes: string[] = [];
  let problem: unknown;
  for (const { name, label, least = 1, load } of ways) {
    if ((wanted && name !== wanted) || threads < least) continue;
    try {
      return engineOn(await load(threads, cpu), notes);
    } catch (error) {
      if ((error as StrutError).code === "usage") throw error;
      notes.push(`${label}: ${(error as Error).message}`);
      problem = error;
    }
  }
  throw problem as Error;
}

function engineOn(backend: Backend, notes: readonly string[]): Engine {
  return { backend, notes, pool: new Pool(backend), scratch: { dtype: "f32", block: backend.allocate(SCRATCH_FLOATS * 4), offset: 0 } };
}

/** Stops the engine's threads and forgets it; its tensors can no longer be used. */
export function stop(): void {
  current?.backend.stop();
  current = undefined;
}
