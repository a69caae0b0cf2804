// Makes what Node loads into few files, since finding and reading a hundred modules takes longer than running them: zod without
// its fifty languages as dist/zod.js, and every entry of the package in dist/node. Bundlers take the modules themselves. Runs after tsc.
import { readFileSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "rolldown";

const root = fileURLToPath(new URL("..", import.meta.url));
const entries = Object.values(JSON.parse(readFileSync(`${root}package.json`, "utf8")).exports)
  .filter((target) => typeof target === "object")
  .map((target) => target.default);

const oneLanguage = {
  name: "one-language",
  load: (id) => (/[\\/]zod[\\/]v4[\\/]locales[\\/]index\.js$/.test(id) ? 'export { default as en } from "./en.js";' : undefined),
};

await build({ input: "zod", cwd: root, plugins: [oneLanguage], output: { file: "dist/zod.js", minify: true }, logLevel: "warn" });

rmSync(`${root}dist/node`, { recursive: true, force: true });
await build({
  // chunks lie as deep as the modules that look for the kernels
  input: Object.fromEntries(entries.map((path) => [path.replace(/^\.\/dist\/|\.js$/g, ""), path])),
  cwd: root,
  platform: "node",
  external: "@huggingface/tokenizers",
  // not the finished file: of the modules only what is used comes along
  resolve: { alias: { "#zod": "zod" } },
  plugins: [oneLanguage],
  checks: { ineffectiveDynamicImport: false },
  output: { dir: "dist/node", chunkFileNames: "chunks/[name]-[hash].js" },
  logLevel: "warn",
});
