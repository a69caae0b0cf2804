import { beforeAll, describe, expect, it } from "vitest";
import { loadTokenizer, type Tokenizer } from "../formats/tokenizer.ts";
import { engine, noGrad, Rng, start, tensor } from "../tensor/index.ts";
import { forward, fullCache, generate, loadModel, randomModel, type Model } from "./index.ts";

beforeAll(() => start());

/** Three layers, 6 heads on 2 key-value heads of 10 features, which is not width/heads; context 24. */
function small(seed = 1): Model {
  const rng = new Rng(seed);
  return randomModel(
    {
      model_type: "llama",
      vocab_size: 31,
      hidden_size: 24,
      intermediate_size: 40,
      num_hidden_layers: 3,
      num_attention_heads: 6,
      num_key_value_heads: 2,
      head_dim: 10,
      max_position_embeddings: 24,
    },
    (name, shape) => rng.fork(name).normal(shape, 0.4),
  );
}

const prompts = [
  [3, 1, 4, 1, 5],
  [9, 2, 6, 5, 3],
  [5, 8, 9, 7, 9],
  [3, 2],
];
const idsOf = (made: { ids: number[] }[]): number[][] => made.map(({ ids }) => ids);

/** One letter a token. */
const letters: Tokenizer = {
  encode: (text) => Array.from(text, (c) => c.charCodeAt(0) - 97),
  decode: (ids) => String.fromCharCode(...ids.map((id) => id + 97)),
  token: (id) => String.fromCharCode(id + 97),
  vocabularySize: 31,
  bos: undefined,
  eos: undefined,
};

describe("the key-value cache", () => {
  it("gives the logits of a pass without it, however the tokens are cut", async () => {
    const model = small();
    const ids = [
      [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8],
      [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5],
    ];
    const logits = async (from: number, to: number, caches?: ReturnType<typeof fullCache>[]) =>
      (await noGrad(() =>
        forward(
          model,
          tensor(
            ids.flatMap((row) => row.slice(from, to)),
            [2, to - from],
            "i32",
          ),
          caches ? { caches } : {},
        ),
      ).data()) as Float32Array;
    const whole = await logits(0, 12);
    const caches = [0, 1, 2].map(() => fullCache());
    let worst = 0;
    for (const [from, to] of [
      [0, 5],
      [5, 6],
      [6, 10],
      [10, 11],
      [11, 12],
    ] as const) {
      const part = await logits(from, to, caches);
      const width = (to - from) * 31;
      part.forEach((x, i) => (worst = Math.max(worst, Math.abs(x - whole[Math.floor(i / width) * 12 * 31 + from * 31 + (i % width)]!))));
    }
    expect(worst).toBeLessThan(1e-4);
    expect(caches[0]!.length).toBe(12);
    expect(caches[0]!.bytes()).toBe(2 * 2 * 12 * 2 * 10 * 4);
  });

  it("keeps the rows that are asked for, in their order", async () => {
    const cache = fullCache();
    const value = tensor(
      Float32Array.from({ length: 12 }, (_, i) => i),
      [3, 2, 1, 2],
    );
    noGrad(() => cache.append(value, value, (k) => k));
    cache.reorder([2, 0]);
    const next = tensor([20, 21, 30, 31], [2, 1, 1, 2]);
    const { k } = noGrad(() => cache.append(next, next, (x) => x));
    expect([...(await k.data())]).toEqual([8, 9, 10, 11, 20, 21, 0, 1, 2, 3, 30, 31]);
    expect(() => cache.append(value, value, (x) => x)).toThrow("holds 2 rows, the pass has 3");
  });
});

