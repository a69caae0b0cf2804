import { readdir } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { broken, type Recipe } from "../../bench/trends/recipe.ts";
import { start } from "../../src/tensor/index.ts";

const folder = "bench/trends";
const parts = new Set(["main.ts", "recipe.ts"]);
const names = (await readdir(folder)).filter((name) => name.endsWith(".ts") && !parts.has(name));
const recipes = await Promise.all(
  names.map(async (name) => [name.slice(0, -3), ((await import(`../../${folder}/${name}`)) as { default: Recipe }).default] as const),
);

beforeAll(async () => {
  await start();
});

describe("experiments of the sheets that take seconds", () => {
  it.each(recipes.filter(([, { quick }]) => quick))("%s: the order is that of the sheet, beyond the spread of three seeds", async (_id, recipe) => {
    expect(broken(recipe, await recipe.rows())).toEqual([]);
  });
});
