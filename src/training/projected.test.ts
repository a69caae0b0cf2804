import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { tinyBatches, tinyModel } from "../../test/support/tiny-model.ts";
import { adapt, adapterParameters, dora } from "../adapters/index.ts";
import { parameters, unfreeze, type Model } from "../models/index.ts";
import { badam, fira, frugal, galore, gradNormLorp, sgd } from "../optimizers/index.ts";
import { start, toBytes } from "../tensor/index.ts";
import { train, type TrainOptions } from "./index.ts";

let dir: string;
beforeAll(() => start());
beforeEach(async () => void (dir = await mkdtemp(join(tmpdir(), "strut-train-"))));
afterEach(() => rm(dir, { recursive: true, force: true }));

const settings: TrainOptions = { batches: tinyBatches(3), steps: 7, learningRate: 0.02, schedule: "cosine", seed: 3 };
const weights = (model: Model): string[] =>
  [...parameters(model), ...[...model.adapters.values()].flatMap((set) => [...adapterParameters(set)])].map(
    ([name, w]) => `${name} ${Buffer.from(toBytes(w)).toString("base64")}`,
  );
const projected = { rank: 2, updateProjGap: 3 };
const full = async (): Promise<Model> => unfreeze(tinyModel());
const withDora = () => adapt(tinyModel(), dora, { r: 4 }, { targets: ["q_proj", "down_proj"] });

/** What the defaults of the catalog, which the laws go through, leave out. */
const singly: Record<string, [NonNullable<TrainOptions["optimizer"]>, (() => Promise<Model>)?]> = {
  "galore around a core without state": [{ method: galore, options: projected, inner: { method: sgd } }],
  "fira by rmsprop": [{ method: fira, options: { ...projected, variant: "rmsprop" } }],
  "frugal on columns": [{ method: frugal, options: { mode: "coord", updateGap: 3 } }],
  "frugal on entries, averages kept": [{ method: frugal, options: { mode: "coord", coordChoice: "randk", updateGap: 3, resetStatistics: false } }],
  "frugal on directions": [{ method: frugal, options: { mode: "svd", updateGap: 3 }, inner: { method: sgd, options: { momentum: 0.9 } } }],
  "frugal without state": [{ method: frugal, options: { mode: "coord", density: 0 } }],
  "gradnormlorp on DoRA": [{ method: gradNormLorp, options: projected }, withDora],
  "gradnormlorp on full weights": [{ method: gradNormLorp, options: { ...projected, mode: "wn-optimizer" } }],
};
const together: typeof singly = {
  "frugal on blocks around a core without state": [{ method: frugal, options: { updateGap: 3, inactiveUpdateRule: "no" }, inner: { method: sgd } }],
  "badam in order": [{ method: badam, options: { updateGap: 3, blockOrder: "descending" } }],
};

describe.each(Object.entries({ ...singly, ...together }))("%s", (_title, [optimizer, make = full]) => {
  it("resumes bit for bit before, at and after a change of subspace", async () => {
    const whole = await train(await make(), { ...settings, optimizer });
    const expected = weights(whole.model);
    expect(expected).not.toEqual(weights(await make()));
    for (const step of [2, 3, 4]) {
      const stop = new AbortController();
      const options = { ...settings, optimizer, checkpoint: { dir: join(dir, String(step)) } };
      await train(await make(), { ...options, signal: stop.signal, onEvent: (event) => event.event === "step" && event.step === step && stop.abort() });
      expect(weights((await train(await make(), { ...options, resume: true })).model), `resumed after step ${step}`).toEqual(expected);
    }
  });
});

describe("updateInBackward", () => {
  it.each(Object.entries(singly))("gives bit-equal weights: %s", async (_title, [optimizer, make = full]) => {
    const run = async (updateInBackward: boolean) => weights((await train(await make(), { ...settings, optimizer, updateInBackward })).model);
    expect(await run(true)).toEqual(await run(false));
  });

  it.each(Object.entries(together))("is refused where matrices take turns: %s", async (_title, [optimizer]) => {
    await expect(train(await full(), { ...settings, optimizer, updateInBackward: true })).rejects.toThrow(
      "a link of the optimiser sees several tensors together",
    );
  });
});
