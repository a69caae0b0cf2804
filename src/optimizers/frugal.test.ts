import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { golden, gradientOf, stepper } from "../../test/support/optimizer.ts";
import type { State, Transform } from "../nn/contracts.ts";
import { parseOptions } from "../nn/options.ts";
import { hostNumbers, Parameter, Rng, scope, start, tensor, Tensor } from "../tensor/index.ts";
import { activeBlocks } from "./blocks.ts";
import { coordinates, type Coordinates } from "./coordinates.ts";
import { adamw, badam, floraProjection, frugal, galore, sgd } from "./index.ts";
import { Optimization } from "./optimization.ts";
import { shareOf } from "./state-free.ts";
import type { Projector } from "./projector.ts";

beforeAll(() => start());

const build = (o: object) => frugal.build(parseOptions(frugal, { updateGap: 2, targetModules: "w", ...o }));
async function weights(transform: Transform, steps = 5, shape = [4, 3], settings = {}): Promise<number[]> {
  const run = stepper(transform, shape, settings);
  for (let t = 0; t < steps; t++) await run.step();
  return run.weight();
}
const close = (a: readonly number[], b: readonly number[], digits = 12): void => a.forEach((x, i) => expect(x).toBeCloseTo(b[i]!, digits));

/** Four equal matrices and a vector under a chain, moved step by step. */
function several(transform: Transform, gradients: (name: string, t: number) => number = () => 1) {
  const w = [0, 1, 2, 3].map((i) => new Parameter(tensor(sample([2, 3], i), [2, 3], "f64"), `attn.${i}.weight`));
  w.push(new Parameter(tensor([1, 2], [2], "f64"), "norm.weight"));
  const optimization = new Optimization([], w, { optimizer: transform, learningRate: 0.1, weightDecay: 0, schedule: () => 1 });
  let t = 0;
  return {
    w,
    async step(): Promise<void> {
      await scope(() =>
        optimization.update(
          new Map(w.map((one) => [one, tensor(new Array<number>(one.size).fill(gradients(one.name, t)), one.shape, "f64")])),
          optimization.context(t, 100, new Rng(3).fork(`step/${t}`), [], new Map()),
        ),
      );
      t++;
    },
    /** What each parameter has, by name. */
    held: (): State => ((optimization.state(({ name }) => name)["0"] as State)["0"] as State)["0"] as State,
  };
}
const active = (held: State): number[] => Object.keys(held["held"] as State).flatMap((name) => (name.startsWith("attn.") ? [Number(name[5])] : []));
const tensorsIn = (state: State): number =>
  Object.values(state).reduce<number>((sum, x) => sum + (x instanceof Tensor ? x.size : typeof x === "number" ? 0 : tensorsIn(x)), 0);

describe("golden values of the official optimiser", () => {
  it.each([
    [{ density: 0.5 }, [4, 3], [0.744186, 0.872315, -0.195241, -0.256677, -0.785447, 0.288426, -0.226775, 0.91163, 0.214947, 0.42252, -0.769531, -0.604711]],
    [
      { density: 0.5, inactiveUpdateRule: "no" },
      [4, 3],
      [0.544186, 0.672515, -0.395241, -0.456477, -0.985447, 0.088625, -0.026975, 1.11163, 0.414748, 0.42232, -0.769531, -0.604911],
    ],
    [{ density: 0.67, inactiveUpdateRule: "no" }, [3, 5], [0.467943, 0.816051, -0.42724, -0.94425, 0.001568]],
  ] as const)("directions, %j of %j", async (o, shape, expected) => {
    await golden(build({ mode: "svd", ...o }), shape, expected);
  });
});

describe("at its ends it is", () => {
  it("AdamW, where everything has state and averages are kept", async () => {
    for (const coordChoice of ["columns", "rows", "randk"])
      close(
        await weights(build({ mode: "coord", coordChoice, density: 1, resetStatistics: false }), 5, [4, 3], { weightDecay: 0.1 }),
        await weights(adamw.build(parseOptions(adamw, {})), 5, [4, 3], { weightDecay: 0.1 }),
      );
  });

  it("AdamW that starts anew at each gap, where they are not", async () => {
    const run = stepper(build({ mode: "coord", density: 1 }), [4, 3]);
    const plain = adamw.build(parseOptions(adamw, {}));
    const expected = await run.weight();
    for (let t = 0; t < 4; t++) await run.step();
    for (const first of [0, 2]) {
      const anew = stepper(plain, [4, 3]);
      const before = await anew.weight();
      for (const t of [first, first + 1]) await anew.step(tensor(gradientOf([4, 3], t), [4, 3], "f64"));
      (await anew.weight()).forEach((x, i) => (expected[i]! += x - before[i]!));
    }
    close(await run.weight(), expected);
  });

  it.each(["block", "coord", "svd"])("signSGD with decoupled decay and no state, where nothing has any: %s", async (mode) => {
    const run = stepper(build({ mode, density: 0 }), [4, 3], { weightDecay: 0.2 });
    let expected = await run.weight();
    for (let t = 0; t < 3; t++) {
      await run.step();
      expected = expected.map((x, i) => x * (1 - 0.02) - 0.1 * Math.sign(gradientOf([4, 3], t)[i]!));
    }
    close(await run.weight(), expected);
    expect(run.states().reduce((sum, state) => sum + run.numbers(state), 0)).toBe(0);
  });

  it("GaLore, in directions with averages kept, the rule no and the scale on the rate", async () => {
    for (const shape of [
      [4, 3],
      [3, 5],
    ])
      close(
        await weights(build({ mode: "svd", density: 0.67, resetStatistics: false, inactiveUpdateRule: "no", projParamsLrScale: 0.25, eps: 1e-30 }), 5, shape),
        await weights(galore.build(parseOptions(galore, { rank: 2, updateProjGap: 2, scale: 0.25, eps: 1e-30, targetModules: "w" })), 5, shape),
      );
  });
});

