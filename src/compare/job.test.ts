import { beforeAll, expect, it } from "vitest";
import { recipeSchema } from "../recipe/schema.ts";
import { start } from "../tensor/index.ts";
import { runJob } from "./job.ts";

beforeAll(() => start());

it("counts the parameters of a method that grows as they are in the end", async () => {
  const recipe = recipeSchema.parse({
    model: "data/lm/stories260K",
    data: { text: "data/text/tinyshakespeare.txt", heldOut: 0.001, window: 16 },
    targets: ["q_proj"],
    training: { steps: 4, batchSize: 1 },
  });
  const setup = { version: "", backend: "", recipe, fingerprint: "", budget: { of: "parameters", limit: 1e6 } } as const;
  const method = { id: "increlora", options: { r: 1, targetRank: 2, topH: 5, increInterval: 1 }, rate: 1e-3 };
  const { parameters } = await runJob(setup, { file: "", method, seed: 0 });
  // of five 64×64 matrices, each from one component (and the next in reserve) to two: A, B and E
  expect(parameters).toBe(5 * 2 * (64 + 64 + 1));
});
