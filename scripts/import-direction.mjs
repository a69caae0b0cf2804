// Imports point one way (docs/architecture.md): a folder may import from itself and from folders before it.
import { readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join, relative, resolve, sep } from "node:path";

const levels = [
  ["errors.ts"],
  ["tensor"],
  ["linalg"],
  ["operators"],
  ["nn"],
  ["formats", "data"],
  ["models"],
  ["initializers"],
  [
    "adapters",
    "parametrizations",
    "optimizers",
    "regularizers",
    "compressors",
    "mergers",
    "analyzers",
    "attention",
    "recovery",
    "recommenders",
    "graph",
    "retrieval",
  ],
  ["training"],
  ["catalog.ts"],
  ["recipe", "report"],
  ["compare"],
  ["index.ts"],
  ["cli"],
];
const levelOf = (name) => levels.findIndex((level) => level.includes(name));
const root = resolve("src");
const problems = [];

function* files(folder) {
  for (const name of readdirSync(folder)) {
    const path = join(folder, name);
    if (statSync(path).isDirectory()) yield* files(path);
    else if (path.endsWith(".ts")) yield path;
  }
}

for (const file of files(root)) {
  const own = relative(root, file).split(sep)[0];
  if (levelOf(own) < 0) problems.push(`${relative(".", file)}: the folder ${own} has no place in the plan`);
  if (file.endsWith(".test.ts")) continue;
  for (const [, target] of readFileSync(file, "utf8").matchAll(/(?:from|import\()\s*"(\.[^"]+)"/g)) {
    const other = relative(root, resolve(dirname(file), target)).split(sep)[0];
    if (levelOf(other) > levelOf(own)) problems.push(`${relative(".", file)} imports ${target}: ${own} must not know ${other}`);
    else if (other !== own && levelOf(other) === levelOf(own))
      problems.push(`${relative(".", file)} imports ${target}: ${own} and ${other} stand side by side`);
  }
}
if (problems.length > 0) {
  console.error(problems.join("\n"));
  process.exit(1);
}
