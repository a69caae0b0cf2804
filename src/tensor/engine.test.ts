import { existsSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { StrutError } from "../errors.ts";

/** A fresh copy of the engine's modules, since the engine is one a process. */
async function fresh() {
  vi.resetModules();
  return import("./index.ts");
}

let modules: Awaited<ReturnType<typeof fresh>>[] = [];

beforeEach(() => {
  for (const name of ["STRUT_BACKEND", "STRUT_CPU", "STRUT_THREADS"]) vi.stubEnv(name, "");
});

afterEach(() => {
  for (const module of modules) module.stop();
  modules = [];
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
});

async function started(environment: Record<string, string>, options = {}) {
  for (const [name, value] of Object.entries(environment)) vi.stubEnv(name, value);
  const module = await fresh();
  modules.push(module);
  return module.start(options);
}

/** The native library and the WebAssembly file are missing, as asked. */
function without(...missing: string[]): void {
  const hidden = (path: unknown): boolean => missing.some((part) => String(path).includes(part));
  const real = process.getBuiltinModule;
  const [fs, promises] = [real("node:fs"), real("node:fs/promises")];
  const instead: Record<string, unknown> = {
    "node:fs": { ...fs, existsSync: (path: string) => !hidden(path) && fs.existsSync(path) },
    "node:fs/promises": { ...promises, readFile: (path: string) => (hidden(path) ? Promise.reject(new Error("ENOENT")) : promises.readFile(path)) },
  };
  vi.spyOn(process, "getBuiltinModule").mockImplementation(((id: string) => instead[id] ?? real(id as "fs")) as typeof real);
}

/** Where no C compiler was found there is no native library; asking for it then ends in a sentence. */
const built = existsSync(
  new URL(`../../dist/kernels/strut-${process.platform}-${process.arch}.${process.platform === "darwin" ? "dylib" : "so"}`, import.meta.url),
);

async function onNative(environment: Record<string, string>, options = {}) {
  if (built) return started(environment, options);
  await expect(started(environment, options)).rejects.toThrow("the native kernels were not built");
  return undefined;
}

describe("start", () => {
  it.each(["wasm", "reference"] as const)("runs on %s where STRUT_BACKEND says so", async (name) => {
    const { backend, notes } = await started({ STRUT_BACKEND: name });
    expect(backend.name).toBe(name);
    expect(notes).toEqual([]);
  });

  it("runs on native where STRUT_BACKEND says so and it was built", async () => {
    const engine = await onNative({ STRUT_BACKEND: "native" });
    if (engine) expect([engine.backend.name, engine.notes]).toEqual(["native", []]);
  });

  it.each(["baseline", "avx2", "avx512"])("uses the variant %s where STRUT_CPU says so and the machine has it", async (cpu) => {
    try {
      expect((await onNative({ STRUT_BACKEND: "native", STRUT_CPU: cpu }))?.backend.variant ?? cpu).toBe(cpu);
    } catch (error) {
      expect((error as StrutError).message).toMatch(/STRUT_CPU is \S+; this machine has at most/);
      console.log(`not tested here: ${(error as Error).message}`);
    }
  });

  it("uses as many threads as STRUT_THREADS says, on backends that have threads", async () => {
    for (const threads of [2, 1]) {
      const engine = await onNative({ STRUT_BACKEND: "native", STRUT_THREADS: String(threads) });
      if (engine) expect(engine.backend.threads).toBe(threads);
      modules.at(-1)!.stop();
    }
    for (const threads of [3, 1]) {
      const { backend, notes } = await started({ STRUT_BACKEND: "wasm", STRUT_THREADS: String(threads) });
      expect([backend.name, backend.threads, notes]).toEqual(["wasm", threads, []]);
    }
  });

  it("takes options before the environment", async () => {
    const engine = await onNative({ STRUT_BACKEND: "reference", STRUT_THREADS: "2", STRUT_CPU: "avx2" }, { backend: "native", threads: 1, cpu: "baseline" });
    if (engine) expect([engine.backend.name, engine.backend.threads, engine.backend.variant]).toEqual(["native", 1, "baseline"]);
  });

  it.each([
    [{ STRUT_BACKEND: "gpu" }, 'STRUT_BACKEND is "gpu"; it must be one of native, wasm, reference'],
    [{ STRUT_BACKEND: "Native" }, 'STRUT_BACKEND is "Native"; it must be one of native, wasm, reference'],
    [{ STRUT_CPU: "sse" }, 'STRUT_CPU is "sse"; it must be one of avx512, avx2, baseline'],
    [{ STRUT_THREADS: "0" }, "STRUT_THREADS is 0; it must be a whole number from 1 to 256"],
    [{ STRUT_THREADS: "1.5" }, "STRUT_THREADS is 1.5; it must be a whole number from 1 to 256"],
    [{ STRUT_THREADS: "many" }, "it must be a whole number from 1 to 256"],
    [{ STRUT_THREADS: "257" }, "it must be a whole number from 1 to 256"],
    [{ STRUT_THREADS: "-2" }, "it must be a whole number from 1 to 256"],
  ])("refuses %j in a sentence", async (environment, sentence) => {
    await expect(started(environment)).rejects.toThrow(sentence);
  });

  it("gives the running engine when called again, and refuses another backend then", async () => {
    const engine = await started({}, { backend: "reference" });
    expect(await modules[0]!.start()).toBe(engine);
    expect(await modules[0]!.start({ backend: "reference" })).toBe(engine);
    await expect(modules[0]!.start({ backend: "wasm" })).rejects.toThrow("the engine already runs on reference; wasm was asked for");
    modules[0]!.stop();
    expect((await modules[0]!.start({ backend: "wasm" })).backend.name).toBe("wasm");
  });

  it("falls back from native to WebAssembly with threads, without, and to plain TypeScript, and notes why", async () => {
    without(`/kernels/strut-${process.platform}`);
    const second = await started({ STRUT_THREADS: "2" });
    expect([second.backend.name, second.backend.threads]).toEqual(["wasm", 2]);
    expect(second.notes).toEqual(["native: the native kernels were not built"]);
    vi.restoreAllMocks();
    without(`/kernels/strut-${process.platform}`, "threads.wasm");
    const third = await started({ STRUT_THREADS: "2" });
    expect([third.backend.name, third.backend.threads]).toEqual(["wasm", 1]);
    expect(third.notes).toEqual(["native: the native kernels were not built", "wasm with threads: the WebAssembly kernels were not built"]);
    vi.restoreAllMocks();
    without("/kernels/strut");
    const fourth = await started({ STRUT_THREADS: "2" });
    expect(fourth.backend.name).toBe("reference");
    expect(fourth.notes).toEqual([
      "native: the native kernels were not built",
      "wasm with threads: the WebAssembly kernels were not built",
      "wasm: the WebAssembly kernels were not built",
    ]);
  });

  it("does not fall back from a backend that was asked for", async () => {
    without("/kernels/strut");
    await expect(started({ STRUT_BACKEND: "native" })).rejects.toThrow("the native kernels were not built");
    await expect(started({ STRUT_BACKEND: "wasm" })).rejects.toThrow("the WebAssembly kernels were not built");
  });

  it("computes the same on the backend it fell back to", async () => {
    without("/kernels/strut");
    await started({});
    const t = modules[0]!;
    expect(await t.sum(t.matmul(t.ones([3, 4]), t.ones([4, 5]))).item()).toBe(60);
  });
});

describe("an operation before start, or after stop", () => {
  it("ends in a sentence that says what to call", async () => {
    const t = await fresh();
    for (const operation of [() => t.ones([2]), () => t.scope(() => 1), () => t.tensor([1])]) {
      expect(operation).toThrow("an operation ran before the engine was started");
      try {
        operation();
      } catch (error) {
        expect((error as StrutError).hint).toContain("await start()");
      }
    }
    await t.start({ backend: "reference" });
    const x = t.ones([2]);
    t.stop();
    expect(() => t.add(x, x)).toThrow("an operation ran before the engine was started");
    t.stop();
  });
});

describe("start called twice at once", () => {
  it("gives one engine", async () => {
    const module = await fresh();
    modules.push(module);
    const [first, second] = await Promise.all([module.start(), module.start()]);
    expect(second === first).toBe(true);
  });
});
