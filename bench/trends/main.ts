import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { start, stop } from "strut/tensor";
import { broken, mean, spread, type Recipe, type Row } from "./recipe.ts";

// npm run trends [-- ID ...]: runs the recipes, prints a table of each, asserts its orders and keeps the results in bench/results and docs/experiments.md.
const here = fileURLToPath(new URL(".", import.meta.url));
const results = "bench/results/trends.json";
const parts = new Set(["main.js", "recipe.js"]);
const ids = (await readdir(here)).filter((name) => name.endsWith(".js") && !parts.has(name)).map((name) => name.slice(0, -3));
const wanted = process.argv.slice(2);
const unknown = wanted.filter((id) => !ids.includes(id));
if (unknown.length > 0) {
  console.error(`there is no recipe ${unknown.join(", ")}; there are ${ids.join(", ")}`);
  process.exit(2);
}

interface Result {
  readonly title: string;
  readonly sheet: string;
  readonly note?: string;
  readonly rows: readonly Row[];
  readonly orders: Recipe["orders"];
  readonly broken: readonly string[];
  readonly seconds: number;
}

const kept: Record<string, Result> = JSON.parse(await readFile(results, "utf8").catch(() => "{}")) as Record<string, Result>;
const digits = (x: number): string => (Math.abs(x) < 0.01 && x !== 0 ? x.toExponential(1) : x.toFixed(3));

const tableOf = ({ title, sheet, note, rows, orders, broken: wrong }: Result): string =>
  [
    `## ${title}`,
    "",
    `Sheet: ${sheet}`,
    "",
    "| | parameters | mean | spread | seeds |",
    "|---|--:|--:|--:|---|",
    ...rows.map(
      ({ label, parameters, values }) =>
        `| ${label} | ${parameters} | ${digits(mean(values))} | ${digits(spread(values))} | ${values.map(digits).join(", ")} |`,
    ),
    "",
    ...(note ? [note, ""] : []),
    orders.length > 0 ? `Asserted: ${orders.map(([a, b]) => `${a} before ${b}`).join("; ")}.` : "No order is asserted.",
    ...wrong.map((line) => `**Broken**: ${line}`),
    "",
  ].join("\n");

await start();
let failed = false;
for (const id of wanted.length > 0 ? wanted : ids) {
  const { default: recipe } = (await import(join(here, `${id}.js`))) as { default: Recipe };
  const began = performance.now();
  const rows = await recipe.rows();
  const wrong = broken(recipe, rows);
  failed ||= wrong.length > 0;
  const { title, sheet, note, orders } = recipe;
  kept[id] = { title, sheet, ...(note ? { note } : {}), rows, orders, broken: wrong, seconds: Math.round((performance.now() - began) / 100) / 10 };
  console.log(tableOf(kept[id]));
  const sorted = Object.fromEntries(Object.entries(kept).sort(([a], [b]) => (a < b ? -1 : 1)));
  await writeFile(results, `${JSON.stringify(sorted, null, 1)}\n`);
  await writeFile(
    "docs/experiments.md",
    `# Experiments on synthetic tasks\n\nThree seeds each; an order counts only beyond the larger standard deviation. \`npm run trends\`.\n\n${Object.values(sorted).map(tableOf).join("\n")}`,
  );
}
stop();
if (failed) process.exit(1);
