// Compiles kernels/*.c to WebAssembly and, where a C compiler is found, to a native library. Runs after tsc.
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { arch, platform, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { SCRATCH_FLOATS } from "../dist/tensor/backends/signature.js";
import { f64Kernels, signatures } from "../dist/tensor/backends/signatures.js";

const run = promisify(execFile);
const root = fileURLToPath(new URL("..", import.meta.url));
const out = join(root, "dist", "kernels");
const names = Object.keys(signatures).flatMap((name) => (f64Kernels.has(name) ? [name, `${name}_f64`] : [name]));

const exported = (symbols) => symbols.map((symbol) => `-Wl,--export=${symbol}`);
const wasmFlags = [
  ..."-std=gnu11 -O3 -msimd128 -ffp-contract=off -fno-math-errno -Wall -Wextra --target=wasm32-wasip1 -nostartfiles".split(" "),
  ..."-Wl,--no-entry -Wl,--import-memory -Wl,--initial-memory=1048576 -Wl,--max-memory=4294967296 -Wl,-z,stack-size=262144 -Wl,--stack-first -Wl,--strip-all".split(
    " ",
  ),
  // strength reduction of loops loses that offsets do not wrap, which costs an addition a load
  ...["-mllvm", "-disable-lsr"],
  ...exported(["__wasm_call_ctors", "__heap_base", "__stack_pointer", ...names]),
];
const threadFlags = ["-matomics", "-mbulk-memory", "-Wl,--shared-memory", ...exported(["strut_start", "strut_work", "strut_stop", "strut_break"])];
const nativeFlags = "-std=gnu11 -O3 -fPIC -pthread -fvisibility=hidden -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-psabi".split(
  " ",
);
const variants = {
  baseline: [],
  ...(arch() === "x64" && {
    avx2: ["-mavx2", "-mfma"],
    avx512: ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mprefer-vector-width=512"],
  }),
};

const extension = platform() === "darwin" ? "dylib" : "so";
const files = { wasm: "strut.wasm", threads: "strut-threads.wasm", native: `strut-${platform()}-${arch()}.${extension}` };

/** The prototypes of the table: a kernel that is missing or has other arguments fails the build. */
function prototypes() {
  const cType = (type, real) => ({ i32: "int32_t", f64: "double" })[type] ?? `${pointed(type.replace("?", ""), real)} *`;
  const pointed = (type, real) =>
    ({ "real*": real, "f32*": "float", "f64*": "double", "i32*": "int32_t", "i8*": "int8_t", "u8*": "uint8_t", "u16*": "uint16_t" })[type];
  const declare = (name) => {
    const [, base, double] = /^(.*?)(_f64)?$/.exec(name);
    return `void K(${name})(${signatures[base].types.map((type) => cType(type, double ? "double" : "float")).join(", ")});`;
  };
  return `enum { SCRATCH_FLOATS = ${SCRATCH_FLOATS} };\n#ifndef __wasm__\n#pragma GCC visibility push(default)\n#endif\n${names.map(declare).join("\n")}\n#ifndef __wasm__\n#pragma GCC visibility pop\n#endif\n`;
}

/** Refers to every kernel, so that linking fails where one is not defined. */
const required = `#include "strut.h"\nvoid (*const K(kernels)[])(void) = {${names.map((name) => `(void (*)(void))K(${name})`).join(", ")}};\n`;

function sources() {
  const inputs = readdirSync(join(root, "kernels")).filter((name) => /\.[ch]$/.test(name));
  return { ...Object.fromEntries(inputs.sort().map((name) => [name, readFileSync(join(root, "kernels", name), "utf8")])), "prototypes.h": prototypes() };
}

async function compiler() {
  for (const command of [process.env.CC, "cc", "gcc", "clang"].filter(Boolean)) {
    try {
      return { command, version: (await run(command, ["--version"])).stdout };
    } catch {}
  }
  return undefined;
}

async function buildWasm(tree, file, flags) {
  const { runClang } = await import("@yowasp/clang");
  await runClang(null, {}, { fetchProgress() {} });
  const messages = [];
  const stderr = (bytes) => void (bytes && messages.push(Buffer.from(bytes)));
  const units = Object.keys(tree).filter((name) => name.endsWith(".c"));
  try {
    return (await runClang(["clang", ...flags, ...units, "-o", file], { ...tree }, { stderr, decodeASCII: false }))[file];
  } catch {
    return undefined;
  } finally {
    process.stderr.write(Buffer.concat(messages));
  }
}

async function buildNative({ command }, tree) {
  const folder = mkdtempSync(join(tmpdir(), "strut-"));
  try {
    for (const [name, text] of Object.entries({ ...tree, "required.c": required })) writeFileSync(join(folder, name), text);
    const units = Object.keys(tree).filter((name) => name.endsWith(".c") && name !== "pool.c");
    const jobs = [["pool.c", "baseline"], ...Object.keys(variants).flatMap((variant) => ["required.c", ...units].map((unit) => [unit, variant]))];
    const objects = [];
    const work = async () => {
      for (let job; (job = jobs.shift());) {
        const [unit, variant] = job;
        const object = `${unit}.${variant}.o`;
        await run(command, [...nativeFlags, ...variants[variant], `-DISA=${variant}`, "-c", unit, "-o", object], { cwd: folder });
        objects.push(object);
      }
    };
    await Promise.all([work(), work()]);
    await run(command, ["-shared", "-s", "-pthread", ...(platform() === "linux" ? ["-Wl,-z,defs"] : []), ...objects.sort(), "-o", files.native, "-lm"], {
      cwd: folder,
    });
    return readFileSync(join(folder, files.native));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function readStamp() {
  try {
    return JSON.parse(readFileSync(join(out, "stamp.json"), "utf8"));
  } catch {
    return {};
  }
}

/** Makes one file unless its stamp says that it came from the same inputs. */
async function make(kind, stamp, inputs, build) {
  const hash = createHash("sha256").update(JSON.stringify(inputs)).digest("hex");
  try {
    readFileSync(join(out, files[kind]));
    if (stamp[kind] === hash) return;
  } catch {}
  const bytes = await build();
  if (!bytes) throw new Error(`${files[kind]} was not built`);
  const temporary = join(out, `.${files[kind]}.${process.pid}`);
  writeFileSync(temporary, bytes);
  renameSync(temporary, join(out, files[kind]));
  stamp[kind] = hash;
  const stamps = join(out, `.stamp.${process.pid}`);
  writeFileSync(stamps, JSON.stringify(stamp));
  renameSync(stamps, join(out, "stamp.json"));
}

mkdirSync(out, { recursive: true });
const tree = sources();
const script = readFileSync(fileURLToPath(import.meta.url), "utf8");
const stamp = readStamp();
try {
  await make("wasm", stamp, [tree, script], () => buildWasm(tree, files.wasm, wasmFlags));
  await make("threads", stamp, [tree, script], () => buildWasm(tree, files.threads, [...wasmFlags, ...threadFlags]));
} catch (error) {
  console.error(`strut: ${error.message}`);
  process.exit(1);
}
const native = await compiler();
const goOn = (why) => {
  rmSync(join(out, files.native), { force: true });
  console.log(`strut: ${why}, so strut goes on with WebAssembly.`);
};
if (!native) goOn("no C compiler was found");
else {
  try {
    await make("native", stamp, [tree, script, native], () => buildNative(native, tree));
  } catch (error) {
    if (process.env.STRUT_BUILD === "verbose") console.error(error.stderr ?? error);
    goOn(`${native.command} could not compile the native kernels (STRUT_BUILD=verbose says why)`);
  }
}
