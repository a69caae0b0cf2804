import { beforeAll, describe, expect, it, vi } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import type { ParameterGroup, Transform } from "../nn/contracts.ts";
import { affine, engine, Parameter, Rng, scope, start, tensor, type Tensor } from "../tensor/index.ts";
import { accumulate, adamCore, adamw, addDecayedWeights, chain, clipByGlobalNorm, clipByValue, scaleByLearningRate, sgd } from "./index.ts";
import { Optimization, type OptimizationSettings } from "./optimization.ts";

beforeAll(() => start());

const shapes = [[7, 5], [33], [1, 4]];
const weights = (): Parameter[] => shapes.map((shape, i) => new Parameter(tensor(sample(shape, i + 1), shape), `w${i}`));
const everyday: OptimizationSettings = {
  optimizer: adamw.build(adamw.options.parse({})),
  learningRate: 0.01,
  weightDecay: 0.1,
  schedule: (step) => 1 / (1 + step),
};

/** Twenty steps on gradients that depend on the step alone; `watched` clips in place. */
async function run(
  settings: Partial<OptimizationSettings>,
  { groups = () => [], watched = false }: { groups?: (w: Parameter[]) => ParameterGroup[]; watched?: boolean } = {},
): Promise<number[][]> {
  const w = weights();
  const optimization = new Optimization(groups(w), w, { ...everyday, ...settings });
  for (let step = 0; step < 20; step++)
    await scope(async () => {
      const gradients = new Map(w.map((p, i): [Parameter, Tensor] => [p, tensor(sample(p.shape, 100 * step + i, 3), p.shape)]));
      optimization.clip(gradients, watched);
      await optimization.update(gradients, optimization.context(step, 20, new Rng(0), [], new Map()));
    });
  return Promise.all(w.map(async (p) => [...((await p.data()) as Float32Array)]));
}

const far = (a: number[][], b: number[][]): number =>
  Math.max(...a.flatMap((row, i) => row.map((x, j) => Math.abs(x - b[i]![j]!) / Math.max(1e-3, Math.abs(b[i]![j]!)))));

describe("the everyday chain", () => {
  it("gives the same weights fused and link by link", async () => {
    const links = chain(clipByGlobalNorm(1), adamCore(), addDecayedWeights(), scaleByLearningRate());
    const unfused = await run({ optimizer: links, fuse: false });
    expect(far(await run({ clip: 1 }), unfused)).toBeLessThan(1e-6);
    expect(far(await run({ clip: 1 }, { watched: true }), unfused)).toBeLessThan(1e-6);
    expect(far(await run({ clip: 1, fuse: false }), unfused)).toBeLessThan(1e-6);
    expect(far(await run({}), unfused)).toBeGreaterThan(1e-3);
  });

  it("is one kernel call a parameter, with the clip factor in it", async () => {
    const kernel = vi.spyOn(engine().backend.kernels, "adamw");
    await run({ clip: 1 });
    const factors = kernel.mock.calls.map((call) => call.at(-1) as number);
    kernel.mockRestore();
    expect(factors.length).toBe(60);
    expect(Math.max(...factors)).toBeLessThan(0.2);
  });

  it("corrects each element by its own count where Adam's t is a tensor: equal counts give what one count gives, a new element moves as in a first step", async () => {
    const step = async (counts: number | number[], fuse: boolean): Promise<number[]> => {
      const w = new Parameter(tensor([1, -2, 3], [3], "f64"), "w");
      const optimization = new Optimization([], [w], { ...everyday, learningRate: 0.1, weightDecay: 0, schedule: () => 1, fuse });
      const context = optimization.context(0, 9, new Rng(0), [], new Map());
      const old = typeof counts === "number" || counts[2]! > 0;
      Object.assign(optimization.moments(w, context)[0]!, {
        t: typeof counts === "number" ? counts : tensor(counts, [3], "f64"),
        m: tensor([0.5, -0.2, old ? 0.3 : 0], [3], "f64"),
        v: tensor([0.4, 0.1, old ? 0.2 : 0], [3], "f64"),
      });
      await scope(() => optimization.update(new Map([[w, tensor([0.7, 0.1, -0.4], [3], "f64")]]), context));
      return [...((await w.data()) as Float64Array)];
    };
    const whole = await step(6, false);
    for (const fuse of [true, false]) {
      (await step([6, 6, 6], fuse)).forEach((value, i) => expect(value).toBeCloseTo(whole[i]!, 12));
      const mixed = await step([6, 6, 0], fuse);
      expect(mixed.slice(0, 2).map((value, i) => Math.abs(value - whole[i]!) < 1e-12)).toEqual([true, true]);
      expect(mixed[2]).toBeCloseTo(3.1, 6);
    }
  });

  it("follows the recurrence in torch's documentation of AdamW", async () => {
    const w = new Parameter(tensor([1, -2], [2], "f64"), "w");
    const optimization = new Optimization([], [w], { ...everyday, learningRate: 0.1, schedule: () => 1 });
    const expected = [1, -2];
    const [m, v] = [
      [0, 0],
      [0, 0],
    ];
    for (const [step, g] of [
      [0.5, -1],
      [-0.25, 3],
    ].entries()) {
      await optimization.update(new Map([[w, tensor(g, [2], "f64")]]), optimization.context(step, 2, new Rng(0), [], new Map()));
      for (const i of [0, 1]) {
        m[i] = 0.9 * m[i]! + 0.1 * g[i]!;
        v[i] = 0.999 * v[i]! + 0.001 * g[i]! ** 2;
        expected[i] = expected[i]! * (1 - 0.1 * 0.1) - (0.1 * (m[i]! / (1 - 0.9 ** (step + 1)))) / (Math.sqrt(v[i]! / (1 - 0.999 ** (step + 1))) + 1e-8);
      }
    }
    expect([...(await w.data())]).toEqual(expected.map((x) => expect.closeTo(x, 12) as number));
  });
});

