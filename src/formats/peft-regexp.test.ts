import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { pythonPattern } from "./peft-regexp.ts";

type Groups = Record<string, string | null>;
const golden = JSON.parse(readFileSync(new URL("../../test/interop/peft/python-re.json", import.meta.url), "utf8")) as {
  names: string[];
  short: string[];
  hand: [string, number[], (Groups | 0)[]][];
  drawn: [string, number[]][];
  refused: string[];
};

const outcome = (pattern: string, text: string): number => {
  const { match, fullmatch } = pythonPattern(pattern, "pattern");
  return (match(text) ? 1 : 0) + (fullmatch(text) ? 2 : 0);
};

describe("pythonPattern", () => {
  it.each(golden.hand)("matches names as Python does: %s", (pattern, expected, groups) => {
    expect(golden.names.map((name) => outcome(pattern, name))).toEqual(expected);
    for (const [i, group] of groups.entries()) {
      if (group === 0) continue;
      const some = Object.entries(group).filter(([, value]) => value !== null);
      expect(pythonPattern(pattern, "pattern").match(golden.names[i]!)).toEqual(Object.fromEntries(some));
    }
  });

  it("matches as Python does on 260 drawn patterns", () => {
    for (const [pattern, expected] of golden.drawn) expect([pattern, golden.short.map((text) => outcome(pattern, text))]).toEqual([pattern, expected]);
  });

  it.each(golden.refused)("refuses what Python refuses: %s", (pattern) => {
    expect(() => pythonPattern(pattern, "target_modules")).toThrow(/^target_modules ".*" /);
  });

  it("refuses syntax that it does not read with a sentence", () => {
    expect(() => pythonPattern("(?x)a b", "target_modules")).toThrow('target_modules "(?x)a b" uses the flags "x"');
    expect(() => pythonPattern("(a)?(?(1)b|c)", "target_modules")).toThrow("uses (?(1, which strut does not read");
  });

  it.each(["(a*)*x", "(a|a)*x", "(a+)+x", ".*.*.*.*.*.*.*.*.*.*x", "(?:a?){40}a{40}x"])("gives up on %s instead of hanging", (pattern) => {
    expect(() => pythonPattern(pattern, "rank_pattern").match(`${"a".repeat(60)}y`)).toThrow("takes too many steps");
  });

  it("bounds patterns and names", () => {
    expect(() => pythonPattern("a".repeat(20_001), "rank_pattern")).toThrow("20001 characters");
    expect(() => pythonPattern("a*", "rank_pattern").match("a".repeat(1_001))).toThrow("a name of 1001 characters");
    expect(pythonPattern("(?:a|b)*", "rank_pattern").fullmatch("ab".repeat(500))).toBe(true);
  });
});
