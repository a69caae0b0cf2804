// Makes what Node loads into few files (dist/node), since finding and reading hundreds of modules takes longer than running them.
// Bundlers get the modules themselves. Runs after tsc.
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "rolldown";

const root = fileURLToPath(new URL("..", import.meta.url));
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const entries = ["./dist/cli/main.js", ...Object.values(manifest.exports).flatMap((target) => target.default ?? [])];

/** zod comes with its messages in fifty languages and loads them all. */
const oneLanguage = {
  name: "one-language",
  load: (id) => (/[\\/]zod[\\/]v4[\\/]locales[\\/]index\.js$/.test(id) ? 'export { default as en } from "./en.js";' : undefined),
};

rmSync(join(root, "dist/node"), { recursive: true, force: true });
const { output } = await build({
  input: Object.fromEntries(entries.map((path) => [path.replace(/^\.\/dist\/|\.js$/g, ""), path])),
  cwd: root,
  platform: "node",
  external: "@huggingface/tokenizers",
  plugins: [oneLanguage],
  checks: { ineffectiveDynamicImport: false },
  // chunks lie as deep as the modules that look for the kernels
  // without comments and blanks there is half as much to read
  output: { dir: "dist/node", chunkFileNames: "chunks/[name]-[hash].js", minify: { compress: false, mangle: false, codegen: { removeWhitespace: true } } },
  logLevel: "warn",
});

const modules = output.flatMap((chunk) => chunk.moduleIds ?? []);
const packages = new Set(modules.flatMap((id) => /^(.*[\\/]node_modules[\\/](?:@[^\\/]+[\\/])?[^\\/]+)[\\/]/.exec(id)?.[1] ?? []));
const licences = [...packages].sort().map((folder) => {
  const file = ["LICENSE", "LICENSE.md", "LICENSE.txt"].map((name) => join(folder, name)).find((path) => existsSync(path));
  return `${JSON.parse(readFileSync(join(folder, "package.json"), "utf8")).name}\n\n${readFileSync(file, "utf8")}`;
});
writeFileSync(join(root, "dist/node/LICENSES.txt"), licences.join(`\n${"-".repeat(80)}\n\n`));
