import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Schedule } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";

export interface Warmup {
  /** Steps over which the rate rises from 0, at which step 0 stands; defaults to 0. */
  warmup?: number;
}

const rising =
  (warmup: number, then: Schedule): Schedule =>
  (step, steps) =>
    step < warmup ? step / Math.max(1, warmup) : then(step, steps);

/** Share of the steps after warm-up that is done, at most 1. */
const progress = (step: number, steps: number, warmup: number): number => Math.min(1, (step - warmup) / Math.max(1, steps - warmup));

const wave = (turn: number): number => Math.max(0, 0.5 * (1 + Math.cos(2 * Math.PI * turn)));
const between = (least: number, share: number): number => least + (1 - least) * share;

/** The full rate after warm-up (transformers' get_constant_schedule_with_warmup). */
export const constant = ({ warmup = 0 }: Warmup = {}): Schedule => rising(warmup, () => 1);

/** Falls to 0 in a straight line (transformers' get_linear_schedule_with_warmup). */
export const linear = ({ warmup = 0 }: Warmup = {}): Schedule => rising(warmup, (step, steps) => Math.max(0, (steps - step) / Math.max(1, steps - warmup)));

/** Falls to `minRate` along half a cosine (transformers' get_cosine_with_min_lr_schedule_with_warmup; `cycles` is its num_cycles). */
export const cosine = ({ warmup = 0, cycles = 0.5, minRate = 0 }: Warmup & { cycles?: number; minRate?: number } = {}): Schedule =>
  rising(warmup, (step, steps) => between(minRate, wave(cycles * ((step - warmup) / Math.max(1, steps - warmup)))));

/** Falls along half a cosine `cycles` times, each from the full rate (transformers' get_cosine_with_hard_restarts_schedule_with_warmup). */
export const cosineWithRestarts = ({ warmup = 0, cycles = 1, minRate = 0 }: Warmup & { cycles?: number; minRate?: number } = {}): Schedule =>
  rising(warmup, (step, steps) => {
    const done = progress(step, steps, warmup);
    return done >= 1 ? minRate : between(minRate, wave(((cycles * done) % 1) / 2));
  });

/**
 * One cosine over the whole run that starts anew every `every` steps with a ramp of `restartWarmup` steps, for methods that
 * reset the optimiser (ReLoRA, arXiv:2307.05695).
 */
export const jaggedCosine = ({
  warmup = 0,
  every,
  restartWarmup = 100,
  minRate = 0.1,
}: Warmup & { every: number; restartWarmup?: number; minRate?: number }): Schedule => {
  const whole = cosine({ warmup, minRate });
  return (step, steps) => {
    const since = step % every;
    return whole(step, steps) * (step >= every && since < restartWarmup ? since / restartWarmup : 1);
  };
};

/**
 * Rises, stays at the full rate, and falls in the last `decay` steps (below 1 a share of all), along half a cosine, a line or
 * 1 − √ (transformers' get_wsd_schedule; Hu et al. 2024, arXiv:2404.06395).
 */
export const warmupStableDecay = ({
  warmup = 0,
  decay = 0.1,
  decayType = "cosine",
  minRate = 0,
}: Warmup & { decay?: number; decayType?: "cosine" | "linear" | "1-sqrt"; minRate?: number } = {}): Schedule => {
  const shapes = { cosine: (x: number) => wave(x / 2), linear: (x: number) => 1 - x, "1-sqrt": (x: number) => 1 - Math.sqrt(x) };
  return (step, steps) => {
    const length = Math.max(1, decay < 1 ? Math.round(decay * steps) : decay);
    if (step < warmup) return between(minRate, step / warmup);
    return between(minRate, shapes[decayType](Math.min(1, Math.max(0, (step - (steps - length)) / length))));
  };
};

/** 1/√step after warm-up, scaled so that it starts at 1 (transformers' get_inverse_sqrt_schedule; its timescale is the warm-up, or 10,000). */
export const inverseSqrt = ({ warmup = 0, timescale = warmup || 10_000 }: Warmup & { timescale?: number } = {}): Schedule =>
  rising(warmup, (step) => 1 / Math.sqrt((step + timescale - warmup) / timescale));

