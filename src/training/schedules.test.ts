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

  // computed by transformers 5.18 and torch 2.13, 20 steps
  it.each([
    [
      "cosine_with_restarts",
      4,
      { num_cycles: 3 },
      [
        0, 0.25, 0.5, 0.75, 1, 0.915735, 0.691342, 0.402455, 0.146447, 0.009607, 0.96194, 0.777785, 0.5, 0.222215, 0.03806, 0.990393, 0.853553, 0.597545,
        0.308658, 0.084265,
      ],
    ],
    [
      "inverse_sqrt",
      4,
      {},
      [
        0,
        0.25,
        0.5,
        0.75,
        1,
        0.894427,
        0.816497,
        0.755929,
        Math.SQRT1_2,
        0.666667,
        0.632456,
        0.603023,
        0.57735,
        0.5547,
        0.534522,
        0.516398,
        0.5,
        0.485071,
        0.471405,
        0.458831,
      ],
    ],
    ["warmup_stable_decay", 4, { num_decay_steps: 6 }, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.933013, 0.75, 0.5, 0.25, 0.066987]],
    [
      "warmup_stable_decay",
      4,
      { decay: 6, decayType: "linear", minRate: 0.1 },
      [0.1, 0.325, 0.55, 0.775, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.85, 0.7, 0.55, 0.4, 0.25],
    ],
    [
      "warmup_stable_decay",
      4,
      { decay: 0.3, decayType: "1-sqrt", minRate: 0.1 },
      [0.1, 0.325, 0.55, 0.775, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0.632577, 0.480385, 0.363604, 0.265153, 0.178416],
    ],
    [
      "cosine_with_min_lr",
      4,
      { min_lr_rate: 0.1 },
      [
        0, 0.25, 0.5, 0.75, 1, 0.991353, 0.965746, 0.924161, 0.868198, 0.800007, 0.722208, 0.637791, 0.55, 0.462209, 0.377792, 0.299993, 0.231802, 0.175839,
        0.134254, 0.108647,
      ],
    ],
    [
      "one_cycle",
      0,
      {},
      [
        0.04, 0.131672, 0.371672, 0.668328, 0.908328, 1, 0.987464, 0.950485, 0.890916, 0.811746, 0.716943, 0.611262, 0.500002, 0.388742, 0.283061, 0.188258,
        0.109088, 0.049519, 0.01254, 4e-6,
      ],
    ],
  ] as const)("%s is that of the Python libraries", (name, warmup, options, expected) => {
    expect(rates(scheduleOf(name, warmup, options), 20).slice(0, 20)).toEqual(expected.map((x) => expect.closeTo(x, 5) as number));
  });

  it("jagged cosine: one cosine with ramps after each restart", () => {
    const whole = rates(cosine({ warmup: 2, minRate: 0.1 }), 20);
    const jagged = rates(scheduleOf("jagged_cosine", 2, { every: 8, restartWarmup: 2 }), 20);
    expect(jagged).toEqual(whole.map((x, step) => x * (step === 8 || step === 16 ? 0 : step === 9 || step === 17 ? 0.5 : 1)));
  });

  it("options of another schedule end in a sentence", () => {
    expect(() => scheduleOf("linear", 0, { cycles: 2 })).toThrow("the schedule linear has no option cycles");
    expect(() => scheduleOf("jagged_cosine", 0, {})).toThrow("the schedule jagged_cosine: every is undefined");
  });

  it("an unknown name ends in a sentence with those there are", () => {
    expect(() => scheduleOf("cosin" as never, 0)).toThrow('there is no schedule "cosin"');
  });
});
