import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, posix } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { memoryFiles, memoryPaths } from "./memory-files.ts";
import { files, type Files } from "./system.ts";

let root: string;
beforeAll(async () => void (root = await mkdtemp(join(tmpdir(), "strut-files-"))));
afterAll(() => rm(root, { recursive: true }));

const path = fc.array(fc.constantFrom("a", "b", "c"), { minLength: 1, maxLength: 3 }).map((parts) => parts.join("/"));
const content = fc.string({ maxLength: 20 });
const flag = fc.boolean();

type Step = (on: Files, at: (path: string) => string) => Promise<unknown>;

const step: fc.Arbitrary<[string, Step]> = fc.oneof(
  fc.tuple(path, flag).map(([p, recursive]): [string, Step] => [`mkdir ${p} ${recursive}`, async (on, at) => void (await on.mkdir(at(p), { recursive }))]),
  fc.tuple(path, content).map(([p, text]): [string, Step] => [`writeFile ${p}`, (on, at) => on.writeFile(at(p), text)]),
  path.map((p): [string, Step] => [`readFile ${p}`, (on, at) => on.readFile(at(p), "utf8")]),
  path.map((p): [string, Step] => [`readdir ${p}`, async (on, at) => (await on.readdir(at(p))).sort()]),
  path.map((p): [string, Step] => [`stat ${p}`, async (on, at) => kindOf(await on.stat(at(p)))]),
  path.map((p): [string, Step] => [`realpath ${p}`, async (on, at) => (await on.realpath(at(p))) === at(p)]),
  path.map((p): [string, Step] => [`rmdir ${p}`, (on, at) => on.rmdir(at(p))]),
  fc.tuple(path, path).map(([p, q]): [string, Step] => [`rename ${p} ${q}`, (on, at) => on.rename(at(p), at(q))]),
  fc.tuple(path, path).map(([p, q]): [string, Step] => [`copyFile ${p} ${q}`, (on, at) => on.copyFile(at(p), at(q))]),
  fc.tuple(path, flag, flag).map(([p, recursive, force]): [string, Step] => [`rm ${p} ${recursive} ${force}`, (on, at) => on.rm(at(p), { recursive, force })]),
  fc.tuple(path, content).map(([p, text]): [string, Step] => [`open wx ${p}`, (on, at) => exclusively(on, at(p), text)]),
  path.map((p): [string, Step] => [`open r ${p}`, (on, at) => middle(on, at(p))]),
);

const kindOf = (status: Awaited<ReturnType<Files["stat"]>>) => (status.isFile() ? status.size : status.isDirectory());

async function exclusively(on: Files, at: string, text: string): Promise<number> {
  const handle = await on.open(at, "wx");
  const bytes = new TextEncoder().encode(`${text}${text}`);
  const half = bytes.length / 2;
  await handle.write(bytes, 0, half);
  const { bytesWritten } = await handle.write(bytes, half, half);
  await handle.sync();
  await handle.close();
  return bytesWritten;
}

async function middle(on: Files, at: string): Promise<unknown> {
  const handle = await on.open(at, "r");
  try {
    const bytes = new Uint8Array(8);
    const { bytesRead } = await handle.read(bytes, 1, 5, 3);
    return [bytesRead, [...bytes], kindOf(await handle.stat())];
  } finally {
    await handle.close();
  }
}

/** What a step gives, or its error's code; where two paths can be wrong, systems differ in which they look at first. */
const outcome = (promise: Promise<unknown>, name: string): Promise<unknown> =>
  promise.catch((error: NodeJS.ErrnoException) => (/rename|copyFile/.test(name) ? "fails" : `fails with ${error.code}`));

describe("files in memory", () => {
  it("answer as files on a disk do, whatever is done in whatever order", async () => {
    let run = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 25 }), async (steps) => {
        const base = join(root, String(run++));
        await files.mkdir(base);
        const memory = memoryFiles();
        for (const [name, body] of steps) {
          const onDisk = await outcome(
            body(files, (path) => `${base}/${path}`),
            name,
          );
          expect(
            await outcome(
              body(memory, (path) => `/${path}`),
              name,
            ),
            name,
          ).toEqual(onDisk);
        }
      }),
      { numRuns: 300 },
    );
  });
});

describe("paths in memory", () => {
  const any = fc.array(fc.constantFrom("a", "bc", ".", "..", "", "d.e"), { maxLength: 6 }).map((parts) => parts.join("/"));

  it("are those of POSIX", () => {
    fc.assert(
      fc.property(any, any, (p, q) => {
        expect(memoryPaths.join(p, q).replace(/(.)\/$/, "$1")).toBe(posix.join(p, q).replace(/(.)\/$/, "$1"));
        expect(memoryPaths.resolve(p, q)).toBe(posix.resolve("/", p, q));
        expect(memoryPaths.relative(`/${p}`, `/${q}`)).toBe(posix.relative(`/${p}`, `/${q}`));
        expect(memoryPaths.basename(p)).toBe(posix.basename(p));
        const normal = posix.normalize(`/${p}`);
        expect(memoryPaths.dirname(normal)).toBe(posix.dirname(normal));
        if (p !== "") expect(memoryPaths.dirname(memoryPaths.join(p))).toBe(posix.dirname(posix.join(p)));
      }),
    );
  });
});
