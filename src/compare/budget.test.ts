import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { solveSize } from "./budget.ts";

const CEILING = 200;

/** Every size up to the ceiling, one after the other. */
function exhaustively(stored: (size: number) => number | undefined, limit: number) {
  const all = Array.from({ length: CEILING }, (_, i) => ({ size: i + 1, stored: stored(i + 1) })).filter((one) => one.stored !== undefined);
  const fitting = all.filter((one) => one.stored! <= limit).sort((a, b) => b.stored! - a.stored! || b.size - a.size);
  return fitting[0] ?? all.sort((a, b) => a.stored! - b.stored!)[0];
}

const refusals: fc.Arbitrary<(size: number) => boolean> = fc.oneof(
  fc.constant(() => false),
  fc.integer({ min: 1, max: CEILING }).map((most) => (size: number) => size > most),
  fc.integer({ min: 2, max: 3000 }).map((multiple) => (size: number) => multiple % size !== 0),
  fc.integer({ min: 2, max: 9 }).map((step) => (size: number) => size % step !== 0),
);

describe("the size for a budget", () => {
  it("is what trying every size finds, where what is stored rises and some sizes are refused", async () => {
    await fc.assert(
      fc.asyncProperty(
        refusals,
        fc.integer({ min: 1, max: 50 }),
        fc.integer({ min: 0, max: 500 }),
        fc.integer({ min: 1, max: 9000 }),
        async (refuses, each, fixed, limit) => {
          const stored = (size: number): number | undefined => (size > CEILING || refuses(size) ? undefined : fixed + each * size);
          const [found, expected] = [await solveSize(async (size) => stored(size), limit, CEILING), exhaustively(stored, limit)];
          expect(found && { size: found.size, stored: found.stored }).toEqual(expected);
          expect(found?.fits).toBe(expected && expected.stored! <= limit);
        },
      ),
      { numRuns: 500 },
    );
  });

  it("is what trying every size finds, where a larger size stores less", async () => {
    await fc.assert(
      fc.asyncProperty(refusals, fc.integer({ min: 1, max: 9000 }), async (refuses, limit) => {
        const stored = (size: number): number | undefined => (size > CEILING || refuses(size) ? undefined : Math.floor(6400 / size) + 64);
        const found = await solveSize(async (size) => stored(size), limit, CEILING);
        const expected = exhaustively(stored, limit);
        // of sizes that store the same any will do
        expect(found?.stored).toBe(expected?.stored);
      }),
      { numRuns: 500 },
    );
  });

  it("is found in few questions, none of them asked twice", async () => {
    const asked: number[] = [];
    const found = await solveSize(
      async (size) => {
        asked.push(size);
        return 7 * size;
      },
      700_000,
      512,
    );
    expect(found).toEqual({ size: 100_000, stored: 700_000, fits: true });
    expect(new Set(asked).size).toBe(asked.length);
    expect(asked.length).toBeLessThan(40);
  });

  it("is undefined where every size is refused", async () => {
    expect(await solveSize(async () => undefined, 100, 64)).toBeUndefined();
  });
});
