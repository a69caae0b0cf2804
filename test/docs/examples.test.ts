import { readdir, readFile, mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { transformWithOxc } from "vite";
import { beforeAll, describe, expect, it } from "vitest";
import { openSafetensorsFile } from "../../src/formats/safetensors-folder.ts";
import * as formats from "../../src/formats/index.ts";
import * as linalg from "../../src/linalg/index.ts";
import * as strut from "../../src/index.ts";

/** Names that examples may use without making them. */
const scene: Record<string, unknown> = {};
let folder = "";

beforeAll(async () => {
  await strut.start();
  folder = await mkdtemp(join(tmpdir(), "strut-examples-"));
  const model = await strut.loadModel("data/lm/stories260K");
  const tuned = await strut.adapt(model, strut.lora, { r: 2 });
  await strut.saveAdapter(tuned, join(folder, "my-adapter"));
  const parameter = new strut.Parameter(strut.ones([2]), "w");
  const file = await openSafetensorsFile("test/interop/peft/lora-default/adapter_model.safetensors");
  Object.assign(scene, strut, formats, linalg, {
    file,
    config: formats.parsePeftConfig({ peft_type: "LORA" }),
    modules: [{ path: "model.layers.0.self_attn.q_proj", kind: "linear" }],
    sites: new Map(model.sites.map((site) => [site.path, { kind: site.kind, shape: [site.out, site.in] }])),
    text: "Once upon a time, there was a little girl named Lily.",
    ids: Int32Array.from({ length: 400 }, (_, i) => i),
    tokenizer: await formats.loadTokenizer("data/lm/stories260K"),
    model,
    base: model,
    tuned,
    x: strut.ones([4]),
    w: parameter,
    bytes: await readFile("data/lm/stories260K/model.safetensors"),
  });
});

/** Every @example of the sources: what stands behind the tag until the comment ends. */
async function examples(): Promise<{ file: string; title: string; code: string }[]> {
  const files = (await readdir("src", { recursive: true })).filter((name) => name.endsWith(".ts") && !name.endsWith(".test.ts"));
  const found: { file: string; title: string; code: string }[] = [];
  for (const name of files) {
    const text = await readFile(join("src", name), "utf8");
    for (const [, code] of text.matchAll(/\* @example\n([^]*?)\n\s*\*\//g))
      found.push({ file: name, title: `${name}: ${code!.trim().slice(2, 60)}`, code: code!.replaceAll(/^\s*\* ?/gm, "") });
  }
  for (const [, code] of (await readFile("README.md", "utf8")).matchAll(/```ts\n([^]*?)```/g))
    found.push({ file: "index.ts", title: "README.md", code: code!.replaceAll(/^import .*$/gm, "") });
  return found;
}

describe("examples in doc comments and in the README run", async () => {
  it.each(await examples())("$title", async ({ file, code }) => {
    const own = (await import(join("../../src", file))) as Record<string, unknown>;
    const known = { ...scene, ...own };
    const place = await mkdtemp(join(folder, "example-"));
    const inside = code
      .replaceAll(/"(out\/[\w-]+)"/g, (_, name: string) => JSON.stringify(join(place, name)))
      .replaceAll(/"(my-adapter|[\w-]+\.safetensors)"/g, (_, name: string) => JSON.stringify(join(folder, name)))
      .replaceAll("await start();", "");
    const { code: script } = await transformWithOxc(`async () => {${inside}\n}`, "example.ts");
    const declared = new Set(
      [...inside.matchAll(/(?:const|let) (?:\{([^}]*)\}|(\w+))/g)].flatMap(([, many, one]) =>
        (many ?? one!).split(",").map((part) => part.split(":").at(-1)!.trim()),
      ),
    );
    const names = Object.keys(known).filter((name) => !declared.has(name));
    // oxlint-disable-next-line typescript/no-implied-eval -- examples are text in comments
    const run = new Function("console", ...names, `return (${script.trim().replace(/;$/, "")})();`) as (...values: unknown[]) => Promise<void>;
    await expect(run({ log() {} }, ...names.map((name) => known[name]))).resolves.toBeUndefined();
  });
});
