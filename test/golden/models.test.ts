import { readFile } from "node:fs/promises";
import { beforeAll, describe, expect, it } from "vitest";
import { openSafetensorsFile } from "../../src/formats/safetensors-folder.ts";
import { loadTokenizer } from "../../src/formats/tokenizer.ts";
import { forward, loadModel } from "../../src/models/index.ts";
import { applyEmbedding, applyLinear } from "../../src/models/model.ts";
import * as t from "../../src/tensor/index.ts";

beforeAll(() => t.start());

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
    const logits = await t.noGrad(() => forward(model, t.tensor(ids, [1, ids.length], "i32"))).data();
    expect(difference(logits.slice(-last_logits.length) as Float32Array, last_logits)).toBeLessThan(1e-4);
  });
});

describe("gpt-nano-sort", () => {
  // golden_activations.safetensors: every intermediate of the original JavaScript program on a batch of three (data/NOTICE.md)
  it("gives all 25 golden activations within 1e-4", async () => {
    const file = await openSafetensorsFile("data/lm/gpt-nano-sort/golden_activations.safetensors");
    const ids = t.tensor(new Int32Array((await file.read("idx")).slice().buffer), [3, 11], "i32");
    const model = await loadModel("data/lm/gpt-nano-sort");
    const at = "transformer.h.0";
    const seen = new Map<string, t.Tensor>([["idx", ids]]);
    const inputs: Record<string, string> = {
      [`${at}.attn.c_attn`]: "ln1",
      [`${at}.attn.c_proj`]: "y",
      [`${at}.mlp.c_fc`]: "ln2",
      [`${at}.mlp.c_proj`]: "gelu",
      lm_head: "ln_f",
    };
    t.noGrad(() => {
      const observer = {
        hidden: (depth: number, x: t.Tensor) => void seen.set(["x", "block0", "block1", "block2"][depth]!, x),
        input: ({ path }: { path: string }, x: t.Tensor) => void (inputs[path] && seen.set(inputs[path], t.keep(x))),
      };
      seen.set("lm_head", forward(model, ids, { observer }));
      seen.set("probs", t.softmax(seen.get("lm_head")!));
      seen.set("tok_emb", applyEmbedding(model, "transformer.wte", ids, {}));
      seen.set(
        "pos_emb",
        applyEmbedding(
          model,
          "transformer.wpe",
          t.tensor(
            Int32Array.from({ length: 11 }, (_, i) => i),
            [1, 11],
            "i32",
          ),
          {},
        ),
      );
      // what the fused attention does not show, by its parts
      const qkv = applyLinear(model, `${at}.attn.c_attn`, seen.get("ln1")!, {});
      const heads = t.permute(t.reshape(qkv, [3, 11, 3, 3, 16]), [2, 0, 3, 1, 4]);
      const [q, k, v] = [0, 1, 2].map((i) => t.reshape(t.slice(heads, 0, i, i + 1), [3, 3, 11, 16])) as [t.Tensor, t.Tensor, t.Tensor];
      const mask = t.tensor(
        Float32Array.from({ length: 121 }, (_, i) => (i % 11 > Math.floor(i / 11) ? 0 : 1)),
        [11, 11],
      );
      const att = t.add(t.mul(t.scale(t.matmul(q, t.transpose(k)), 1 / 4), mask), t.affine(mask, 1e9, -1e9));
      const yProj = applyLinear(model, `${at}.attn.c_proj`, seen.get("y")!, {});
      const mlp = applyLinear(model, `${at}.mlp.c_proj`, seen.get("gelu")!, {});
      const attnResid = t.add(seen.get("x")!, yProj);
      for (const [name, x] of Object.entries({
        qkv,
        q,
        k,
        v,
        att,
        attSm: t.softmax(att),
        yProj,
        attnResid,
        fc: applyLinear(model, `${at}.mlp.c_fc`, seen.get("ln2")!, {}),
        mlp,
        mlpResid: t.add(attnResid, mlp),
      }))
        seen.set(name, x);
    });
    expect([...seen.keys()].sort()).toEqual([...file.entries.keys()].sort());
    for (const [name, x] of seen) {
      const { shape, dtype } = file.entries.get(name)!;
      const bytes = (await file.read(name)).slice().buffer;
      expect(x.shape, name).toEqual(shape);
      expect(difference((await x.data()) as Float32Array, dtype === "I32" ? new Int32Array(bytes) : new Float32Array(bytes)), name).toBeLessThan(1e-4);
    }
    await file.close();
  });
});
