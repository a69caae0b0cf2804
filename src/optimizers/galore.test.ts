import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { golden, innerMoment, stepper } from "../../test/support/optimizer.ts";
import { add, matmul, Rng, scale, start, sumSquares, tensor, transpose, type Tensor } from "../tensor/index.ts";
import { galore, sgd } from "./index.ts";
import { project, projectBack, projectedShape, projectorFor, type Projector } from "./projector.ts";

beforeAll(() => start());

const options = { rank: 2, updateProjGap: 2, scale: 0.25, targetModules: "w" };
const build = (o: object = {}) => galore.build(galore.options.parse({ ...options, ...o }));

describe("golden values of the official optimiser", () => {
  it.each([
    [
      [4, 3],
      [0.782504, 0.725831, -0.449288, -0.564634, -0.943354, 0.071395, 0.066328, 1.010258, 0.433296, 0.353479, -0.810633, -0.730944],
    ],
    [
      [3, 5],
      [
        0.761538, 0.741325, -0.434389, -0.959425, -0.049248, -0.738931, 0.448605, 0.997251, 0.073572, -0.951015, -0.517726, -0.923408, 0.060231, 0.942619,
        0.438589,
      ],
    ],
  ] as const)("%j", async (shape, expected) => {
    await golden(build(), shape, expected, { flipped: [0], moments: innerMoment });
  });
});

describe("the projector", () => {
  const g = (m: number, n: number, seed = 1): Tensor => tensor(sample([m, n], seed), [m, n], "f64");

  it.each(["std", "reverse_std", "left", "right", "full"] as const)("%s: orthonormal, idempotent, and of the shape told", async (type) => {
    for (const [m, n] of [
      [6, 4],
      [4, 6],
      [5, 5],
    ] as const) {
      const p = (await projectorFor(g(m, n), type, 3, "exact", new Rng(0)))!;
      for (const rows of [p["right"], p["left"] && transpose(p["left"])].filter((x) => x !== undefined)) {
        const gram = await matmul(rows, transpose(rows)).data();
        gram.forEach((x, i) => expect(Number(x)).toBeCloseTo(i % 4 === 0 ? 1 : 0, 12));
      }
      const r = project(g(m, n), p);
      expect(r.shape).toEqual(projectedShape(type, [m, n], 3));
      const once = projectBack(r, p);
      const twice = await projectBack(project(once, p), p).data();
      (await once.data()).forEach((x, i) => expect(Number(x)).toBeCloseTo(Number(twice[i]), 12));
    }
  });

  it("takes the shorter side, the columns of a square, or is told", () => {
    expect([projectedShape("std", [6, 4], 2), projectedShape("std", [4, 6], 2), projectedShape("std", [4, 4], 2)]).toEqual([
      [6, 2],
      [2, 6],
      [4, 2],
    ]);
    expect([projectedShape("reverse_std", [6, 4], 9), projectedShape("full", [6, 4], 9), projectedShape("left", [6, 4], 2)]).toEqual([
      [4, 4],
      [4, 4],
      [2, 4],
    ]);
  });

  it("captures the energy of the leading singular values, at random directions nearly", async () => {
    const wide = matmul(tensor(sample([40, 5], 1), [40, 5], "f64"), tensor(sample([5, 60], 2), [5, 60], "f64"));
    const noisy = tensor(sample([40, 60], 3), [40, 60], "f64");
    const mixed = add(wide, scale(noisy, 0.01));
    const energy = async (source: "exact" | "randomized" | "random"): Promise<number> =>
      sumSquares([project(mixed, (await projectorFor(mixed, "std", 5, source, new Rng(1)))!)]) / sumSquares([mixed]);
    const exact = await energy("exact");
    expect(exact).toBeGreaterThan(0.99);
    expect(await energy("randomized")).toBeGreaterThan(0.9999 * exact);
    expect(await energy("random")).toBeLessThan(0.5);
  });
});

describe("the state", () => {
  it("is 2·r·max + r·min numbers, and no projector where nothing is projected", async () => {
    const run = stepper(build(), [4, 3]);
    await run.step();
    const [state] = run.states();
    expect(run.numbers(state!)).toBe(2 * 2 * 4 + 2 * 3);
    const plain = stepper(build({ targetModules: ["other"] }), [4, 3]);
    await plain.step();
    expect(plain.numbers(plain.states()[0]!)).toBe(2 * 12);
  });

  it("gets a new projector at steps 0, gap, 2·gap of its parameter, with moments kept", async () => {
    const run = stepper(build(), [4, 3]);
    const seen: Tensor[] = [];
    for (let i = 0; i < 5; i++) {
      await run.step();
      seen.push((run.states()[0]!["projector"] as Projector)["right"]!);
    }
    expect(seen.map((p, i) => i > 0 && p !== seen[i - 1])).toEqual([false, false, true, false, true]);
  });

  it("keeps its projector through a zero or non-finite gradient, says so, and tries again at the next step", async () => {
    for (const bad of [0, NaN]) {
      const run = stepper(build({ updateProjGap: 1 }), [4, 3]);
      await run.step();
      const before = (run.states()[0]!["projector"] as Projector)["right"];
      await run.step(tensor(new Array<number>(12).fill(bad), [4, 3], "f64"));
      expect((run.states()[0]!["projector"] as Projector)["right"]).toBe(before);
      expect(run.warnings).toEqual(["the gradient of w.weight is zero or not finite at step 2: its projector stays as it is"]);
      await run.step();
      expect((run.states()[0]!["projector"] as Projector)["right"]).not.toBe(before);
    }
    const fresh = stepper(build(), [4, 3]);
    await fresh.step(tensor(new Array<number>(12).fill(0), [4, 3], "f64"));
    expect(fresh.warnings[0]).toContain("its first projector is random");
    expect(await fresh.weight()).toEqual(await stepper(build(), [4, 3]).weight());
  });
});

describe("around other optimisers", () => {
  it("sgd at full rank and scale 1 is sgd", async () => {
    for (const shape of [
      [4, 3],
      [3, 5],
    ]) {
      const inner = sgd.core!(sgd.options.parse({}));
      const run = stepper(galore.build(galore.options.parse({ rank: 9, scale: 1, targetModules: "w" }), inner), shape);
      const plain = stepper(sgd.build(sgd.options.parse({})), shape);
      for (let i = 0; i < 3; i++) {
        await run.step();
        await plain.step();
      }
      const expected = await plain.weight();
      (await run.weight()).forEach((x, i) => expect(x).toBeCloseTo(expected[i]!, 12));
    }
  });

  it("a rate of 0 moves nothing, decay alone shrinks by 1 − lr·decay", async () => {
    const still = stepper(build(), [4, 3], { learningRate: 0 });
    const before = await still.weight();
    await still.step();
    expect(await still.weight()).toEqual(before);
    const decaying = stepper(build({ scale: 0 }), [4, 3], { learningRate: 0.1, weightDecay: 0.5 });
    await decaying.step();
    (await decaying.weight()).forEach((x, i) => expect(x).toBeCloseTo(0.95 * before[i]!, 12));
  });
});
