import { beforeAll, describe, expect, it } from "vitest";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { forward, parameters, unfreeze } from "../models/index.ts";
import { backward, noGrad, scope, start, tensor, type Tensor } from "../tensor/index.ts";
import { languageModelLoss } from "./loss.ts";

beforeAll(() => start());

const values = async (x: Tensor): Promise<number[]> => [...((await x.data()) as Float32Array)];

describe("the loss", () => {
  it("scores labels alone where they are not −100, and is the same through logits and without them", async () => {
    const model = unfreeze(tinyModel());
    const ids = [
      [1, 2, 3, 4],
      [5, 6, 7, 8],
    ];
    const labels = [
      [-100, -100, 3, 4],
      [5, 6, -100, 8],
    ];
    const loss = await languageModelLoss(model, { ids, labels }).item();
    const through = await languageModelLoss(model, { ids, labels }, { observer: {} }).item();
    expect(through).toBeCloseTo(loss, 6);
    const logits = await values(noGrad(() => forward(model, tensor(ids.flat(), [2, 4], "i32"))));
    const terms = [
      [0, 1, 3],
      [0, 2, 4],
      [1, 0, 6],
      [1, 2, 8],
    ].map(([row, t, label]) => {
      const at = logits.slice((row! * 4 + t!) * 16, (row! * 4 + t! + 1) * 16);
      return Math.log(at.reduce((total, x) => total + Math.exp(x), 0)) - at[label!]!;
    });
    expect(loss).toBeCloseTo(terms.reduce((x, y) => x + y) / 4, 5);
  });

  it("has the gradients of the ordinary way", async () => {
    const model = unfreeze(tinyModel());
    const [batch] = tinyBatches(1);
    const grads = async (run: object) =>
      scope(async () => {
        const gradients = backward(languageModelLoss(model, batch!, run));
        return (await Promise.all([...parameters(model).values()].map((w) => values(gradients.get(w)!)))).flat();
      });
    const [fused, plain] = [await grads({}), await grads({ observer: {} })];
    fused.forEach((x, i) => expect(x).toBeCloseTo(plain[i]!, 5));
  });
});
