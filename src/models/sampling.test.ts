import { describe, expect, it } from "vitest";
import { chooseToken, distribution, readGenerationOptions, samples, type GenerationOptions } from "./sampling.ts";

const logs = (...p: number[]): Float64Array => Float64Array.from(p, Math.log);
const after = (scores: Float64Array, options: GenerationOptions, seen: number[] = []): number[] => [
  ...distribution(scores, new Set(seen), readGenerationOptions(options)),
];
const close = (a: number[], b: number[]): void => {
  expect(a.length).toBe(b.length);
  a.forEach((x, i) => expect(x).toBeCloseTo(b[i]!, 12));
};

describe("sampling", () => {
  it("divides the logits by the temperature", () => {
    close(after(logs(0.5, 0.25, 0.25), { temperature: 0.5 }), [4 / 6, 1 / 6, 1 / 6]); // p² made to sum to 1
    close(after(logs(0.64, 0.36), { temperature: 2 }), [0.8 / 1.4, 0.6 / 1.4]);
    close(after(logs(0.6, 0.4), { temperature: 1e-300 }), [1, 0]);
  });

  it("draws from the k likeliest, and from those equal to the k-th", () => {
    close(after(logs(0.1, 0.4, 0.2, 0.3), { topK: 2 }), [0, 4 / 7, 0, 3 / 7]);
    close(after(logs(0.4, 0.2, 0.2, 0.2), { topK: 2 }), [0.4, 0.2, 0.2, 0.2]);
    close(after(logs(0.1, 0.9), { topK: 5 }), [0.1, 0.9]);
    close(after(logs(0.1, 0.9), { topK: 0 }), [0.1, 0.9]);
  });

  it("keeps the token that takes the nucleus across p", () => {
    const p = [0.125, 0.5, 0.25, 0.125];
    close(after(logs(...p), { topP: 0.6 }), [0, 2 / 3, 1 / 3, 0]);
    close(after(logs(...p), { topP: 0.3 }), [0, 1, 0, 0]);
    close(after(logs(...p), { topP: 0.8 }), [0, 4 / 7, 2 / 7, 1 / 7]); // of equal ones the first goes first, as in transformers
    close(after(logs(...p), { topP: 1 }), p);
    close(after(logs(0.25, 0.25, 0.25, 0.25), { topP: 1e-9 }), [0, 0, 0, 1]);
  });

  it("applies temperature before top-k and top-k before top-p", () => {
    // squares 0.25 0.09 0.04 → of the first two 0.735 0.265: the second is not needed for 0.7; without topK it would be
    close(after(logs(0.5, 0.3, 0.2), { temperature: 0.5, topK: 2, topP: 0.7 }), [1, 0, 0]);
    close(after(logs(0.5, 0.3, 0.2), { temperature: 0.5, topP: 0.7 }), [25 / 34, 9 / 34, 0]);
  });

  it("penalises what occurred once, away from its sign", () => {
    const e = Math.exp;
    const total = e(1) + e(-4) + e(3);
    close(after(Float64Array.of(2, -2, 3), { repetitionPenalty: 2 }, [0, 1]), [e(1) / total, e(-4) / total, e(3) / total]);
    const greedy = (repetitionPenalty: number) => chooseToken([3, 2], new Set([0]), readGenerationOptions({ repetitionPenalty }), Math.random);
    expect([greedy(1), greedy(2)]).toEqual([0, 1]);
  });

  it("draws each token with its probability", () => {
    const pick = (u: number) => chooseToken(logs(0.25, 0, 0.75), new Set(), readGenerationOptions({ doSample: true }), () => u);
    expect([0, 0.2499, 0.2501, 0.999999999999].map(pick)).toEqual([0, 0, 2, 2]);
  });

  it("samples when something about sampling is asked for, and takes the first of the likeliest if not", () => {
    const wanted = (options: GenerationOptions) => samples(readGenerationOptions(options));
    expect([{}, { temperature: 0 }, { temperature: 0, doSample: true }, { temperature: 0.7, doSample: false }].map(wanted)).toEqual([
      false,
      false,
      false,
      false,
    ]);
    expect([{ temperature: 0.7 }, { topK: 3 }, { topP: 0.9 }, { doSample: true }].map(wanted)).toEqual([true, true, true, true]);
    expect(chooseToken([1, 5, 5], new Set(), readGenerationOptions({}), Math.random)).toBe(1);
  });

  it("refuses logits that are not finite, and options that make no sense", () => {
    expect(() => chooseToken([1, NaN], new Set(), readGenerationOptions({}), Math.random)).toThrow("logits are not finite");
    expect(() => readGenerationOptions({ topP: 0 })).toThrow("topP is 0");
    expect(() => readGenerationOptions({ temprature: 1 } as GenerationOptions)).toThrow(expect.objectContaining({ hint: "Did you mean temperature?" }));
  });
});
