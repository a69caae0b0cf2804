import { StrutError } from "../../errors.ts";
import { bytesOf } from "../dtype.ts";
import { bindKernels, type Backend, type Block, type Memory } from "./backend.ts";
import { callReference } from "./reference.ts";
import { f64Kernels, signatures } from "./signatures.ts";
import { mayBlock, startWorker, threadless } from "./workers.ts";

const PAGE = 65536;
const STACK = 4 * PAGE;
/** As many as the pool of the kernels has room for. */
const MOST_THREADS = 32;

interface Exports {
  readonly __heap_base: WebAssembly.Global<"i32">;
  strut_start(threads: number, mayBlock: number): void;
  strut_stop(): void;
  [kernel: string]: unknown;
}

/** The same C kernels as WebAssembly with 128-bit SIMD, on threads that share its memory; fails where there are none. */
export async function threadedWasmBackend(threads: number): Promise<Backend> {
  const missing = threadless();
  if (missing) throw new StrutError("backend", missing);
  const wasm = await load(new URL("../../../dist/kernels/strut-threads.wasm", import.meta.url), true);
  const { exports, module, memory } = wasm;
  const running = Math.min(threads, MOST_THREADS);
  const start = (slot: number): Promise<void> => startWorker({ module, memory, slot, stack: wasm.allocate(STACK).address + STACK });
  try {
    await Promise.all(Array.from({ length: running - 1 }, (_, i) => start(i + 1)));
  } catch (error) {
    exports.strut_stop();
    throw new StrutError("backend", `its workers could not be started: ${(error as Error).message}`, { cause: error });
  }
  exports.strut_start(running, mayBlock() ? 1 : 0);
  return backendOn(wasm, running, () => exports.strut_stop());
}

/** The same on one thread. */
export async function wasmBackend(): Promise<Backend> {
  return backendOn(await load(new URL("../../../dist/kernels/strut.wasm", import.meta.url), false), 1, () => {});
}

interface Loaded extends Pick<Backend, "allocate" | "locate"> {
  readonly exports: Exports;
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
}

/** Tensors live in the module's linear memory, which grows to 4 GiB. */
async function load(url: URL, shared: boolean): Promise<Loaded> {
  const module = await WebAssembly.compile(await moduleBytes(url));
  const memory = new WebAssembly.Memory({ initial: 64, maximum: 65536, shared });
  const exports = (await WebAssembly.instantiate(module, { env: { memory } })).exports as unknown as Exports;
  let top = Math.ceil(exports.__heap_base.value / 64) * 64;
  return {
    exports,
    module,
    memory,
    allocate(bytes) {
      const address = top;
      const missing = Math.ceil((address + bytes - memory.buffer.byteLength) / PAGE);
      if (missing > 0) grow(memory, missing);
      top += Math.ceil(bytes / 64) * 64;
      return { bytes, address };
    },
    locate: (block: Block) => ({ buffer: memory.buffer, byteOffset: block.address }),
  };
}

function backendOn({ exports, allocate, locate }: Loaded, threads: number, stop: () => void): Backend {
  const address = ({ block, dtype, offset }: Memory) => block.address + offset * bytesOf(dtype);
  return {
    name: "wasm",
    variant: "simd128",
    threads,
    kernels: bindKernels((name, real, values) => {
      if (real === "f64" && !f64Kernels.has(name) && signatures[name].types.some((type) => type.startsWith("real")))
        return callReference({ locate }, name, values);
      (exports[real === "f64" && f64Kernels.has(name) ? `${name}_f64` : name] as (...values: number[]) => void)(
        ...values.map((value) => (value === null ? 0 : typeof value === "number" ? value : address(value))),
      );
    }),
    allocate,
    locate,
    stop,
  };
}

function grow(memory: WebAssembly.Memory, pages: number): void {
  try {
    memory.grow(pages);
  } catch {
    throw new StrutError("memory", `WebAssembly memory is full: ${Math.round(memory.buffer.byteLength / 2 ** 20)} MiB are in use and 4096 MiB is its limit`, {
      hint: "Use smaller batches, or the native backend.",
    });
  }
}

async function moduleBytes(url: URL): Promise<BufferSource> {
  if (url.protocol !== "file:") {
    const response = await fetch(url);
    if (!response.ok) throw new StrutError("backend", `the WebAssembly kernels could not be fetched (status ${response.status})`, { path: url.href });
    return response.arrayBuffer();
  }
  const { readFile } = process.getBuiltinModule("node:fs/promises");
  try {
    return await readFile(url);
  } catch {
    throw new StrutError("backend", "the WebAssembly kernels were not built", { path: url.pathname, hint: "Run `npm run build`." });
  }
}
