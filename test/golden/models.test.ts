import { readFile } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { openSafetensorsFile } from "../../src/formats/safetensors-folder.ts";
import { loadTokenizer } from "../../src/formats/tokenizer.ts";
import { forward, loadModel } from "../../src/models/index.ts";
import { noGrad, start, tensor } from "../../src/tensor/index.ts";

beforeAll(() => start());

/** Largest absolute difference. */
const difference = (a: ArrayLike<number>, b: ArrayLike<number>): number => Array.from(a).reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!)), 0);

// golden.json: logits of the original C programs and transformers, rounded to 5 decimals (data/NOTICE.md)
describe.each(["stories260K", "babyllama-tok105"])("%s", (name) => {
  const folder = `data/lm/${name}`;
  const golden = async () =>
    JSON.parse(await readFile(`${folder}/golden.json`, "utf8")) as { prompt: string; ids: number[]; last_logits: number[]; greedy_ids: number[] };

  it("encodes the prompt to the golden ids", async () => {
    const { prompt, ids } = await golden();
    expect((await loadTokenizer(folder)).encode(prompt)).toEqual(ids);
  });

  it("gives the golden logits within 1e-4", async () => {
    const { ids, last_logits } = await golden();
    const model = await loadModel(folder);
    const logits = await noGrad(() => forward(model, tensor(ids, [1, ids.length], "i32"))).data();
    expect(difference(logits.slice(-last_logits.length) as Float32Array, last_logits)).toBeLessThan(1e-4);
  });
});

describe("gpt-nano-sort", () => {
  it("gives the golden hidden states and logits within 1e-4", async () => {
    const file = await openSafetensorsFile("data/lm/gpt-nano-sort/golden_activations.safetensors");
    const values = async (name: string) => new Float32Array((await file.read(name)).slice().buffer);
    const ids = new Int32Array((await file.read("idx")).slice().buffer);
    const model = await loadModel("data/lm/gpt-nano-sort");
    const seen: Promise<ArrayLike<number>>[] = [];
    const logits = noGrad(() =>
      forward(model, tensor(ids, [3, 11], "i32"), { observer: { hidden: (_, x) => void seen.push(x.data() as Promise<Float32Array>) } }),
    );
    const states = await Promise.all(seen);
    for (const [i, name] of ["x", "block0", "block1", "block2"].entries()) expect(difference(states[i]!, await values(name)), name).toBeLessThan(1e-4);
    expect(difference((await logits.data()) as Float32Array, await values("lm_head"))).toBeLessThan(1e-4);
    await file.close();
  });
});
