import { spawnSync } from "node:child_process";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { beforeAll, describe, expect, it } from "vitest";
import { build } from "./dist.ts";

beforeAll(build);

const engine = pathToFileURL(resolve("dist/tensor/index.js")).href;

/** Runs a program on WebAssembly with four threads; it is killed after ten seconds. */
function run(body: string) {
  const program = `import { start, stop, matmul, ones, sum } from ${JSON.stringify(engine)};
    await start({ backend: "wasm", threads: 4 });
    const product = () => sum(matmul(ones([200, 200]), ones([200, 200]))).item();
    ${body}`;
  return spawnSync(process.execPath, ["--input-type=module", "-e", program], { encoding: "utf8", timeout: 10_000 });
}

describe("a process with WebAssembly threads", () => {
  it.each([
    ["that does nothing more", "", 0, ""],
    ["whose threads have worked", "console.log(await product());", 0, "8000000\n"],
    ["whose threads sleep", "await product(); await new Promise((done) => setTimeout(done, 300)); console.log('slept');", 0, "slept\n"],
    ["that stops the engine", "await product(); stop(); console.log('stopped');", 0, "stopped\n"],
    [
      "that starts it again and again",
      "for (let i = 0; i < 10; i++) { stop(); await start({ backend: 'wasm', threads: 3 }); } console.log(await product());",
      0,
      "8000000\n",
    ],
    ["that fails", "await product(); throw new Error('on purpose');", 1, ""],
    ["that exits while its threads wait", "await product(); process.exit(3);", 3, ""],
  ])("%s ends by itself", (_, body, code, out) => {
    const { status, signal, stdout, stderr } = run(body);
    expect([status, signal, stdout]).toEqual([code, null, out]);
    expect(stderr).toMatch(code === 1 ? /Error: on purpose/ : /^$/);
  });

  it("ends where a thread dies within a kernel, instead of waiting for it", () => {
    const { status, signal, stderr } = run(`
      const { engine } = await import(${JSON.stringify(engine)});
      const { backend } = engine();
      // most of what is filled lies beyond the end of the memory: the threads trap there
      const wild = { dtype: "f32", block: { bytes: 2 ** 27, address: 2 ** 30 }, offset: 0 };
      backend.kernels.fill(wild, 1, 2 ** 24);
    `);
    expect(signal).toBe(null);
    expect(status).toBe(1);
    expect(stderr).toMatch(/RuntimeError/);
  });
});
