import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { gzipSync } from "node:zlib";
import { beforeAll, describe, expect, it } from "vitest";
import { build } from "../cli/dist.ts";
import { bundle, type Output } from "./build.ts";

beforeAll(build);

const zipped = (output: Output): number => gzipSync(output.type === "chunk" ? output.code : output.source).length / 1024;
const sum = (sizes: readonly number[]): number => sizes.reduce((total, size) => total + size, 0);

/** KiB after gzip: of what the entry loads at once, of all scripts, and of each other file. */
function sizesOf(outputs: readonly Output[]) {
  const chunks = outputs.filter((output) => output.type === "chunk");
  const atOnce = new Set(chunks.filter(({ isEntry }) => isEntry));
  for (const chunk of atOnce) for (const file of chunk.imports) atOnce.add(chunks.find(({ fileName }) => fileName === file)!);
  const assets = outputs.filter((output) => output.type === "asset");
  return {
    atOnce: sum([...atOnce].map(zipped)),
    scripts: sum(chunks.map(zipped)),
    assets: assets.map((asset) => ({ name: asset.fileName, size: zipped(asset) })),
  };
}

describe.each([
  ["adapt", 60],
  ["everything", 240],
] as const)("the bundle of %s", (entry, most) => {
  let outputs: Output[];
  beforeAll(async () => void (outputs = await bundle(entry)));

  it("imports nothing of Node and no native code", () => {
    for (const output of outputs) {
      if (output.type === "asset") {
        expect(output.fileName).toMatch(/\/(strut(-threads)?-[\w-]+\.wasm|thread-[\w-]+\.js)$/);
        continue;
      }
      // a module of Node that is imported becomes an empty one of this name
      expect(Object.keys(output.modules).filter((id) => /^node:|browser-external/.test(id))).toEqual([]);
      expect([...output.imports, ...output.dynamicImports].filter((file) => !outputs.some(({ fileName }) => fileName === file))).toEqual([]);
      expect(output.code).not.toMatch(/(from|import|require)\s*\(?\s*["'`](node:|koffi)/);
    }
  });

  it(`loads at most ${most} KiB of scripts after gzip, and at most 160 KiB for a file of kernels`, () => {
    const { atOnce, scripts, assets } = sizesOf(outputs);
    const kernels = assets.filter(({ name }) => name.endsWith(".wasm"));
    console.log(
      `bundle of ${entry}: ${atOnce.toFixed(1)} KiB at once, ${scripts.toFixed(1)} KiB of scripts in all, ${assets.map(({ name, size }) => `${name} ${size.toFixed(1)} KiB`).join(", ")}`,
    );
    expect(scripts).toBeLessThan(most);
    for (const { name, size } of kernels) expect(size, name).toBeLessThan(160);
    expect(kernels.length).toBe(2);
  });
});

const { exports } = JSON.parse(readFileSync("package.json", "utf8")) as { exports: Record<string, string | { node: string; default: string }> };

describe("the files that Node loads", () => {
  it.each(Object.entries(exports).filter(([, target]) => typeof target === "object"))("of %s export what its modules do", async (_, target) => {
    const { node, default: modules } = target as { node: string; default: string };
    const names = async (path: string): Promise<string[]> => Object.keys((await import(/* @vite-ignore */ pathToFileURL(path).href)) as object).sort();
    expect(await names(node)).toEqual(await names(modules));
  });

  it.each(["wasm", "reference"])("compute on %s", (backend) => {
    const program = `import { matmul, ones, start, sum } from "strut"; import { engine } from "strut/tensor";
      await start({ backend: "${backend}", threads: 2 });
      console.log(engine().backend.name, await sum(matmul(ones([3, 4]), ones([4, 5]))).item());`;
    const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", program], { encoding: "utf8" });
    expect([stdout, stderr]).toEqual([`${backend} 60\n`, ""]);
  });
});
