import { beforeAll, describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { golden, gradientOf, stepper } from "../../test/support/optimizer.ts";
import { parseOptions } from "../nn/options.ts";
import { start, tensor, Tensor, type Parameter } from "../tensor/index.ts";
import { galoreLink } from "./galore.ts";
import { adafactor, adam, adamw, adamwHf, addDecayedWeights, chain, lamb, lion, scaleByLearningRate, signsgd } from "./index.ts";

beforeAll(() => start());

type Rates = Parameters<typeof stepper>[2];

/** A weight of 4×3 after four steps of the sheets' gradients. */
async function after(optimizer: Parameters<typeof stepper>[0], rates: Rates = { weightDecay: 0.1 }): Promise<number[]> {
  const run = stepper(optimizer, [4, 3], rates);
  for (let t = 0; t < 4; t++) await run.step();
  return run.weight();
}

const first = (): Promise<number[]> => stepper(chain(), [4, 3]).weight();

function close(found: readonly number[], expected: readonly number[], digits = 5): void {
  expected.forEach((x, i) => expect(found[i], `element ${i}`).toBeCloseTo(x, digits));
}

/** The recurrence of an optimiser, written as its table row: what it makes of w, g and its memory at step t from 1. */
async function follows(optimizer: Parameters<typeof stepper>[0], rates: Rates, rule: (w: number[], g: number[], t: number) => number[]): Promise<void> {
  let expected = await first();
  for (let t = 1; t <= 4; t++) expected = rule(expected, gradientOf([4, 3], t - 1), t);
  close(await after(optimizer, rates), expected, 10);
}

/** Adam's averages, step by step. */
function averages(beta1 = 0.9, beta2 = 0.999) {
  const [m, v] = [new Array<number>(12).fill(0), new Array<number>(12).fill(0)];
  return (g: readonly number[]) => {
    g.forEach((x, i) => {
      m[i] = beta1 * m[i]! + (1 - beta1) * x;
      v[i] = beta2 * v[i]! + (1 - beta2) * x * x;
    });
    return { m, v };
  };
}

const norm = (x: readonly number[]): number => Math.hypot(...x);

describe("values of torch 2.13", () => {
  it("Adam: decay goes through the averages", async () => {
    const expected = [0.453612, 0.529457, -0.452061, -0.675364, -0.999183, 0.157221, -0.004845, 1.056235, 0.597173, 0.223248, -0.635181, -0.981293];
    close(await after(adam.build(parseOptions(adam, {}))), expected);
  });

  it("AdamW", async () => {
    const expected = [0.428018, 0.521285, -0.451734, -0.669787, -0.998095, 0.15775, -0.004775, 1.053645, 0.59199, 0.233479, -0.630455, -0.989855];
    close(await after(adamw.build(parseOptions(adamw, {}))), expected);
  });
});

describe("values of transformers 5.18's Adafactor", () => {
  const built = (options: object) => adafactor.build(parseOptions(adafactor, options as Record<string, unknown>));

  it("with a relative step in proportion to the parameter", async () => {
    const expected = [0.817253, 0.745257, -0.439109, -0.526751, -0.957626, 0.018277, 0.10925, 0.983522, 0.414608, 0.323278, -0.821729, -0.763296];
    close(await after(built({}), { learningRate: 1, weightDecay: 0.1 }), expected);
  });

  it("with an average of updates, another threshold and another decay", async () => {
    const expected = [0.764304, 0.702742, -0.418935, -0.519175, -0.918905, 0.022008, 0.102016, 0.95094, 0.412605, 0.312463, -0.78327, -0.751933];
    close(await after(built({ relativeStep: false, scaleParameter: false, beta1: 0.9, clipThreshold: 0.5, decayRate: -0.5 })), expected);
  });

  it("on a vector, whose squares are kept whole", async () => {
    const expected = [0.603696, 0.762105, -0.415354, -0.489265, -0.983981, 0.034484, 0.037515, 0.95443, 0.443967, 0.32916, -0.77354, -0.755736];
    const run = stepper(built({ relativeStep: false }), [12], { weightDecay: 0.1, firstWeight: [4, 3] });
    for (let t = 0; t < 4; t++) await run.step(tensor(gradientOf([4, 3], t), [12], "f64"));
    close(await run.weight(), expected);
    expect(run.numbers(run.states()[0]!)).toBe(12);
  });

  it("warmupInit begins with a millionth in place of a hundredth", async () => {
    const moved = async (warmupInit: boolean): Promise<number> => {
      const run = stepper(built({ warmupInit }), [4, 3], { learningRate: 1 });
      await run.step();
      return (await run.weight())[0]! - (await first())[0]!;
    };
    expect((await moved(true)) / (await moved(false))).toBeCloseTo(1e-4, 9);
  });

  it("keeps m + n numbers of an m×n matrix", async () => {
    const run = stepper(built({}), [4, 3]);
    await run.step();
    expect(run.states().map(run.numbers)).toEqual([4 + 3, 0, 0]);
  });

  it("inside GaLore, with the decay before the update as in the official optimiser", async () => {
    const inner = adafactor.core!(parseOptions(adafactor, { relativeStep: false, scaleParameter: false }));
    const projection = { rank: 2, updateProjGap: 2, scale: 0.25, projType: "std", svd: "auto", targetModules: "w" } as const;
    await golden(
      chain(galoreLink(projection, inner), addDecayedWeights(), scaleByLearningRate()),
      [4, 3],
      [0.771523, 0.73154, -0.42816, -0.509973, -0.965211, 0.029944, 0.098055, 0.99465, 0.41322, 0.350439, -0.818023, -0.752919],
    );
  });

  it("its learning rate is 1 where it has a relative step, else 1e-3", () => {
    const rate = (options: Record<string, unknown>) => adafactor.rates!(parseOptions(adafactor, options)).learningRate;
    expect([rate({}), rate({ relativeStep: false }), rate({ lr: 0.1 })]).toEqual([1, 1e-3, 0.1]);
  });
});

describe("the table's recurrences", () => {
  const rates = { learningRate: 0.1, weightDecay: 0.1 };

  it.each([true, false])("AdamW of the first transformers, correctBias %s: eps beside the uncorrected root, decay after the update", async (correctBias) => {
    const average = averages();
    await follows(adamwHf.build(parseOptions(adamwHf, { correctBias, eps: 0.01 })), rates, (w, g, t) => {
      const { m, v } = average(g);
      const correction = correctBias ? Math.sqrt(1 - 0.999 ** t) / (1 - 0.9 ** t) : 1;
      return w.map((x, i) => (x - (0.1 * correction * m[i]!) / (Math.sqrt(v[i]!) + 0.01)) * (1 - 0.1 * 0.1));
    });
  });

  it("Lion", async () => {
    let m = new Array<number>(12).fill(0);
    await follows(lion.build(parseOptions(lion, {})), rates, (w, g) => {
      const next = w.map((x, i) => x * (1 - 0.1 * 0.1) - 0.1 * Math.sign(0.9 * m[i]! + 0.1 * g[i]!));
      m = m.map((x, i) => 0.99 * x + 0.01 * g[i]!);
      return next;
    });
  });

  it("signSGD", async () => {
    await follows(signsgd.build(parseOptions(signsgd, {})), rates, (w, g) => w.map((x, i) => x * (1 - 0.1 * 0.1) - 0.1 * Math.sign(g[i]!)));
  });

  it("LAMB of MKOR: no bias correction, and weights count as 10 long at most", async () => {
    for (const decay of [0.1, 2]) {
      const average = averages();
      const lambOf = lamb.build(parseOptions(lamb, { variant: "mkor" }));
      await follows(lambOf, { ...rates, weightDecay: decay }, (w, g) => {
        const { m, v } = average(g);
        const u = w.map((x, i) => m[i]! / (Math.sqrt(v[i]!) + 1e-6) + decay * x);
        return w.map((x, i) => x - (0.1 * Math.min(norm(w), 10) * u[i]!) / norm(u));
      });
    }
  });

  it("LAMB of apex: gradients clipped together first, bias corrected", async () => {
    const average = averages();
    await follows(lamb.build(parseOptions(lamb, {})), rates, (w, g, t) => {
      const { m, v } = average(g.map((x) => x * Math.min(1, 1 / (norm(g) + 1e-6))));
      const u = w.map((x, i) => m[i]! / (1 - 0.9 ** t) / (Math.sqrt(v[i]! / (1 - 0.999 ** t)) + 1e-6) + 0.1 * x);
      return w.map((x, i) => x - (0.1 * norm(w) * u[i]!) / norm(u));
    });
  });

  it("LAMB of apex without decay is Adam, unless nvlamb", async () => {
    const plain = await after(adam.build(parseOptions(adam, { eps: 1e-6 })), { weightDecay: 0 });
    const of = (nvlamb: boolean) => after(lamb.build(parseOptions(lamb, { maxGradNorm: 0, nvlamb })), { weightDecay: 0 });
    close(await of(false), plain, 12);
    expect(norm((await of(true)).map((x, i) => x - plain[i]!))).toBeGreaterThan(0.01);
  });

  it("LAMB of bitsandbytes: Adam no longer than maxUnorm·‖w‖", async () => {
    const average = averages();
    await follows(lamb.build(parseOptions(lamb, { variant: "bitsandbytes", maxUnorm: 0.5 })), { ...rates, weightDecay: 0 }, (w, g, t) => {
      const { m, v } = average(g);
      const u = w.map((_, i) => m[i]! / (1 - 0.9 ** t) / (Math.sqrt(v[i]! / (1 - 0.999 ** t)) + 1e-6));
      return w.map((x, i) => x - 0.1 * Math.min(1, (0.5 * norm(w)) / norm(u)) * u[i]!);
    });
  });

  it("LAMB moves weights that are 0, and stays where gradient and weight are", async () => {
    for (const variant of ["apex", "mkor", "bitsandbytes"] as const) {
      const optimizer = lamb.build(parseOptions(lamb, { variant }));
      const run = stepper(optimizer, [4, 3], { weightDecay: 0 });
      run.w.assign(tensor(new Array<number>(12).fill(0), [4, 3], "f64"));
      await run.step(tensor(new Array<number>(12).fill(0), [4, 3], "f64"));
      expect(await run.weight()).toEqual(new Array<number>(12).fill(0));
      await run.step();
      expect(norm(await run.weight())).toBeGreaterThan(0.1);
    }
  });
});

describe("limits on gradients", () => {
  const clipped = async (settings: object): Promise<number[]> => {
    const run = stepper(chain(), [1, 3], settings);
    const before = await run.weight();
    const gradients = new Map<Parameter, Tensor>([[run.w, tensor([3, -0.5, 4], [1, 3], "f64")]]);
    expect(run.optimization.clip(gradients, true)).toBeCloseTo(Math.hypot(3, 0.5, 4), 12);
    await run.step(gradients.get(run.w));
    return (await run.weight()).map((x, i) => before[i]! - x);
  };

  it("by value, then by norm", async () => {
    close(await clipped({ clipValue: 1 }), [1, -0.5, 1], 12);
    close(await clipped({ clipValue: 1, clip: 0.75 }), [0.5, -0.25, 0.5], 5);
    close(await clipped({}), [3, -0.5, 4], 12);
  });

  it("by value in the fused kernel too", async () => {
    const runs = [true, false].map((fuse) => stepper(adamw.build(parseOptions(adamw, {})), [3, 5], { clipValue: 0.1, dtype: "f32", fuse }));
    for (const run of runs) {
      const gradients = new Map<Parameter, Tensor>([[run.w, tensor(sample([3, 5], 1), [3, 5])]]);
      run.optimization.clip(gradients, false);
      await run.step(gradients.get(run.w));
    }
    const [fused, links] = await Promise.all(runs.map(({ weight }) => weight()));
    close(fused!, links!, 6);
  });
});

describe("weights rounded at random", () => {
  it("lie on the grid of bf16, and move on the mean by what nearest rounding would lose", async () => {
    const run = stepper(chain(), [64, 256], { dtype: "f32", stochasticRounding: true });
    run.w.assign(tensor(new Array<number>(64 * 256).fill(1), [64, 256]));
    // a 32nd of the distance of neighbours above 1, so that the nearest is always 1 again
    const step = 2 ** -12;
    for (let t = 0; t < 64; t++) await run.step(tensor(new Array<number>(64 * 256).fill(-step), [64, 256]));
    const weight = await run.weight();
    expect(weight.every((x) => Number.isInteger(x * 2 ** 7))).toBe(true);
    const mean = weight.reduce((sum, x) => sum + x, 0) / weight.length;
    // the deviation of one is 2⁻⁷·√(64·31/1024), that of the mean a 128th
    expect(Math.abs(mean - (1 + 64 * step))).toBeLessThan(4 * ((2 ** -7 * Math.sqrt((64 * 31) / 1024)) / 128));
  });

  it("of the everyday chain are those of its links", async () => {
    const made = adamw.build(parseOptions(adamw, {}));
    const [fused, links] = [true, false].map((fuse) => stepper(made, [8, 8], { dtype: "f32", stochasticRounding: true, fuse }));
    for (let t = 0; t < 3; t++) for (const run of [fused!, links!]) await run.step();
    const [a, b] = [await fused!.weight(), await links!.weight()];
    // equal but where the last bit of f32 decides
    expect(a.filter((x, i) => x !== b[i]).length).toBeLessThan(3);
    expect(new Set(a.map((x) => new Uint32Array(Float32Array.of(x).buffer)[0]! & 0xffff))).toEqual(new Set([0]));
  });
});

describe("options", () => {
  it("that make no sense end in a sentence", () => {
    const bad = (method: Parameters<typeof parseOptions>[0], options: Record<string, unknown>) => () => parseOptions(method, options);
    expect(bad(adafactor, { decayRate: 0.8 })).toThrow("adafactor: decayRate is 0.8");
    expect(bad(lamb, { variant: "lars" })).toThrow("lamb: variant is");
    expect(bad(lion, { betas: [0.9] })).toThrow("lion: betas");
    expect(bad(adamw, { state: "4bit" })).toThrow("adamw: state is");
    expect(bad(signsgd, { momentum: 0.9 })).toThrow("signsgd has no option momentum");
  });
});
