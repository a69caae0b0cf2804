import { describe, expect, it } from "vitest";
import { constant, cosine, linear, scheduleOf } from "./schedules.ts";

const rates = (schedule: (step: number, steps: number) => number, steps: number): number[] =>
  Array.from({ length: steps + 1 }, (_, step) => schedule(step, steps));

describe("schedules", () => {
  it("linear: starts at 0 with warm-up, peaks when it ends, falls to 0 after the last step", () => {
    expect(rates(linear({ warmup: 2 }), 8)).toEqual([0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]);
    expect(rates(linear(), 4)).toEqual([1, 0.75, 0.5, 0.25, 0]);
  });

  it("cosine: half a wave after warm-up, as transformers computes it", () => {
    const wave = (progress: number): number => 0.5 * (1 + Math.cos(Math.PI * progress));
    expect(rates(cosine({ warmup: 1 }), 5)).toEqual([0, wave(0), wave(0.25), wave(0.5), wave(0.75), wave(1)].map((x) => expect.closeTo(x, 15) as number));
  });

  it("constant: full after warm-up; a schedule of one's own is warmed up too", () => {
    expect(rates(constant({ warmup: 2 }), 3)).toEqual([0, 0.5, 1, 1]);
    expect(
      rates(
        scheduleOf((step) => 10 * step, 2),
        3,
      ),
    ).toEqual([0, 0.5, 20, 30]);
  });

  it("an unknown name ends in a sentence with those there are", () => {
    expect(() => scheduleOf("cosin" as never, 0)).toThrow('there is no schedule "cosin"');
  });
});
