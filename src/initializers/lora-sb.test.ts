import { beforeAll, describe, expect, it } from "vitest";
import { adapt, lora, loraXs, merge, toLora, type AdaptOptions } from "../adapters/index.ts";
import { singularValues } from "../linalg/index.ts";
import { loadModel, randomModel, unfreeze, type Model } from "../models/index.ts";
import {
  backward,
  copyOf,
  matmul,
  noGrad,
  Rng,
  scale,
  sign,
  slice,
  start,
  sub,
  tensor,
  transpose,
  zeros,
  type Parameter,
  type Tensor,
} from "../tensor/index.ts";
import { classification, languageModelLoss, train } from "../training/index.ts";
import { numbers } from "../../test/support/site.ts";
import { apart, calibration, defect, most, moved, parametersOf } from "../../test/support/starts.ts";
import { loraSb } from "./index.ts";

const part = (x: Tensor, from: number, until: number): Tensor => copyOf(slice(x, 0, from, until));

let base: Model;
const path = "model.layers.1.self_attn.q_proj";
const size = async (x: Tensor): Promise<number> => Math.hypot(...(await numbers(x)));
type Core = { A: Parameter; B: Parameter; R: Parameter };
const coreAt = (model: Model, at = path): Core => parametersOf(model).get(at) as Core;
const changeOf = ({ A, B, R }: Core): Tensor => noGrad(() => matmul(matmul(B, R), A));

const begin = (options: Readonly<Record<string, unknown>> = {}, given = { r: 4, alpha: 4 }, more: Partial<AdaptOptions> = {}): Promise<Model> =>
  adapt(base, loraXs, given, { targets: ["q_proj", "v_proj", "down_proj"], calibration, initializer: { method: loraSb, options }, ...more });

/** ∂L/∂W of the base at `path`. */
function gradient(): Tensor {
  const trained = unfreeze(base);
  return backward(languageModelLoss(trained, calibration[0]!)).get(trained.layers.get(path)!.weight)!;
}

beforeAll(async () => {
  await start();
  base = await loadModel("data/lm/stories260K");
});

