import { beforeAll, describe, expect, it } from "vitest";
import { golden, gradientOf, innerMoment, stepper } from "../../test/support/optimizer.ts";
import type { ParameterLink } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { scale, start, sub, sumSquares, tensor, type Tensor } from "../tensor/index.ts";
import { fira, galore } from "./index.ts";
import { project, projectBack, type Projector } from "./projector.ts";

beforeAll(() => start());

const base = { rank: 2, updateProjGap: 2, alpha: 0.5, targetModules: "w" };
const build = (o: object = {}) => fira.build(parseOptions(fira, { ...base, ...o }));
const g = (t: number, factor = 1, shape = [4, 3]): Tensor => scale(tensor(gradientOf(shape, t), shape, "f64"), factor);
/** Weights after some steps on the gradients of the sheets, or on those that are given. */
async function after(steps: number, transform = build(), shape = [4, 3], gradient?: (t: number) => Tensor) {
  const run = stepper(transform, shape);
  for (let t = 0; t < steps; t++) await run.step(gradient?.(t));
  return run;
}
const close = (a: readonly number[], b: readonly number[], digits: number): void => a.forEach((x, i) => expect(x).toBeCloseTo(b[i]!, digits));

describe("golden values of the official optimiser", () => {
  it.each([
    [[4, 3], 6.870799, [0.607163, 0.682824, -0.463991, -0.671527, -0.896282, 0.108209, 0.019869, 1.038823, 0.516821, 0.380215, -0.72397, -0.789931]],
    [
      [3, 5],
      4.71167,
      [0.58913, 0.705457, -0.388802, -0.94345, 0.001853, -0.771944, 0.38496, 1.013167, 0.232742, -0.96874, -0.567003, -0.892042, 0.154303, 0.916341, 0.32082],
    ],
  ] as const)("%j, limiter's last norm %f", async (shape, norm, expected) => {
    const run = await golden(build(), shape, expected, { flipped: [0], moments: innerMoment });
    expect(run.states()[0]!["norm"]).toBeCloseTo(norm, 4);
  });
});

describe("the residual", () => {
  it.each(["official", "paper"])("is nothing at full rank and alpha 1, %s: GaLore", async (residual) => {
    for (const shape of [
      [4, 3],
      [3, 5],
    ]) {
      const run = await after(4, build({ rank: 9, alpha: 1, residual }), shape);
      const plain = await after(4, galore.build(parseOptions(galore, { rank: 9, updateProjGap: 2, scale: 1, targetModules: "w" })), shape);
      close(await run.weight(), await plain.weight(), 6);
    }
  });

  it("is the same by paper and by code at alpha 1, and not elsewhere", async () => {
    const weights = async (residual: string, alpha: number) => (await after(4, build({ residual, alpha }))).weight();
    close(await weights("official", 1), await weights("paper", 1), 12);
    expect(Math.abs((await weights("official", 0.5))[0]! - (await weights("paper", 0.5))[0]!)).toBeGreaterThan(1e-3);
  });

  it.each([
    [4, 3],
    [3, 5],
  ])("is the projected-out gradient times φ in the paper's form, %i×%i: orthogonal to the subspace", async (...shape) => {
    // around N = 3·R φ is 3, and no limiter works at the first step: what moves is alpha·(3·QG + 3·(G − QG)) = 3·alpha·G
    const inner: ParameterLink = { scope: "parameter", init: () => ({}), update: (u) => scale(u, 3) };
    const run = stepper(fira.build(parseOptions(fira, { ...base, residual: "paper" }), inner), shape);
    const before = await run.weight();
    await run.step();
    const moved = before.map((x, i) => x - gradientOf(shape, 0)[i]! * 0.15);
    close(await run.weight(), moved, 7);
    const projector = run.states()[0]!["projector"] as Projector;
    const whole = g(0, 1, shape);
    const rest = sub(whole, projectBack(project(whole, projector), projector));
    expect(sumSquares([rest])).toBeGreaterThan(1e-3);
    expect(sumSquares([project(rest, projector)])).toBeLessThan(1e-24);
  });

  it("scales by the projected side, not by the shape of what is projected", async () => {
    // 5×3 from the left at rank 3 gives R of 3×3, 4×3 from the right at rank 3 gives R of 4×3: columns and rows have factors of their own
    for (const [shape, projType] of [
      [[5, 3], "left"],
      [[4, 3], "right"],
      [[3, 5], "right"],
    ] as const) {
      const run = stepper(build({ projType, rank: 1, alpha: 0, gamma: false }), shape);
      const before = await run.weight();
      await run.step();
      const moved = (await run.weight()).map((x, i) => before[i]! - x);
      const ratios = moved.map((x, i) => x / gradientOf(shape, 0)[i]!);
      const [rows, columns] = shape;
      for (let k = 0; k < rows * columns; k++) expect(ratios[k]).toBeCloseTo(ratios[projType === "left" ? k % columns : k - (k % columns)]!, 9);
      expect(new Set(ratios.map((x) => x.toFixed(6))).size).toBe(projType === "left" ? columns : rows);
    }
  });

  it("has one factor for the matrix, or none, or none above a bound", async () => {
    const ratios = async (o: object) => {
      const run = stepper(build({ rank: 1, alpha: 0, ...o }), [4, 3]);
      const before = await run.weight();
      await run.step();
      // the bias correction of Adam's first step is √.001/.1
      return (await run.weight()).map((x, i) => (before[i]! - x) / gradientOf([4, 3], 0)[i]! / (0.1 * (Math.sqrt(0.001) / 0.1)));
    };
    expect(new Set((await ratios({ scaling: "matrix" })).map((x) => x.toFixed(6))).size).toBe(1);
    close(await ratios({ scaling: "none" }), new Array(12).fill(1), 9);
    const [free, bounded] = [await ratios({}), await ratios({ maxScaling: 3 })];
    expect(Math.max(...free)).toBeGreaterThan(3.1);
    close(
      bounded,
      free.map((x) => Math.min(x, 3)),
      9,
    );
  });
});

