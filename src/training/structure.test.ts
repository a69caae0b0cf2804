import { beforeAll, describe, expect, it } from "vitest";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { adapt, lora } from "../adapters/index.ts";
import type { Params, Regime, Training } from "../nn/contracts.ts";
import { adamw } from "../optimizers/index.ts";
import { start, type Parameter, type Tensor } from "../tensor/index.ts";
import { train, type TrainOptions } from "./index.ts";

beforeAll(() => start());

const settings: TrainOptions = { batches: tinyBatches(3), steps: 6, learningRate: 0.05 };
const values = async (x: Tensor): Promise<number[]> => [...((await x.data()) as Float32Array)];

describe("shapes and masks", () => {
  const bound = async (act: (t: Training<Params>) => void | Promise<void>): Promise<void> => {
    const tuned = await adapt(tinyModel(), lora, { r: 3 }, { targets: ["q_proj"] });
    const set = tuned.adapters.get("default")!;
    const regime: Regime = { afterStep: act };
    const model = { ...tuned, adapters: new Map([["default", { ...set, regime }]]) };
    await train(model, { ...settings, optimizer: { method: adamw, options: { weightDecay: 0.1 } } });
  };

  it("moments are gathered, zeroed, kept or dropped with the weights", async () => {
    await bound(async (t) => {
      const { params, resize } = t.views[0]!;
      const A = params["A"] as Parameter;
      const m = async () => values(t.moments(A)[0]!["m"] as Tensor);
      const [weights, moments, gradient] = [await values(A), await m(), await values(t.gradient(A)!)];
      const row = (x: number[], i: number) => x.slice(8 * i, 8 * i + 8);
      if (t.step === 0) {
        resize("A", 0, Int32Array.of(2, -1, 0), "gather", 7);
        expect(await values(A)).toEqual([...row(weights, 2), ...new Array<number>(8).fill(7), ...row(weights, 0)]);
        expect(await m()).toEqual([...row(moments, 2), ...new Array<number>(8).fill(0), ...row(moments, 0)]);
        expect(await values(t.gradient(A)!)).toEqual([...row(gradient, 2), ...new Array<number>(8).fill(0), ...row(gradient, 0)]);
        expect(t.moments(A)[0]!["t"]).toBe(1);
      } else if (t.step === 1) {
        resize("A", -1, Int32Array.of(7, 6, 5, 4, 3, 2, 1, 0), "zero");
        expect(await values(A)).toEqual([0, 1, 2].flatMap((i) => row(weights, i).reverse()));
        expect(new Set(await m())).toEqual(new Set([0]));
        expect(t.moments(A)[0]!["t"]).toBe(2);
        resize("A", -1, Int32Array.of(7, 6, 5, 4, 3, 2, 1, 0), "keep");
      } else if (t.step === 2) {
        expect(() => resize("A", 0, Int32Array.of(0), "keep")).toThrow("can only be kept where its extent stays 3");
        expect(() => resize("A", 0, Int32Array.of(3), "gather")).toThrow("index 3 does not lie in −1…2");
        expect(() => resize("C", 0, Int32Array.of(0), "gather")).toThrow("has no parameter C");
        for (const [name, axis] of [
          ["A", 0],
          ["B", 1],
        ] as const)
          resize(name, axis, new Int32Array(0), "reset");
        expect(A.shape).toEqual([0, 8]);
      } else if (t.step === 4)
        for (const [name, axis] of [
          ["A", 0],
          ["B", 1],
        ] as const)
          resize(name, axis, Int32Array.of(-1, -1), "gather", 0.1);
      else if (t.step === 5) expect([A.shape, t.moments(A)[0]!["t"], Math.abs((await values(A))[0]! - 0.1) > 1e-4]).toEqual([[2, 8], 3, true]);
    });
  });

  it("masked rows are 0 in weights, gradients and moments until the mask is lifted", async () => {
    await bound(async (t) => {
      const { params, mask, resize } = t.views[0]!;
      const A = params["A"] as Parameter;
      if (t.step === 0) mask("A", Uint8Array.of(0, 1, 0));
      if (t.step === 2) resize("A", 0, Int32Array.of(1, 0, 2), "gather");
      const held = t.step < 2 ? 1 : 0;
      if (t.step === 4) mask("A", null);
      const rowIs0 = async (x: Tensor, i: number) => (await values(x)).slice(8 * i, 8 * i + 8).every((value) => value === 0);
      for (const x of [A, t.gradient(A)!, t.moments(A)[0]!["m"] as Tensor, t.moments(A)[0]!["v"] as Tensor]) {
        if (t.step < 5) expect(await rowIs0(x, held)).toBe(true);
        // B starts at 0, so A has no gradient in the first step
        if (t.step > 0) expect(await rowIs0(x, 2)).toBe(false);
      }
      if (t.step === 5) expect(await rowIs0(t.gradient(A)!, 0)).toBe(false);
    });
  });
});