describe("coordinates", () => {
  it.each(["columns", "rows", "randk"] as Coordinates[])("%s: Down after Up changes nothing, Down of the rest is 0", async (choice) => {
    const part = coordinates(choice, 0.5);
    const g = tensor(sample([5, 7], 1), [5, 7], "f64");
    const chosen = (await part.choose(g, new Rng(1), false))!;
    const r = part.into(g, chosen);
    expect(r.shape).toEqual(part.shape([5, 7]));
    expect(r.shape).toEqual({ columns: [5, 3], rows: [2, 7], randk: [17] }[choice]);
    const up = part.back(r, chosen, g, 1, false);
    expect(await part.into(up, chosen).data()).toEqual(await r.data());
    const rest = [...(await g.data())].map((x, i) => Number(x) - Number(hostNumbers(up)[i]));
    expect([...(await part.into(tensor(rest, [5, 7], "f64"), chosen).data())].every((x) => x === 0)).toBe(true);
    expect([...(await part.back(r, chosen, g, 2, false).data())]).toEqual([...(await up.data())].map((x) => 2 * Number(x)));
  });

  it("hold 2·⌊ρ·columns⌋·rows averages, and which columns", async () => {
    const run = stepper(build({ mode: "coord", density: 0.4 }), [4, 6]);
    await run.step();
    expect(run.numbers(run.states()[0]!)).toBe(2 * Math.floor(0.4 * 6) * 4 + 2);
  });

  it("count 1, 2, 1, 2, 1 steps with a gap of 2, and change", async () => {
    const run = stepper(build({ mode: "coord", density: 0.5 }), [4, 40]);
    const [counts, chosen] = [[] as number[], [] as string[]];
    for (let t = 0; t < 5; t++) {
      await run.step();
      const state = run.states()[0]!;
      counts.push((((state["inner"] as State)[0] as State)["t"] ?? 0) as number);
      chosen.push(String(await ((state["projector"] as State)["index"] as Tensor).data()));
    }
    expect(counts).toEqual([1, 2, 1, 2, 1]);
    expect(chosen.map((x, i) => x === chosen[i - 1])).toEqual([false, true, false, true, false]);
  });

  it("every element moves; those without state by the rate exactly, times the two factors", async () => {
    const run = stepper(build({ mode: "coord", density: 0.5, inactiveLrScale: 0.5, projParamsLrScale: 0.5 }), [4, 6]);
    const before = await run.weight();
    await run.step();
    const moved = (await run.weight()).map((x, i) => Math.abs(x - before[i]!));
    const columns = [...(await ((run.states()[0]!["projector"] as State)["index"] as Tensor).data())].map(Number);
    // Adam's first step is as long as the rate for whatever gradient, up to eps
    moved.forEach((x, k) => expect(x).toBeCloseTo(columns.includes(k % 6) ? 0.05 : 0.025, columns.includes(k % 6) ? 5 : 12));
  });

  it("move by the gradient itself with the rule sgd", async () => {
    const run = stepper(build({ mode: "coord", density: 0, inactiveUpdateRule: "sgd" }), [4, 3]);
    const before = await run.weight();
    await run.step();
    close(
      await run.weight(),
      before.map((x, i) => x - 0.1 * gradientOf([4, 3], 0)[i]!),
    );
  });
});

