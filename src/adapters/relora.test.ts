import { beforeAll, describe, expect, it } from "vitest";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { forward } from "../models/index.ts";
import type { Regime, State } from "../nn/contracts.ts";
import { noGrad, scope, start, tensor, type Parameter, type Tensor } from "../tensor/index.ts";
import { train, type TrainOptions } from "../training/index.ts";
import { adapt, adapterParameters, attachedTo, relora } from "./index.ts";

beforeAll(() => start());

const settings: TrainOptions = { batches: tinyBatches(3), steps: 9, learningRate: 0.05 };
const targets = ["q_proj", "up_proj"];
const made = (options: object) => adapt(tinyModel(), relora, { r: 2, alpha: 4, dropout: 0, every: 3, ...options }, { targets });
const numbers = async (x: Tensor): Promise<number[]> => [...((await x.data()) as Float32Array)];
const ids = (): Tensor => tensor([1, 2, 3, 4, 5, 6], [1, 6], "i32");
const zeros = (x: readonly number[]): number => x.filter((value) => value === 0).length / x.length;

/** What the run looked like after each step: A, B, W and the logits of one text. */
async function watched(options: object, more: Partial<TrainOptions> = {}) {
  const model = await made(options);
  const own = adapterParameters(attachedTo(model, "default")!);
  const find = (part: string): Parameter => own.get([...own.keys()].find((name) => name.includes("layers.0.self_attn.q_proj") && name.endsWith(part))!)!;
  const seen: { A: number[]; B: number[]; W: number[]; logits: number[]; moments: number }[] = [];
  const look: Regime = {
    async afterStep(t) {
      const states = t.moments(find("/A")) as State[];
      const m = (states[0]!["m"] ?? tensor([1])) as Tensor;
      seen.push({
        A: await numbers(find("/A")),
        B: await numbers(find("/B")),
        W: await numbers(find("/weight")),
        logits: await numbers(noGrad(() => scope(() => forward(model, ids())))),
        moments: zeros(await numbers(m)),
      });
    },
  };
  await train(model, { ...settings, regimes: [look], ...more });
  return seen;
}

describe("relora", () => {
  it("merges every so many steps: W moves then and only then, A is drawn anew and B is 0", async () => {
    const seen = await watched({});
    const moved = seen.map(({ W }, i) => i > 0 && String(W) !== String(seen[i - 1]!.W));
    expect(moved).toEqual([false, false, true, false, false, true, false, false, false]);
    for (const step of [2, 5]) {
      expect(seen[step]!.B.every((x) => x === 0)).toBe(true);
      expect(Math.max(...seen[step]!.A.map((x, i) => Math.abs(x - seen[step - 1]!.A[i]!)))).toBeGreaterThan(0.1);
      expect(seen[step]!.moments).toBeGreaterThan(0.95);
    }
    expect(seen[8]!.B.some((x) => x !== 0)).toBe(true);
  });

  it("the merge leaves the function as it was", async () => {
    const merged = await watched({}, { steps: 4 });
    const unmerged = await watched({ every: 100 }, { steps: 4 });
    expect(merged[2]!.W).not.toEqual(unmerged[2]!.W);
    merged[2]!.logits.forEach((x, i) => expect(x).toBeCloseTo(unmerged[2]!.logits[i]!, 5));
  });

  it("trains the whole matrices first where there is a warm start, and merges count from its end", async () => {
    const seen = await watched({ warmStart: 2 });
    const moved = seen.map(({ W }, i) => i > 0 && String(W) !== String(seen[i - 1]!.W));
    expect(moved).toEqual([false, true, false, false, true, false, false, true, false]);
    expect(seen[1]!.B.every((x) => x === 0)).toBe(true);
  });

  it("forgets the smallest entries of the optimiser's state, or none", async () => {
    const [half, none] = [await watched({ reset: "magnitude", resetShare: 0.5 }), await watched({ reset: "none" })];
    expect(half[2]!.moments).toBe(0.5);
    expect(none[2]!.moments).toBe(0);
  });
});
