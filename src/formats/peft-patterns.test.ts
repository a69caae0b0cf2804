import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { orderProofPatterns, patternLookup } from "./peft-patterns.ts";

const reading = (patterns: Record<string, number>, otherwise: number, paths: Iterable<string>): Map<string, number> => {
  const lookup = patternLookup(patterns, otherwise, "rank_pattern");
  return new Map([...paths].map((path) => [path, lookup(path).value]));
};

describe("orderProofPatterns", () => {
  it("is empty when every module has the default", () => {
    expect(orderProofPatterns(new Map([["a.q", 8]]), 8)).toEqual({});
  });

  it("uses the shortest ending that decides", () => {
    const ranks = new Map([
      ["h.0.attn.c_proj", 4],
      ["h.1.attn.c_proj", 4],
      ["h.0.mlp.c_proj", 8],
      ["h.0.attn.c_attn", 2],
      ["h.1.attn.c_attn", 3],
    ]);
    expect(orderProofPatterns(ranks, 8)).toEqual({ "attn.c_proj": 4, "h.0.attn.c_attn": 2, "h.1.attn.c_attn": 3 });
  });

  it("anchors a path that ends another one, and escapes where a dot could mean another letter", () => {
    expect(
      orderProofPatterns(
        new Map([
          ["a.b", 4],
          ["x.a.b", 2],
        ]),
        8,
      ),
    ).toEqual({ "^a\\.b$": 4, "x.a.b": 2 });
    expect(
      orderProofPatterns(
        new Map([
          ["m.a.b", 4],
          ["n.b", 8],
          ["n.a_b", 8],
        ]),
        8,
      ),
    ).toEqual({ "a\\.b": 4 });
    expect(orderProofPatterns(new Map([["m.a+b", 4]]), 8)).toEqual({ "a\\+b": 4 });
  });

  it("says the same in any order, and whichever key is asked alone", () => {
    const segment = fc.constantFrom("a", "b", "c", "0", "1", "a_b", "a.b");
    const path = fc.array(segment, { minLength: 1, maxLength: 4 }).map((parts) => parts.join("."));
    const ranks = fc.array(fc.tuple(path, fc.constantFrom(2, 4, 8)), { maxLength: 12 }).map((pairs) => new Map(pairs));
    fc.assert(
      fc.property(ranks, fc.infiniteStream(fc.nat()), (perModule, draws) => {
        const patterns = orderProofPatterns(perModule, 8);
        const keys = Object.keys(patterns).map((key) => ({ key, draw: draws.next().value }));
        const shuffled = Object.fromEntries(keys.sort((a, b) => a.draw - b.draw).map(({ key }) => [key, patterns[key]!]));
        expect(reading(shuffled, 8, perModule.keys())).toEqual(perModule);
        for (const key of Object.keys(patterns)) {
          const alone = reading({ [key]: -1 }, 0, perModule.keys());
          for (const [module, value] of alone) if (value === -1) expect(perModule.get(module)).toBe(patterns[key]);
        }
      }),
    );
  });
});
