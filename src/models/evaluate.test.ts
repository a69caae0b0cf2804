import { beforeAll, describe, expect, it } from "vitest";
import type { Tokenizer } from "../formats/tokenizer.ts";
import { engine, noGrad, Rng, start, tensor } from "../tensor/index.ts";
import { evaluate, evaluateText, forward, randomModel, type EvaluationProgress, type Model } from "./index.ts";

beforeAll(() => start());

const model = (): Model => {
  const rng = new Rng(3);
  return randomModel({ model_type: "gpt2", vocab_size: 13, n_layer: 2, n_head: 2, n_embd: 8, n_positions: 16 }, (name, shape) =>
    rng.fork(name).normal(shape, 0.3),
  );
};
const text = (length: number): number[] => Array.from({ length }, (_, i) => (i * i + 3 * i) % 13);

/** −log p of every token of one window but the first, in f64 from the logits. */
async function lossesOf(of: Model, ids: number[]): Promise<number[]> {
  const logits = (await noGrad(() => forward(of, tensor(ids, [1, ids.length], "i32"))).data()) as Float32Array;
  return ids.slice(1).map((id, i) => {
    const row = logits.slice(i * 13, (i + 1) * 13);
    return Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0)) - row[id]!;
  });
}

describe("evaluate", () => {
  it.each([
    [40, 6],
    [41, 8],
    [16, 16],
    [7, 16],
    [37, 6],
  ])("averages over the tokens of %i in windows of %i", async (length, window) => {
    const [of, ids] = [model(), text(length)];
    const losses: number[] = [];
    for (let start = 0; start < length; start += window) losses.push(...(await lossesOf(of, ids.slice(start, start + window))));
    const { loss, perplexity, tokens } = await evaluate(of, ids, { window });
    expect(tokens).toBe(losses.length);
    expect(loss).toBeCloseTo(losses.reduce((a, b) => a + b, 0) / losses.length, 6);
    expect(perplexity).toBe(Math.exp(loss));
  });

  it("gives the same in one pass and in many, tells of progress and returns its memory", async () => {
    const [of, ids] = [model(), text(16 * 700 + 5)];
    const seen: EvaluationProgress[] = [];
    const first = await evaluate(of, ids, { onProgress: (progress) => void seen.push(progress) });
    expect(seen.length).toBeGreaterThan(1);
    expect(seen.at(-1)).toEqual({ tokens: 700 * 15 + 4, total: 700 * 15 + 4, loss: first.loss });
    const { pooledBytes } = engine().pool;
    expect((await evaluate(of, ids)).loss).toBe(first.loss);
    expect(engine().pool.pooledBytes).toBe(pooledBytes);
    let [sum, count] = [0, 0];
    for (let start = 0; start < 16 * 20; start += 16) {
      const one = await evaluate(of, ids.slice(start, start + 16));
      [sum, count] = [sum + one.loss * one.tokens, count + one.tokens];
    }
    expect((await evaluate(of, ids.slice(0, 16 * 20))).loss).toBeCloseTo(sum / count, 6);
  });

  it("encodes a text whole and without special tokens", async () => {
    const tokenizer = {
      encode: (given: string, { special }: { special: boolean }) => (special ? [0] : []).concat(Array.from(given, Number)),
    } as unknown as Tokenizer;
    expect((await evaluateText(model(), tokenizer, "12345678", { window: 4 })).loss).toBe(
      (await evaluate(model(), [1, 2, 3, 4, 5, 6, 7, 8], { window: 4 })).loss,
    );
  });

  it("stops with the signal, and says what cannot be", async () => {
    const controller = new AbortController();
    await expect(evaluate(model(), text(16 * 1200), { signal: controller.signal, onProgress: () => controller.abort() })).rejects.toThrow("aborted");
    await expect(evaluate(model(), [1])).rejects.toThrow("at least 2 are needed");
    await expect(evaluate(model(), text(40), { window: 17 })).rejects.toThrow("does not fit into the model's context of 16");
    await expect(evaluate(model(), text(40), { window: 1 })).rejects.toThrow("window is 1");
  });
});