describe("generate", () => {
  it("gives the same tokens with and without cache, in a batch and one by one", async () => {
    const model = small();
    const batch = await generate(model, prompts, { maxNewTokens: 12 });
    expect(batch.map(({ ids }) => ids.length)).toEqual([12, 12, 12, 12]);
    expect(idsOf(await generate(model, prompts, { maxNewTokens: 12, useCache: false }))).toEqual(idsOf(batch));
    for (const [i, prompt] of prompts.entries()) expect((await generate(model, prompt, { maxNewTokens: 12 })).ids).toEqual(batch[i]!.ids);
  });

  it("goes on with the others when a row of a batch has ended", async () => {
    const model = small();
    const free = await generate(model, prompts, { maxNewTokens: 12 });
    const eos = free[1]!.ids[2]!;
    const cut = await generate(model, prompts, { maxNewTokens: 12, eos });
    for (const [i, { ids, reason }] of cut.entries()) {
      const at = free[i]!.ids.indexOf(eos);
      expect(ids).toEqual(at < 0 ? free[i]!.ids : free[i]!.ids.slice(0, at + 1));
      expect(reason).toBe(at < 0 ? "length" : "eos");
    }
    expect(cut[1]!.ids.length).toBeLessThanOrEqual(3);
  });

  it("draws the same tokens from the same seed, and others from another", async () => {
    const model = small();
    const drawn = async (seed: number, more: object = {}) => idsOf(await generate(model, prompts, { maxNewTokens: 12, temperature: 1.5, seed, ...more }));
    const first = await drawn(7);
    expect(await drawn(7)).toEqual(first);
    expect(await drawn(7, { useCache: false })).toEqual(first);
    expect(await drawn(8)).not.toEqual(first);
    const twins = await generate(model, [prompts[0]!, prompts[0]!], { maxNewTokens: 12, temperature: 1.5, seed: 7 });
    expect(twins[0]!.ids).toEqual(first[0]);
    expect(twins[1]!.ids).not.toEqual(first[0]);
  });

  it("counts the prompt and every new token as seen", async () => {
    const { ids } = await generate(small(), prompts[0]!, { maxNewTokens: 12, repetitionPenalty: 1e6 });
    expect(new Set([...prompts[0]!, ...ids]).size).toBe(4 + 12); // the prompt holds 1 twice; nothing occurs again
  });

  it("fills the context and stops, the last token not being read any more", async () => {
    const made = await generate(small(), prompts[0]!, { maxNewTokens: 1000 });
    expect([made.ids.length, made.reason]).toEqual([24 - 5 + 1, "length"]);
    expect(await generate(small(), prompts[0]!, { maxNewTokens: 0 })).toEqual({ ids: [], reason: "length" });
  });

  it("stops at a stop string that spans tokens, and cuts the text before it", async () => {
    const model = small();
    const whole = await generate(model, prompts[0]!, { maxNewTokens: 12, tokenizer: letters });
    const stop = whole.text!.slice(4, 7);
    const first = whole.text!.indexOf(stop);
    const shown: string[] = [];
    const made = await generate(model, prompts[0]!, {
      maxNewTokens: 12,
      tokenizer: letters,
      stopStrings: ["never", stop],
      onToken: ({ text }) => shown.push(text!),
    });
    expect(made).toEqual({ ids: whole.ids.slice(0, first + 3), text: whole.text!.slice(0, first), reason: "stop" });
    expect(shown.join("")).toBe(made.text); // nothing of the stop string was shown
  });

  it("shows what looked like a stop string once it is not one", async () => {
    const model = small();
    const { text } = await generate(model, prompts[0]!, { maxNewTokens: 12, tokenizer: letters });
    const shown: string[] = [];
    const made = await generate(model, prompts[0]!, {
      maxNewTokens: 12,
      tokenizer: letters,
      stopStrings: [`${text!.slice(2, 5)}!`, `${text!.slice(-2)}!`],
      onToken: (event) => shown.push(event.text!),
    });
    expect(made.text).toBe(text);
    expect(shown.join("")).toBe(text);
    expect(shown.slice(2, 5)).toEqual(["", "", ""]);
  });

  it("waits for whole characters, and gives out broken ones as the decoder spells them", async () => {
    const bytes = [0x61, 0x62, 0xc3, 0xa9, 0xf0, 0x9f, 0x98, 0x80]; // a, b, é and 😀
    const byBytes: Tokenizer = { ...letters, decode: (ids) => new TextDecoder().decode(Uint8Array.from(ids, (id) => bytes[id % 8]!)) };
    const model = small();
    for (let seed = 0; seed < 20; seed++) {
      const shown: string[] = [];
      const { ids, text } = await generate(model, [0, 1], { temperature: 3, seed, tokenizer: byBytes, onToken: (event) => shown.push(event.text!) });
      expect(ids.length).toBe(23);
      expect(text).toBe(byBytes.decode(ids));
      expect(shown.join("")).toBe(text);
      expect(shown.slice(0, -1).filter((part) => part.endsWith("\uFFFD"))).toEqual([]);
    }
  });

  it("ends with the signal and returns what there is", async () => {
    const controller = new AbortController();
    const made = await generate(small(), prompts[0]!, { maxNewTokens: 12, signal: controller.signal, onToken: ({ row }) => row === 0 && controller.abort() });
    expect([made.ids.length, made.reason]).toEqual([1, "abort"]);
  });

  it("returns all the memory it took", async () => {
    const model = small();
    await generate(model, prompts, { maxNewTokens: 12 });
    const { usedBytes, pooledBytes } = engine().pool;
    for (let i = 0; i < 3; i++) await generate(model, prompts, { maxNewTokens: 12, eos: 3 });
    expect(engine().pool.usedBytes).toBeLessThanOrEqual(usedBytes);
    expect(engine().pool.pooledBytes).toBe(pooledBytes);
  });

  it("says what is wrong with a prompt", async () => {
    const model = small();
    await expect(generate(model, [])).rejects.toThrow("the prompt has no tokens");
    await expect(generate(model, [[1], [31]])).rejects.toThrow("prompt 1 holds the id 31, which does not lie in 0…30");
    await expect(
      generate(
        model,
        Array.from({ length: 25 }, () => 1),
      ),
    ).rejects.toThrow("25 tokens, more than the model's context of 24");
    await expect(generate(model, [1], { stopStrings: ["x"] })).rejects.toThrow("stopStrings need a tokenizer");
  });
});

