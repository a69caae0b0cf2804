import { cp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { StrutError } from "../../src/errors.ts";
import { parseRecipe } from "../../src/recipe/read.ts";
import { names, STORIES, strut, temporary } from "./strut.ts";

const folder = temporary();

/** Numbers in [0, 1) from a seed, so that a failure can be made again. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const pieces = [
  "",
  " ",
  "\n",
  "\t",
  ":",
  ": ",
  "- ",
  "[",
  "]",
  "{",
  "}",
  ",",
  "#",
  "&a",
  "*a",
  "<<: *a",
  "!!binary",
  "|",
  ">",
  "'",
  '"',
  "%",
  "@",
  "`",
  "?",
  "---",
  "...",
  "null",
  "true",
  "-1",
  "0",
  "1e999",
  ".nan",
  "0x7fffffff",
  "99999999999999999999",
  "1e-320",
  "__proto__",
  "constructor",
  "toString",
  "\u0000",
  "\ufeff",
  "\ud800",
  "é",
  "😀",
  "a".repeat(300),
  "[".repeat(200),
];

/** The text after one to four small accidents. */
function mutated(text: string, next: () => number): string {
  const at = (n: number): number => Math.floor(next() * n);
  let out = text;
  for (let n = 1 + at(4); n > 0; n--) {
    const [i, j] = [at(out.length + 1), at(out.length + 1)].sort((a, b) => a - b) as [number, number];
    const piece = pieces[at(pieces.length)]!;
    const lines = out.split("\n");
    const line = at(lines.length);
    out = [
      () => out.slice(0, i) + piece + out.slice(i),
      () => out.slice(0, i) + piece + out.slice(Math.min(j, i + 8)),
      () => out.slice(0, i) + out.slice(Math.min(j, i + 20)),
      () => lines.toSpliced(line, 1).join("\n"),
      () => lines.toSpliced(line, 0, lines[at(lines.length)]!).join("\n"),
      () => out.replace(/\d+/g, (digits) => (next() < 0.2 ? piece : digits)),
      () => out.slice(0, i) + String.fromCharCode(out.charCodeAt(i) ^ (1 << at(7))) + out.slice(i + 1),
    ][at(7)]!();
  }
  return out;
}

/** Runs cases until time is up; every one of them well under a second. */
async function fuzz(milliseconds: number, attempt: (next: () => number, seed: number) => Promise<void> | void): Promise<number> {
  const began = performance.now();
  let seed = 0;
  for (; performance.now() - began < milliseconds; seed++) {
    const from = performance.now();
    await attempt(random(seed), seed);
    expect(performance.now() - from, `seed ${seed} took long`).toBeLessThan(2000);
  }
  return seed;
}

describe("mutated input", () => {
  it("recipes are read or refused with a sentence", async () => {
    const recipes = await Promise.all((await names("examples")).map((name) => readFile(join("examples", name), "utf8")));
    const cases = await fuzz(2000, (next, seed) => {
      const text = mutated(recipes[seed % recipes.length]!, next);
      try {
        parseRecipe(text, "r.yaml");
      } catch (error) {
        if (!(error instanceof StrutError)) throw new Error(`seed ${seed}: ${JSON.stringify(text)}`, { cause: error });
      }
    });
    expect(cases).toBeGreaterThan(50);
  });

  it.each([
    ["config.json", STORIES],
    ["tokenizer.json", STORIES],
    ["adapter_config.json", "test/interop/peft/lora-dora"],
  ])("models and adapters with another %s are described, run, or refused with a sentence", async (file, from) => {
    const own = join(folder, file);
    await cp(from, own, { recursive: true });
    const before = await readFile(join(from, file), "utf8");
    const isAdapter = file.startsWith("adapter");
    await fuzz(2000, async (next, seed) => {
      await writeFile(join(own, file), mutated(before, next));
      const argv = isAdapter ? ["generate", STORIES, "--adapter", own] : ["generate", own];
      for (const ran of [await strut("info", own, "--json"), await strut(...argv, "--prompt", "Once", "--max-new-tokens", "2", "--json")]) {
        expect([0, 1], `seed ${seed}`).toContain(ran.code);
        expect(ran.err, `seed ${seed}`).not.toContain("unexpected");
        if (ran.code === 1) expect([ran.out, ran.err.slice(0, 7)], `seed ${seed}`).toEqual(["", "strut: "]);
      }
    });
  });
});
