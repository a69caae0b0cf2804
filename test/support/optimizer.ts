import { expect } from "vitest";
import type { State, Transform } from "../../src/nn/contracts.ts";
import { Optimization, type OptimizationSettings } from "../../src/optimizers/optimization.ts";
import { Parameter, Rng, scope, Tensor, tensor } from "../../src/tensor/index.ts";
import { hostView } from "../../src/tensor/tensor.ts";

/** The weight and the gradients that the sheets' golden values of projected optimisers are of. */
const firstWeight = ([m, n = 1]: readonly number[]): number[] =>
  Array.from({ length: m! * n }, (_, k) => Math.sin(1 + 0.9 * Math.floor(k / n) * n + 1.3 * (k % n)));
export const gradientOf = ([m, n]: readonly number[], t: number): number[] =>
  Array.from({ length: m! * n! }, (_, k) => Math.sin(0.37 * (Math.floor(k / n!) + 1) * ((k % n!) + 2) * (t + 1) + 0.5 * (k % n!)));

const numbersIn = (state: State): number =>
  Object.values(state).reduce<number>((sum, value) => sum + (value instanceof Tensor ? value.size : typeof value === "number" ? 0 : numbersIn(value)), 0);

/**
 * One matrix `w.weight` (f64) under a chain, moved step by step; without a gradient of its own a step takes that of the sheets.
 * Settings are those of Optimization; `firstWeight` is the shape that the first values are those of, defaults to `shape`.
 */
export function stepper(
  optimizer: Transform,
  shape: readonly number[],
  {
    dtype = "f64",
    firstWeight: as = shape,
    ...settings
  }: Partial<Omit<OptimizationSettings, "optimizer">> & { dtype?: "f32" | "f64"; firstWeight?: readonly number[] } = {},
) {
  const w = new Parameter(tensor(firstWeight(as), shape, dtype), "w.weight");
  const optimization = new Optimization([], [w], { optimizer, learningRate: 0.1, weightDecay: 0, schedule: () => 1, ...settings });
  const warnings: string[] = [];
  let t = 0;
  return {
    w,
    optimization,
    warnings,
    async step(gradient?: Tensor): Promise<void> {
      await scope(async () => {
        const context = optimization.context(t, 100, new Rng(0).fork(`step/${t}`), [], new Map(), (message) => warnings.push(message));
        await optimization.update(new Map([[w, gradient ?? tensor(gradientOf(shape, t), shape, dtype)]]), context);
      });
      t++;
    },
    states: () => optimization.statesOf(w),
    numbers: numbersIn,
    weight: async (): Promise<number[]> => [...(await w.data())].map(Number),
  };
}

/** −1 in some rows or columns of the first moment. */
function flip(moment: Tensor, axis: number, flipped: readonly number[]): void {
  const [rows, cols] = moment.shape as [number, number];
  const values = hostView(moment) as Float64Array;
  for (let k = 0; k < rows * cols; k++) if (flipped.includes(axis === 0 ? Math.floor(k / cols) : k % cols)) values[k] = -values[k]!;
}

/**
 * Four steps at lr .1, decay .01 and gap 2, against a sheet's golden values (six decimals, made in f32). Moments are kept at the
 * refresh, so the signs of the new singular vectors matter, and LAPACK's are not ours: `flipped` names the directions that
 * differ, whose first moment changes sign instead, which is the same.
 */
export async function golden(
  optimizer: Transform,
  shape: readonly number[],
  expected: readonly number[],
  { flipped = [], moments = () => undefined }: { flipped?: readonly number[]; moments?: (state: State) => Tensor | undefined } = {},
) {
  const run = stepper(optimizer, shape, { weightDecay: 0.01 });
  for (let t = 0; t < 4; t++) {
    const moment = t === 2 ? moments(run.states()[0]!) : undefined;
    if (moment) flip(moment, shape[0]! >= shape[1]! ? 1 : 0, flipped);
    await run.step();
  }
  const weight = await run.weight();
  expected.forEach((x, i) => expect(Math.abs(weight[i]! - x), `${i}: ${weight[i]} against ${x}`).toBeLessThan(2e-5));
  return run;
}

/** The first moment of Adam inside a projection. */
export const innerMoment = (state: State): Tensor => ((state["inner"] as State)[0] as State)["m"] as Tensor;
