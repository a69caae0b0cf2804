import { StrutError } from "../errors.ts";
import type { Schedule } from "../nn/contracts.ts";

export interface Warmup {
  /** Steps over which the rate rises from 0, at which step 0 stands; defaults to 0. */
  warmup?: number;
}

const rising =
  (warmup: number, then: Schedule): Schedule =>
  (step, steps) =>
    step < warmup ? step / Math.max(1, warmup) : then(step, steps);

/** The full rate after warm-up (transformers' get_constant_schedule_with_warmup). */
export const constant = ({ warmup = 0 }: Warmup = {}): Schedule => rising(warmup, () => 1);

/** Falls to 0 in a straight line (transformers' get_linear_schedule_with_warmup). */
export const linear = ({ warmup = 0 }: Warmup = {}): Schedule => rising(warmup, (step, steps) => Math.max(0, (steps - step) / Math.max(1, steps - warmup)));

/** Falls to 0 along half a cosine (transformers' get_cosine_schedule_with_warmup; `cycles` is its num_cycles). */
export const cosine = ({ warmup = 0, cycles = 0.5 }: Warmup & { cycles?: number } = {}): Schedule =>
  rising(warmup, (step, steps) => Math.max(0, 0.5 * (1 + Math.cos(Math.PI * cycles * 2 * ((step - warmup) / Math.max(1, steps - warmup))))));

const named = { constant, linear, cosine } as const;
export type ScheduleName = keyof typeof named;
export const scheduleNames = Object.keys(named) as ScheduleName[];

/** A schedule by name, or one of the caller's own. */
export function scheduleOf(schedule: ScheduleName | Schedule, warmup: number): Schedule {
  if (typeof schedule === "function") return rising(warmup, schedule);
  const make = Object.hasOwn(named, schedule) ? named[schedule] : undefined;
  if (make) return make({ warmup });
  throw new StrutError("option", `there is no schedule ${JSON.stringify(schedule)}`, { path: "schedule", hint: `Schedules are ${scheduleNames.join(", ")}.` });
}