describe("LoRA-SB", () => {
  it.each(["exact", "randomized"])("starts at the best approximation of −η·sign(G), with orthonormal B and A, for any scale (%s)", async (svd) => {
    const model = await begin({ etaEff: 0.01, svd });
    const step = scale(sign(gradient()), -0.01);
    const { A, B, R } = coreAt(model);
    expect(await defect(A)).toBeLessThan(1e-5);
    expect(await defect(transpose(B))).toBeLessThan(1e-5);
    const sigma = await numbers(await singularValues(step));
    expect((await size(noGrad(() => sub(step, changeOf({ A, B, R }))))) / Math.hypot(...sigma.slice(4))).toBeCloseTo(1, svd === "exact" ? 4 : 3);
    expect(most((await numbers(await singularValues(changeOf({ A, B, R })))).slice(4)), "rank 4").toBeLessThan(1e-6);
    expect(await moved(await begin({ etaEff: 0.01, svd }, { r: 4, alpha: 16 }), model)).toBeLessThan(1e-4);
  });

  it("moves the model at once, by more for a larger η, unless its core starts at zero; r² numbers train at a site of any size", async () => {
    const [near, far] = [await begin(), await begin({ etaEff: 2e-3 })];
    const distance = await moved(near, base);
    expect(distance).toBeGreaterThan(1e-3);
    expect((await moved(far, base)) / distance).toBeGreaterThan(1.5);
    expect(await moved(await begin({ zeroCore: true }), base)).toBe(0);
    for (const [site, { A, B, R }] of parametersOf(near))
      expect(
        [A, B, R].map((p) => (p!.trainable ? p!.size : 0)),
        site,
      ).toEqual([0, 0, 16]);
  });

  it("gives R the gradient s·Bᵀ·G·Aᵀ, and no other core is nearer to G between B and A", async () => {
    const model = await begin({ zeroCore: true }, { r: 4, alpha: 12 });
    const { A, B, R } = coreAt(model);
    const G = gradient();
    const inner = noGrad(() => matmul(matmul(transpose(B), G), transpose(A)));
    const g = backward(languageModelLoss(model, calibration[0]!)).get(R)!;
    expect(
      apart(
        await numbers(g),
        (await numbers(inner)).map((x) => 3 * x),
      ) / most(await numbers(g)),
    ).toBeLessThan(1e-4);
    const gap = (X: Tensor): Promise<number> => size(noGrad(() => sub(G, matmul(matmul(B, X), A))));
    const best = await gap(inner);
    for (const seed of [4, 5, 6]) expect(best).toBeLessThan(await gap(noGrad(() => sub(inner, scale(new Rng(seed).normal([4, 4], 1), 0.01 * most([best]))))));
  });

  it("moves W, in a first plain step, by the projection of the full step onto the span of B and A", async () => {
    const model = await begin();
    const { A, B, R } = coreAt(model);
    const before = await numbers(changeOf({ A, B, R }));
    const learningRate = 0.1;
    const g = backward(languageModelLoss(model, calibration[0]!)).get(R)!;
    const G = backward(languageModelLoss(unfrozenMerge(model), calibration[0]!)).get(leaf)!;
    R.assign(noGrad(() => sub(R, scale(g, learningRate))));
    const projected = noGrad(() => matmul(matmul(B, matmul(matmul(transpose(B), scale(G, -learningRate)), transpose(A))), A));
    const wanted = await numbers(projected);
    expect(
      apart(
        (await numbers(changeOf({ A, B, R }))).map((x, i) => x - before[i]!),
        wanted,
      ) / most(wanted),
    ).toBeLessThan(1e-3);
  });

  let leaf: Parameter;
  /** The merged model with trainable weights, and its weight at `path` as `leaf`. */
  function unfrozenMerge(model: Model): Model {
    const whole = unfreeze(merge(model));
    leaf = whole.layers.get(path)!.weight;
    return whole;
  }

  it("can be merged, and become a plain LoRA of its rank with R in B, exactly", async () => {
    const { model } = await train(await begin(), { batches: () => calibration[0]!, steps: 2, learningRate: 1e-2 });
    expect(await moved(merge(model), model)).toBeLessThan(1e-4);
    const { model: plain, error } = await toLora(model, { rank: 4 });
    expect(error.total).toBeLessThan(1e-5);
    expect(await moved(plain, model)).toBeLessThan(1e-4);
  });

  it("rounds to bfloat16 where parity asks for it, after which B and A are orthonormal to a few thousandths", async () => {
    const [exact, rounded] = [coreAt(await begin()), coreAt(await begin({ cast: "bf16" }))];
    for (const name of ["A", "B", "R"] as const) {
      const [fine, coarse] = [await numbers(exact[name]), await numbers(rounded[name])];
      const bits = new Int32Array(Float32Array.from(coarse).buffer);
      expect(
        bits.every((word) => (word & 0xffff) === 0),
        name,
      ).toBe(true);
      fine.forEach((x, i) => expect(Math.abs(coarse[i]! - x)).toBeLessThanOrEqual(Math.abs(x) * 2 ** -8));
    }
    const off = await defect(rounded.A);
    expect(off).toBeGreaterThan(1e-4);
    expect(off).toBeLessThan(1e-2);
  });

  it("estimates the step on any task's batches, and leaves what has no gradient at zero", async () => {
    const model = randomModel({ model_type: "resnet-cifar", blocks_per_stage: [1], widths: [6], num_labels: 4 }, (name, shape) =>
      new Rng(4).fork(name).normal(shape, 0.3),
    );
    const x = new Rng(5).normal([12, 3, 6, 6], 1);
    const labels = tensor(
      Array.from({ length: 12 }, (_, i) => i % 3),
      [12],
      "i32",
    );
    const batches = [0, 6].map((from) => ({ ids: [], inputs: { x: part(x, from, from + 6), labels: part(labels, from, from + 6) } }));
    const given = { targets: ["linear"], calibration: batches, initializer: { method: loraSb, options: { etaEff: 0.01 } } } as const;
    const tuned = await adapt(model, loraXs, { r: 2, alpha: 2 }, { ...given, task: classification });
    const whole = unfreeze(model);
    const weight = whole.layers.get("linear")!.weight;
    const g = backward(classification.loss(whole, { ids: [], inputs: { x, labels } })).get(weight)!;
    const step = scale(sign(g), -0.01);
    const sigma = await numbers(await singularValues(step));
    expect(await size(noGrad(() => sub(step, changeOf(coreAt(tuned, "linear")))))).toBeCloseTo(Math.hypot(...sigma.slice(2)), 6);
    expect(sigma[0], "the step is not zero").toBeGreaterThan(0.01);
    await expect(adapt(model, loraXs, { r: 2 }, given)).rejects.toThrow(/need a loss, and calibration batches with `inputs` do not say theirs/);
    const dead = await adapt(
      model,
      loraXs,
      { r: 2, alpha: 2 },
      { ...given, calibration: [{ ids: [], inputs: { x: zeros([2, 3, 6, 6]), labels: part(labels, 0, 2) } }], task: classification },
    );
    expect(await numbers(coreAt(dead, "linear").R), "without inputs there is no gradient").toEqual([0, 0, 0, 0]);
  });

  it("wants an adapter with a core, and calibration", async () => {
    await expect(adapt(base, lora, { r: 2 }, { targets: ["q_proj"], calibration, initializer: { method: loraSb } })).rejects.toThrow(
      /lora-sb starts a core between frozen B and A, and lora takes no such start/,
    );
    await expect(adapt(base, loraXs, { r: 2 }, { targets: ["q_proj"], initializer: { method: loraSb } })).rejects.toThrow(
      /needs weightGradient of .* no calibration/,
    );
  });
});