describe("generate on bundled models", () => {
  it("sorts with gpt-nano-sort, with and without cache", async () => {
    const model = await loadModel("data/lm/gpt-nano-sort");
    const inputs = [
      [0, 0, 2, 1, 0, 1],
      [2, 2, 2, 1, 1, 0],
      [1, 0, 1, 0, 1, 0],
      [2, 1, 0, 2, 1, 0],
      [0, 0, 0, 0, 0, 0],
      [2, 2, 2, 2, 2, 1],
      [1, 2, 0, 0, 2, 2],
    ];
    for (const useCache of [true, false])
      expect(idsOf(await generate(model, inputs, { maxNewTokens: 6, useCache }))).toEqual(inputs.map((input) => input.toSorted((a, b) => a - b)));
  });

  it("gives a text that continues the prompt's, space and bytes included", async () => {
    const [model, tokenizer] = [await loadModel("data/lm/stories260K"), await loadTokenizer("data/lm/stories260K")];
    const prompt = tokenizer.encode("Once upon a time");
    const shown: string[] = [];
    const { ids, text } = await generate(model, prompt, { maxNewTokens: 30, tokenizer, onToken: (event) => shown.push(event.text!) });
    expect(`Once upon a time${text}`).toBe(tokenizer.decode([...prompt, ...ids], { skipSpecial: true }));
    expect(text).toMatch(/^, there was/);
    expect(shown.join("")).toBe(text);
    const stopped = await generate(model, prompt, { maxNewTokens: 30, tokenizer, stopStrings: ["was a l"] });
    expect([stopped.text, stopped.reason]).toEqual([text!.slice(0, text!.indexOf("was a l")), "stop"]);
  });
});
