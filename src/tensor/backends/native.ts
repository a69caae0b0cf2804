import { StrutError } from "../../errors.ts";
import { bytesOf, viewOf } from "../dtype.ts";
import { bindKernels, type Backend, type Memory } from "./backend.ts";
import { arrayBufferMemory, callReference } from "./reference.ts";
import type { ArgumentType } from "./signature.ts";
import { f64Kernels, signatures, type KernelName } from "./signatures.ts";

const variants = ["baseline", "avx2", "avx512"] as const;
const cTypes: Record<string, string> = { i32: "int32_t", f64: "double" };
const cType = (type: ArgumentType): string => cTypes[type] ?? "void *";

/** The compiled C kernels, called in place through koffi. */
export async function nativeBackend(threads: number, cpu: string | undefined): Promise<Backend> {
  // asked of the process, not imported: a bundle for browsers holds neither Node's modules nor koffi nor the library
  const node = globalThis.process?.getBuiltinModule;
  if (!node) throw new StrutError("backend", "native code runs in Node only");
  const file = `../../../dist/kernels/strut-${process.platform}-${process.arch}.${process.platform === "darwin" ? "dylib" : "so"}`;
  const path = node("node:url").fileURLToPath(new URL(file, import.meta.url));
  if (!node("node:fs").existsSync(path))
    throw new StrutError("backend", "the native kernels were not built", { path, hint: "Run `npm run build` where a C compiler is installed." });
  const koffi = node("node:module").createRequire(import.meta.url)("koffi") as typeof import("koffi");
  const library = koffi.load(path);
  const best = library.func("int32_t strut_cpu(void)")() as number;
  const level = cpu === undefined ? best : variants.indexOf(cpu as (typeof variants)[number]);
  if (level > best)
    throw new StrutError("usage", `STRUT_CPU is ${cpu}; this machine has at most ${variants[best]}`, { hint: "Unset STRUT_CPU to let strut choose." });
  const variant = variants[level]!;
  const running = library.func("int32_t strut_start(int32_t threads)")(threads) as number;

  const foreign = new Map<string, (...values: unknown[]) => void>();
  for (const [name, { types }] of Object.entries(signatures))
    for (const form of f64Kernels.has(name as KernelName) ? [name, `${name}_f64`] : [name])
      foreign.set(form, library.func(`void ${form}_${variant}(${types.map((type, i) => `${cType(type)} a${i}`).join(", ")})`));

  const pointer = ({ block, dtype, offset }: Memory) =>
    viewOf(dtype, block.buffer!, offset * bytesOf(dtype), Math.floor(block.bytes / bytesOf(dtype)) - offset);
  return {
    name: "native",
    variant,
    threads: running,
    kernels: bindKernels((name, real, values) => {
      if (real === "f64" && !f64Kernels.has(name) && signatures[name].types.some((type) => type.startsWith("real")))
        return callReference(arrayBufferMemory, name, values);
      foreign.get(real === "f64" && f64Kernels.has(name) ? `${name}_f64` : name)!(
        ...values.map((value) => (value === null || typeof value === "number" ? value : pointer(value))),
      );
    }),
    ...arrayBufferMemory,
    stop: library.func("void strut_stop(void)") as () => void,
  };
}