describe("directions", () => {
  it.each(["random", "randperm"])("%s: orthonormal, drawn anew at each gap", async (projType) => {
    const run = stepper(build({ mode: "svd", projType, density: 0.5 }), [6, 8]);
    const seen: string[] = [];
    for (let t = 0; t < 3; t++) {
      await run.step();
      const left = (run.states()[0]!["projector"] as Projector)["left"]!;
      expect(left.shape).toEqual([6, 3]);
      const p = [...(await left.data())].map(Number);
      for (let i = 0; i < 3; i++)
        for (let j = 0; j < 3; j++) expect([0, 1, 2, 3, 4, 5].reduce((sum, k) => sum + p[3 * k + i]! * p[3 * k + j]!, 0)).toBeCloseTo(Number(i === j), 12);
      if (projType === "randperm") expect(p.filter((x) => x === 1).length).toBe(3);
      seen.push(String(p));
    }
    expect(seen[1]).toBe(seen[0]);
    expect(seen[2]).not.toBe(seen[0]);
  });

  it("are Flora's with averages kept: GaLore on random directions", async () => {
    const flora = floraProjection.build(parseOptions(floraProjection, { rank: 2, updateProjGap: 2, targetModules: "w" }));
    const same = build({ mode: "svd", projType: "random", density: 0.5, resetStatistics: false, inactiveUpdateRule: "no", projParamsLrScale: 0.25, eps: 1e-6 });
    const [a, b] = [await weights(flora, 5, [4, 4]), await weights(same, 5, [4, 4])];
    a.forEach((x, i) => expect(x).toBeCloseTo(b[i]!, 4));
  });
});

describe("blocks", () => {
  it.each([
    ["descending", [3, 3, 2, 2, 1]],
    ["ascending", [0, 0, 1, 1, 2]],
  ] as const)("%s: the active one of four with a gap of 2, which alone has averages", async (blockOrder, expected) => {
    const run = several(build({ density: 0.25, blockOrder, targetModules: ["attn"] }));
    const seen: number[] = [];
    for (let t = 0; t < 5; t++) {
      await run.step();
      const state = run.held();
      expect(active(state).length).toBe(1);
      expect(tensorsIn(state)).toBe(2 * 6 + 2 * 2);
      seen.push(...active(state));
    }
    expect(seen).toEqual(expected);
  });

  it("of any order walk as told", () => {
    const of = (order: Parameters<typeof activeBlocks>[0], n: number, count: number) =>
      [0, 1, 2, 3].map((round) => activeBlocks(order, n, count, round, new Rng(round)));
    expect(of("ascending", 5, 2)).toEqual([
      [0, 1],
      [2, 3],
      [4, 0],
      [1, 2],
    ]);
    expect(of("mirror", 6, 2)).toEqual([
      [0, 5],
      [1, 4],
      [2, 3],
      [3, 2],
    ]);
    expect(() => of("mirror", 6, 3)).toThrow("as many matrices from the front as from the back, but 3 of 6");
    const random = of("random", 40, 10);
    expect(new Set(random.map(String)).size).toBe(4);
    expect(random.every((blocks) => new Set(blocks).size === 10)).toBe(true);
  });

  it("move the active by Adam, the others by the rate, and what is no target always by Adam", async () => {
    const run = several(build({ density: 0.5, blockOrder: "ascending", targetModules: ["attn"], projParamsLrScale: 0.5, inactiveLrScale: 0.5 }), () => 3);
    const before = await Promise.all(run.w.map(async (w) => Number((await w.data())[0])));
    await run.step();
    const moved = await Promise.all(run.w.map(async (w, i) => before[i]! - Number((await w.data())[0])));
    close(moved, [0.05, 0.05, 0.025, 0.025, 0.1], 8);
  });

  it("starts momentum from the gradient", async () => {
    const core = sgd.core!(sgd.options.parse({ momentum: 0.9 }));
    const run = several(frugal.build(parseOptions(frugal, { density: 1, targetModules: ["attn"] }), core), () => 2);
    const before = await run.w[0]!.data();
    await run.step();
    expect(Number((await run.w[0]!.data())[0])).toBeCloseTo(Number(before[0]) - 0.2, 12);
  });

  it("stand still in BAdam, apart from decay", async () => {
    const run = several(badam.build(parseOptions(badam, { density: 0.25, blockOrder: "descending", updateGap: 2, targetModules: ["attn"] })));
    const before = await Promise.all(run.w.map((w) => w.data()));
    await run.step();
    const after = await Promise.all(run.w.map((w) => w.data()));
    expect(after.map((x, i) => String(x) === String(before[i]))).toEqual([true, true, true, false, false]);
    const none = several(badam.build(parseOptions(badam, { density: 0.1, targetModules: ["attn"] })));
    await expect(none.step()).rejects.toThrow("density 0.1 of 4 matrices rounds to none, so that nothing would move");
  });
});

it("rounds shares as Python does, and names its rules", () => {
  expect([0.5, 1.5, 2.5, 3.4, 3.6].map((x) => shareOf(10, x / 10))).toEqual([0, 2, 2, 3, 4]);
  expect(() => build({ inactiveUpdateRule: "same" })).toThrow('frugal: inactiveUpdateRule is "same"');
});