describe("other chains", () => {
  it("sgd with momentum and decay follows torch's recurrence", async () => {
    const w = new Parameter(tensor([1], [1], "f64"), "w");
    const optimization = new Optimization([], [w], {
      optimizer: sgd.build(sgd.options.parse({ momentum: 0.9, nesterov: true })),
      learningRate: 0.1,
      weightDecay: 0.5,
      schedule: () => 1,
    });
    let [value, trace] = [1, 0];
    for (const [step, g] of [2, -1, 0.5].entries()) {
      await optimization.update(new Map([[w, tensor([g], [1], "f64")]]), optimization.context(step, 3, new Rng(0), [], new Map()));
      const d = g + 0.5 * value;
      trace = step === 0 ? d : 0.9 * trace + d;
      value -= 0.1 * (d + 0.9 * trace);
    }
    expect(await w.item()).toBeCloseTo(value, 12);
  });

  it("clipByValue limits every element", async () => {
    const w = new Parameter(tensor([0, 0, 0], [3]), "w");
    const optimization = new Optimization([], [w], {
      ...everyday,
      optimizer: chain(clipByValue(0.5), scaleByLearningRate()),
      learningRate: 1,
      schedule: () => 1,
    });
    await optimization.update(new Map([[w, tensor([2, -3, 0.25], [3])]]), optimization.context(0, 1, new Rng(0), [], new Map()));
    expect([...(await w.data())]).toEqual([-0.5, 0.5, -0.25]);
  });

  it("a list link in the middle sees its own group, with the parameter links around it", async () => {
    const seen: string[][] = [];
    const doubled: Transform = chain(
      { scope: "parameter", init: () => ({}), update: (u) => affine(u, 2, 0) },
      {
        scope: "group",
        init: () => ({ calls: 0 }),
        update: (u, s, w) => (seen.push(w.map(({ name }) => `${name}#${(s["calls"] = (s["calls"] as number) + 1)}`)), u),
      },
      scaleByLearningRate(),
    );
    const groups = ([a, b, c]: Parameter[]): ParameterGroup[] => [
      { parameters: [a!], optimizer: doubled },
      { parameters: [b!, c!], optimizer: doubled, learningRate: 0 },
    ];
    const [moved, ...still] = await run({}, { groups });
    expect(seen.slice(0, 2)).toEqual([["w0#1"], ["w1#1", "w2#2"]]);
    expect(still).toEqual(
      await Promise.all(
        weights()
          .slice(1)
          .map(async (p) => [...((await p.data()) as Float32Array)]),
      ),
    );
    expect(moved).not.toEqual([...((await weights()[0]!.data()) as Float32Array)]);
  });

  it("groups have rate, factor, decay and schedule of their own", async () => {
    const [w0, w1, w2] = weights() as [Parameter, Parameter, Parameter];
    const optimization = new Optimization(
      [
        { parameters: [w0], learningRateFactor: 3, weightDecay: 0 },
        { parameters: [w1], learningRate: 0.5, schedule: () => 0.1 },
      ],
      [w0, w1, w2],
      everyday,
    );
    const t = optimization.context(1, 20, new Rng(0), [], new Map());
    expect([w0, w1, w2].map((w) => [t.learningRate(w), t.weightDecay(w)])).toEqual([
      [0.015, 0],
      [0.05, 0.1],
      [0.005, 0.1],
    ]);
    expect(() => new Optimization([{ parameters: [w0] }, { parameters: [w0] }], [w0], everyday)).toThrow("w0 stands in two parameter groups");
  });

  it("tensors that a link makes outlive the step", async () => {
    const link: Transform = { scope: "parameter", init: () => ({}), update: (u, s) => ((s["last"] = affine(u, 1, 1)), u) };
    const [w] = weights() as [Parameter];
    const optimization = new Optimization([], [w], { ...everyday, optimizer: link });
    await scope(async () => optimization.update(new Map([[w, tensor(sample(w.shape), w.shape)]]), optimization.context(0, 1, new Rng(0), [], new Map())));
    expect((await (optimization.statesOf(w)[0]!["last"] as Tensor).data()).length).toBe(35);
  });
});

describe("options", () => {
  it("that make no sense end in a sentence", () => {
    expect(() => clipByGlobalNorm(0)).toThrow("clip is 0; it must be a norm above 0");
    expect(() => clipByValue(-1)).toThrow("must be above 0");
    expect(adamw.options.safeParse({ betas: [1, 0.9] }).success).toBe(false);
  });

  it("in-place addition accepts strided operands", async () => {
    const y = tensor([1, 1, 1, 1], [2, 2]);
    accumulate(y, 2, new Parameter(tensor([1, 2, 3, 4], [2, 2])), 1);
    expect([...(await y.data())]).toEqual([3, 5, 7, 9]);
  });
});