describe("the limiter", () => {
  const norms = async (o: object, gradient?: (t: number) => Tensor, steps = 6): Promise<number[]> => {
    const run = stepper(build(o), [4, 3]);
    const seen: number[] = [];
    for (let t = 0; t < steps; t++) {
      await run.step(gradient?.(t));
      seen.push(run.states()[0]!["norm"] as number);
    }
    return seen;
  };
  const growing = (t: number): Tensor => g(0, 10 ** t);

  it("lets the residual grow by gamma a step, from the second on, and shrink freely", async () => {
    const seen = await norms({ updateProjGap: 100, scaling: "none" }, growing);
    seen.slice(1).forEach((norm, i) => expect(norm / seen[i]!).toBeCloseTo(1.01, 6));
    const falling = await norms({ updateProjGap: 100, scaling: "none" }, (t) => g(0, 0.5 ** t));
    falling.slice(1).forEach((norm, i) => expect(norm / falling[i]!).toBeCloseTo(0.5, 12));
  });

  it("takes gamma from its options, or sets no bound", async () => {
    const wider = await norms({ gamma: 2, updateProjGap: 100, scaling: "none" }, growing);
    expect(wider[1]! / wider[0]!).toBeCloseTo(2, 6);
    const free = await norms({ gamma: false, updateProjGap: 100, scaling: "none" }, growing);
    expect(free[1]! / free[0]!).toBeCloseTo(10, 6);
  });

  it("is not frozen by a zero gradient, but in strict mode as in the official code", async () => {
    const paused = (t: number): Tensor => g(t, t === 2 ? 0 : 1);
    const [kept, frozen] = [await norms({ scaling: "none" }, paused), await norms({ scaling: "none", strict: true }, paused)];
    expect(kept[2]).toBe(kept[1]);
    expect(kept[3]).toBeGreaterThan(0.1);
    expect(frozen[2]).toBe(0);
    expect(frozen[5]).toBeLessThan(1e-6);
  });
});

describe("the state and the variants", () => {
  it("holds GaLore's numbers and one scalar more", async () => {
    const [run, plain] = [await after(1), await after(1, galore.build(parseOptions(galore, { rank: 2, targetModules: "w" })))];
    expect(run.numbers(run.states()[0]!)).toBe(2 * 2 * 4 + 2 * 3);
    expect(Object.keys(run.states()[0]!).filter((key) => !(key in plain.states()[0]!))).toEqual(["norm"]);
  });

  it("has half of the averages as rmsprop, and moves by g/(√v + eps)", async () => {
    const run = stepper(build({ variant: "rmsprop", rank: 9, alpha: 1 }), [4, 3]);
    const before = await run.weight();
    await run.step();
    expect(run.numbers(run.states()[0]!)).toBe(12 + 9);
    const r = await project(g(0), run.states()[0]!["projector"] as Projector).data();
    const direction = tensor(
      [...r].map((x) => Number(x) / (Math.sqrt(0.1 * Number(x) ** 2) + 1e-6)),
      [4, 3],
      "f64",
    );
    const expected = await projectBack(direction, run.states()[0]!["projector"] as Projector).data();
    (await run.weight()).forEach((x, i) => expect(x).toBeCloseTo(before[i]! - 0.1 * Number(expected[i]), 9));
  });

  it("gives a parameter that is no target GaLore's Adam", async () => {
    const [run, plain] = [await after(3, build({ targetModules: ["x"] })), await after(3, galore.build(parseOptions(galore, { targetModules: ["x"] })))];
    close(await run.weight(), await plain.weight(), 12);
  });
});

describe("options", () => {
  it("takes scale for alpha, one of them", async () => {
    close(
      await (await after(2, fira.build(parseOptions(fira, { rank: 2, updateProjGap: 2, scale: 0.5, targetModules: "w" })))).weight(),
      await (await after(2)).weight(),
      12,
    );
    expect(() => build({ scale: 1 })).toThrow("alpha and scale are two names of one factor");
  });

  it("refuses factors by column where both sides are projected", () => {
    expect(() => build({ projType: "full" })).toThrow("with projType full no column");
    expect(() => build({ projType: "full", scaling: "matrix" })).not.toThrow();
    expect(() => build({ gamma: 0.5 })).toThrow("fira: gamma is 0.5");
  });
});
