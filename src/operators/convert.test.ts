import { beforeAll, describe, expect, it } from "vitest";
import { toTensor, withSingularValues } from "../../test/support/matrices.ts";
import { Rng, start, sub, sumSquares, zeros } from "../tensor/index.ts";
import { dense, lowRank, sumOf, toLowRank, type LinearOperator } from "./index.ts";

beforeAll(async () => {
  await start();
});

const s = [4, 3, 2, 1, 0.5, 0.25];
const norm = (a: LinearOperator, b: LinearOperator): number => Math.sqrt(sumSquares([sub(a.toDense(), b.toDense())]));

/** Fails if somebody asks it for its dense matrix. */
const withoutDense = (operator: LinearOperator): LinearOperator => ({
  ...operator,
  toDense: () => {
    throw new Error("the dense matrix was made");
  },
});

describe("toLowRank", () => {
  it("leaves out exactly the spectrum beyond the rank, for every rank from 0 to all", async () => {
    const w = dense(toTensor(withSingularValues(9, 6, s)));
    for (let rank = 0; rank <= 6; rank++) {
      const { operator, error, discarded } = await toLowRank(w, rank);
      const expected = Math.hypot(...s.slice(rank));
      expect(operator.B.shape).toEqual([9, rank]);
      expect(discarded).toBeCloseTo(expected, 12);
      expect(error).toBeCloseTo(expected / Math.hypot(...s), 12);
      expect(norm(w, operator)).toBeCloseTo(expected, 12);
    }
  });

  it("converts low-rank operators and their sums through the factors alone", async () => {
    const rng = new Rng(4);
    const term = (r: number, scale: number) => lowRank(rng.normal([12, r], 1), rng.normal([r, 10], 1), scale);
    const parts = [term(2, 0.5), term(3, -2), term(1, 1)] as const;
    const whole = sumOf(sumOf(parts[0], parts[1]), parts[2]);
    const hidden = sumOf(sumOf(withoutDense(parts[0]), withoutDense(parts[1])), withoutDense(parts[2]));
    for (const rank of [1, 3, 6]) {
      const found = await toLowRank(hidden, rank);
      const exact = await toLowRank(dense(whole.toDense()), rank);
      const size = Math.sqrt(sumSquares([whole.toDense()]));
      expect(norm(found.operator, exact.operator) / size).toBeLessThan(1e-5);
      expect(found.discarded / size).toBeCloseTo(exact.discarded / size, 5);
      expect(norm(whole, found.operator) / size).toBeCloseTo(found.error, 5);
    }
    expect((await toLowRank(hidden, 6)).error).toBeLessThan(1e-6);
  });

  it("keeps the rank that there is when more is asked for, also of factors wider than the matrix", async () => {
    const rng = new Rng(5);
    expect((await toLowRank(lowRank(rng.normal([8, 2], 1), rng.normal([2, 9], 1)), 5)).operator.A.shape).toEqual([2, 9]);
    const wide = lowRank(rng.normal([4, 7], 1), rng.normal([7, 5], 1));
    expect(norm(wide, (await toLowRank(wide, 4)).operator)).toBeLessThan(1e-5);
    const none = await toLowRank(lowRank(zeros([4, 0]), zeros([0, 5])), 2);
    expect([none.error, none.operator.B.shape]).toEqual([0, [4, 0]]);
  });

  it("finds by random directions nearly the same, and its error", async () => {
    const w = dense(
      toTensor(
        withSingularValues(
          60,
          50,
          Array.from({ length: 50 }, (_, i) => 0.7 ** i),
        ),
      ),
    );
    const best = await toLowRank(w, 6);
    const random = await toLowRank(w, 6, { svd: "randomized", rng: new Rng(2) });
    expect(random.error).toBeCloseTo(best.error, 8);
    expect(norm(w, random.operator)).toBeCloseTo(random.discarded, 8);
  });

  it("has no error for zero and refuses ranks that are not there", async () => {
    expect((await toLowRank(dense(zeros([3, 4])), 2)).error).toBe(0);
    await expect(toLowRank(dense(zeros([3, 4])), 4)).rejects.toThrow(/between 0 and 3/);
  });
});
