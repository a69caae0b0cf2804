import { execFileSync, spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("../..", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "strut-pool-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The pool alone with a program around it, or nothing where there is no C compiler. */
function program(): string | undefined {
  for (const [from, to] of [
    ["kernels/pool.c", "pool.c"],
    ["kernels/strut.h", "strut.h"],
    ["test/kernels/pool-stress.c", "stress.c"],
  ] as const)
    copyFileSync(join(root, from), join(folder, to));
  writeFileSync(join(folder, "prototypes.h"), "enum { SCRATCH_FLOATS = 1 << 22 };\n");
  for (const compiler of ["cc", "gcc", "clang"])
    if (spawnSync(compiler, ["--version"]).status === 0) {
      execFileSync(compiler, ["-std=gnu11", "-O2", "-pthread", "-DISA=test", "pool.c", "stress.c", "-o", "stress"], { cwd: folder });
      return join(folder, "stress");
    }
  return undefined;
}

const stress = process.platform === "win32" ? undefined : program();
if (!stress) console.log("the thread pool is not tested here: no C compiler was found");

describe.skipIf(!stress)("the thread pool", () => {
  it.each([
    [1, 100_000],
    [2, 100_000],
    [3, 100_000],
    [8, 100_000],
  ])("with %i threads runs every task of %i jobs once, however few or many tasks follow each other", (threads, jobs) => {
    const { status, stdout } = spawnSync(stress!, [String(threads), String(jobs)], { encoding: "utf8", timeout: 30_000 });
    expect(stdout).toBe("");
    expect(status).toBe(0);
  });
});
