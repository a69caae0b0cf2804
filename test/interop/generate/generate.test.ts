import { readFile } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { evaluate, generate, loadModel } from "../../../src/models/index.ts";
import { start } from "../../../src/tensor/index.ts";

beforeAll(() => start());

interface Golden {
  greedy: { prompt: number[]; new_tokens: number[] }[];
  eval: { ids: number[]; window: number; scored_tokens: number; loss_token_mean: number; perplexity: number; windows: { scored: number; nll_sum: number }[] };
}

// Tokens and losses of transformers 5.18.0; shared/interop/make/generate_eval.py made the files
describe.each(["stories260K", "babyllama-tok105"])("%s against transformers", (name) => {
  const model = () => loadModel(`data/lm/${name}`);
  const golden = async () => JSON.parse(await readFile(`test/interop/generate/${name}.json`, "utf8")) as Golden;

  it.each([true, false])("generates the same greedy tokens with useCache %s", async (useCache) => {
    const { greedy } = await golden();
    const prompts = greedy.map(({ prompt }) => prompt);
    const made = await generate(await model(), prompts, { maxNewTokens: 40, eos: null, useCache });
    expect(made.map(({ ids }) => ids)).toEqual(greedy.map(({ new_tokens }) => new_tokens));
    expect(made.map(({ reason }) => reason)).toEqual(["length", "length", "length"]);
  });

  it("evaluates to the same loss, over all and in the first and last window", async () => {
    const wanted = (await golden()).eval;
    const loaded = await model();
    const { loss, perplexity, tokens } = await evaluate(loaded, wanted.ids, { window: wanted.window });
    expect(tokens).toBe(wanted.scored_tokens);
    expect(Math.abs(loss - wanted.loss_token_mean)).toBeLessThan(1e-5);
    expect(Math.abs(perplexity - wanted.perplexity)).toBeLessThan(1e-4);
    for (const i of [0, wanted.windows.length - 1]) {
      const { scored, nll_sum } = wanted.windows[i]!;
      const one = await evaluate(loaded, wanted.ids.slice(i * wanted.window, (i + 1) * wanted.window));
      expect(one.tokens).toBe(scored);
      expect(Math.abs(one.loss - nll_sum / scored)).toBeLessThan(1e-5);
    }
  });
});