/** Rises from 1/divFactor and falls to 1/(divFactor·finalDivFactor), both along half a cosine (torch's OneCycleLR; Smith & Topin, arXiv:1708.07120). */
export const oneCycle = ({
  warmup = 0,
  pctStart = 0.3,
  divFactor = 25,
  finalDivFactor = 1e4,
}: Warmup & { pctStart?: number; divFactor?: number; finalDivFactor?: number } = {}): Schedule => {
  const first = 1 / divFactor;
  const last = first / finalDivFactor;
  return (step, steps) => {
    const top = (warmup > 0 ? warmup : pctStart * steps) - 1;
    const along = (from: number, to: number, share: number): number => to + ((from - to) / 2) * (1 + Math.cos(Math.PI * Math.min(1, share)));
    return step <= top ? along(first, 1, step / top) : along(1, last, (step - top) / Math.max(1, steps - 1 - top));
  };
};

const minRate = z.number().min(0).max(1).describe("share of the full rate that is left at the end; defaults to 0").optional();
const cycles = z.number().positive().describe("turns of the cosine").optional();
const none = z.object({});
/** Schedules by the names of transformers and torch, with the options of each. */
const named = {
  constant: { make: constant, options: none },
  linear: { make: linear, options: none },
  cosine: { make: cosine, options: z.object({ cycles, minRate }) },
  cosine_with_restarts: { make: cosineWithRestarts, options: z.object({ cycles, minRate }) },
  cosine_with_min_lr: { make: cosine, options: z.object({ cycles, minRate: minRate.unwrap() }) },
  jagged_cosine: {
    make: jaggedCosine,
    options: z.object({
      every: z.int().positive().describe("steps between two restarts"),
      restartWarmup: z.int().positive().describe("steps of the ramp after a restart; defaults to 100").optional(),
      minRate,
    }),
  },
  warmup_stable_decay: {
    make: warmupStableDecay,
    options: z.object({
      decay: z.number().positive().describe("last steps in which the rate falls, below 1 a share of all; defaults to 0.1").optional(),
      decayType: z.enum(["cosine", "linear", "1-sqrt"]).describe("how it falls: cosine, linear or 1-sqrt; defaults to cosine").optional(),
      minRate,
    }),
  },
  inverse_sqrt: { make: inverseSqrt, options: z.object({ timescale: z.number().positive().describe("defaults to the warm-up, or 10000").optional() }) },
  one_cycle: {
    make: oneCycle,
    options: z.object({
      pctStart: z.number().gt(0).lt(1).describe("share of the steps in which the rate rises; defaults to 0.3").optional(),
      divFactor: z.number().positive().describe("the first rate is the full one divided by it; defaults to 25").optional(),
      finalDivFactor: z.number().positive().describe("the last rate is the first divided by it; defaults to 10000").optional(),
    }),
  },
} as const;
const aliases = { cycles: "num_cycles", minRate: "min_lr_rate", decay: "num_decay_steps", every: "cycle_length", restartWarmup: "restart_warmup_steps" };
export type ScheduleName = keyof typeof named;
export const scheduleNames = Object.keys(named) as ScheduleName[];

/** A schedule by name, or one of the caller's own. */
export function scheduleOf(schedule: ScheduleName | Schedule, warmup: number, options: Readonly<Record<string, unknown>> = {}): Schedule {
  if (typeof schedule === "function") return rising(warmup, schedule);
  const found = Object.hasOwn(named, schedule) ? named[schedule] : undefined;
  if (!found)
    throw new StrutError("option", `there is no schedule ${JSON.stringify(schedule)}`, {
      path: "schedule",
      hint: `Schedules are ${scheduleNames.join(", ")}.`,
    });
  const make = found.make as (options: object) => Schedule;
  return make({ warmup, ...parseOptions({ id: `the schedule ${schedule}`, options: found.options }, options, aliases) });
}
