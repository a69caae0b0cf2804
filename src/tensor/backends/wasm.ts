import { StrutError } from "../../errors.ts";
import { bytesOf } from "../dtype.ts";
import { bindKernels, type Backend, type Block, type Memory } from "./backend.ts";
import { callReference } from "./reference.ts";
import { f64Kernels, signatures } from "./signatures.ts";

const PAGE = 65536;

/** The same C kernels as WebAssembly with 128-bit SIMD; tensors live in its linear memory. */
export async function wasmBackend(): Promise<Backend> {
  const memory = new WebAssembly.Memory({ initial: 64, maximum: 65536 });
  const { instance } = await WebAssembly.instantiate(await moduleBytes(), { env: { memory } });
  const exports = instance.exports as unknown as Record<string, (...values: number[]) => void> & { __heap_base: WebAssembly.Global };
  let top = Math.ceil(Number(exports.__heap_base.value) / 64) * 64;

  const allocate = (bytes: number): Block => {
    const address = top;
    top += Math.ceil(bytes / 64) * 64;
    const missing = Math.ceil((top - memory.buffer.byteLength) / PAGE);
    if (missing > 0) grow(memory, missing);
    return { bytes, address };
  };
  const locate = (block: Block) => ({ buffer: memory.buffer as ArrayBufferLike, byteOffset: block.address });
  const address = ({ block, dtype, offset }: Memory) => block.address + offset * bytesOf(dtype);
  return {
    name: "wasm",
    variant: "simd128",
    threads: 1,
    kernels: bindKernels((name, real, values) => {
      if (real === "f64" && !f64Kernels.has(name) && signatures[name].types.some((type) => type.startsWith("real")))
        return callReference({ locate }, name, values);
      exports[real === "f64" && f64Kernels.has(name) ? `${name}_f64` : name]!(
        ...values.map((value) => (value === null ? 0 : typeof value === "number" ? value : address(value))),
      );
    }),
    allocate,
    locate,
    stop() {},
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

async function moduleBytes(): Promise<BufferSource> {
  const url = new URL("../../../dist/kernels/strut.wasm", import.meta.url);
  if (url.protocol !== "file:") return (await fetch(url)).arrayBuffer();
  const { readFile } = await import("node:fs/promises");
  try {
    return await readFile(url);
  } catch {
    throw new StrutError("backend", "the WebAssembly kernels were not built", { path: url.pathname, hint: "Run `npm run build`." });
  }
}
