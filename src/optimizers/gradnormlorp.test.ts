import { beforeAll, describe, expect, it } from "vitest";
import { gradientOf, stepper } from "../../test/support/optimizer.ts";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { adapt, dora } from "../adapters/index.ts";
import { parseOptions } from "../nn/options.ts";
import { backward, div, hostNumbers, mul, norm, Parameter, start, sum, tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { train } from "../training/index.ts";
import { galore, gradNormLorp, sgd } from "./index.ts";

beforeAll(() => start());

const build = (o: object = {}, inner?: Parameters<typeof gradNormLorp.build>[1]) =>
  gradNormLorp.build(parseOptions(gradNormLorp, { rank: 2, targetModules: "w", ...o }), inner);
const close = (a: readonly number[], b: readonly number[], digits = 12): void => a.forEach((x, i) => expect(x).toBeCloseTo(b[i]!, digits));
const lengths = (w: readonly number[], columns: number): number[] =>
  Array.from({ length: w.length / columns }, (_, i) => Math.hypot(...w.slice(i * columns, (i + 1) * columns)));

describe("dora-proj", () => {
  it("holds 2·q² averages and q·(r + in) of a projector, or with one side those of GaLore", async () => {
    const [both, one] = [stepper(build(), [4, 16]), stepper(build({ projType: "std" }), [4, 16])];
    for (const run of [both, one]) await run.step();
    expect(both.numbers(both.states()[0]!)).toBe(2 * 2 * 2 + 2 * (4 + 16));
    expect(one.numbers(one.states()[0]!)).toBe(2 * 2 * 16 + 2 * 4);
  });

  it("is GaLore with one side", async () => {
    const [run, plain] = [
      stepper(build({ projType: "std", updateProjGap: 2 }), [4, 6]),
      stepper(galore.build(parseOptions(galore, { rank: 2, updateProjGap: 2, targetModules: "w" })), [4, 6]),
    ];
    for (let t = 0; t < 4; t++) for (const each of [run, plain]) await each.step();
    expect(await run.weight()).toEqual(await plain.weight());
  });

  it("turns gradients without saving memory where the rank is that of the adapter, and says so once", async () => {
    const run = stepper(build({ rank: 4, projType: "std" }), [4, 16]);
    await run.step();
    await run.step();
    expect(run.warnings).toEqual([
      "gradnormlorp: rank 4 is no smaller than the shorter side of w.weight, 4: its gradient is only turned, and no memory is saved",
    ]);
    expect(run.numbers(run.states()[0]!)).toBe(2 * 4 * 16 + 4 * 4);
    expect((await run.weight()).every(Number.isFinite)).toBe(true);
    const saving = stepper(build(), [4, 16]);
    await saving.step();
    expect(saving.warnings).toEqual([]);
  });

  it("trains a DoRA adapter; with scale 0 only its lengths move", async () => {
    const adapted = async () => adapt(tinyModel(), dora, { r: 4, alpha: 8 }, { targets: ["q_proj", "down_proj"] });
    const moved = async (scale: number): Promise<string[]> => {
      const start = await adapted();
      const before = new Map(
        await Promise.all(
          [...start.adapters.get("default")!.entries].flatMap(([path, params]) =>
            Object.entries(params).map(async ([name, w]) => [`${path} ${name}`, String(await w.data())] as const),
          ),
        ),
      );
      const { model } = await train(start, { batches: tinyBatches(3), steps: 4, optimizer: { method: gradNormLorp, options: { rank: 2, scale, lr: 0.05 } } });
      const names = [];
      for (const [path, params] of model.adapters.get("default")!.entries)
        for (const [name, w] of Object.entries(params)) if (String(await w.data()) !== before.get(`${path} ${name}`)) names.push(name);
      return [...new Set(names)].sort();
    };
    expect(await moved(0.25)).toEqual(["A", "B", "m"]);
    expect(await moved(0)).toEqual(["m"]);
  });
});

describe("wn-optimizer", () => {
  const mode = "wn-optimizer";
  // made by the recursions of the sheet and of the official class in float64 NumPy: four steps at lr .1, decay .01, one projector
  it.each([
    [[4, 3], "official", [0.756858, 0.661831, -0.400259, -0.56479, -0.933839, 0.057642, 0.075455, 0.981801, 0.443961, 0.348134, -0.772815, -0.765308]],
    [
      [3, 5],
      "official",
      [
        0.757953, 0.692122, -0.440587, -0.916037, -0.040846, -0.756674, 0.463961, 1.012368, 0.078192, -0.963135, -0.523359, -0.948299, 0.076121, 0.977297,
        0.443457,
      ],
    ],
    [[4, 3], undefined, [0.588262, 0.541109, -0.336949, -0.628944, -1.019818, 0.045383, 0.095321, 1.106521, 0.495431, 0.290051, -0.733037, -0.765888]],
    [
      [3, 5],
      undefined,
      [
        0.66051, 0.583698, -0.360443, -0.821409, -0.018423, -0.791091, 0.499905, 1.078513, 0.05789, -0.961161, -0.480199, -0.807769, 0.074368, 0.884369,
        0.388179,
      ],
    ],
  ] as const)("golden %j, strict %s", async (shape, strict, expected) => {
    const run = stepper(build({ mode, projType: "std", ...(strict ? { strict } : {}) }), shape, { weightDecay: 0.01 });
    for (let t = 0; t < 4; t++) await run.step();
    close(await run.weight(), expected, 5);
  });

  it("keeps each row as long as g", async () => {
    const run = stepper(build({ mode }), [4, 6]);
    for (let t = 0; t < 3; t++) await run.step();
    const g = [...(await (run.states()[0]!["g"] as Parameter).data())].map(Number);
    close(lengths(await run.weight(), 6), g);
  });

  it("moves W as its parametrisation does by autograd, to first order, at full rank around sgd", async () => {
    const [rows, columns, rate] = [4, 6, 1e-6];
    const inner = sgd.core!(sgd.options.parse({}));
    const run = stepper(build({ mode, rank: 9, scale: 1, projType: "std" }, inner), [rows, columns], { learningRate: rate });
    const before = await run.weight();
    await run.step();
    const moved = (await run.weight()).map((x, i) => (x - before[i]!) / rate);
    const [v, g] = [new Parameter(tensor(before, [rows, columns], "f64"), "v"), new Parameter(tensor(lengths(before, columns), [rows, 1], "f64"), "g")];
    const weight = () => div(mul(g, v), norm(v, { axes: [1], keepAxes: true }));
    const gradients = backward(sum(mul(weight(), tensor(gradientOf([rows, columns], 0), [rows, columns], "f64"))));
    const [dv, dg] = [await gradients.get(v)!.data(), await gradients.get(g)!.data()];
    // the direction of v has no part along v
    for (let i = 0; i < rows; i++)
      expect([...dv].slice(i * columns, (i + 1) * columns).reduce<number>((s, x, j) => s + Number(x) * before[i * columns + j]!, 0)).toBeCloseTo(0, 12);
    const step = (x: Parameter, d: ArrayLike<number | bigint>) =>
      tensor(
        Array.from(d, (y, i) => Number(hostNumbers(x)[i]) - rate * Number(y)),
        x.shape,
        "f64",
      );
    const [v1, g1] = [step(v, dv as Float64Array), step(g, dg as Float64Array)];
    const expected = await div(mul(g1, v1), norm(v1, { axes: [1], keepAxes: true })).data();
    moved.forEach((x, i) => expect(Math.abs(x - (Number(expected[i]) - before[i]!) / rate)).toBeLessThan(1e-4 * Math.max(1, Math.abs(x))));
  });

  it("moves only lengths at scale 0", async () => {
    const run = stepper(build({ mode, scale: 0 }), [4, 6]);
    const before = await run.weight();
    await run.step();
    const ratio = (await run.weight()).map((x, i) => x / before[i]!);
    ratio.forEach((x, k) => expect(x).toBeCloseTo(ratio[k - (k % 6)]!, 12));
    expect(Math.abs(ratio[0]! - 1)).toBeGreaterThan(1e-3);
  });

  it("keeps rows of zeros finite, and leaves vectors to plain Adam", async () => {
    const run = stepper(build({ mode }), [3, 4]);
    (hostView(run.w) as Float64Array).fill(0, 0, 4);
    await run.step();
    expect((await run.weight()).every(Number.isFinite)).toBe(true);
    const vector = stepper(build({ mode }), [5]);
    const plain = stepper(galore.build(parseOptions(galore, { targetModules: ["x"] })), [5]);
    for (const each of [vector, plain]) await each.step(tensor([1, -2, 0, 3, 4], [5], "f64"));
    close(await vector.weight(), await plain.weight());
  });
});

it("refuses strict where it means nothing", () => {
  expect(() => build({ strict: "official" })).toThrow("strict is about mode wn-optimizer");
});
