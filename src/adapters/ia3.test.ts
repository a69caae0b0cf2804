import { beforeAll, describe, expect, it } from "vitest";
import { leaf, sample } from "../../test/support/gradients.ts";
import { liveOf, numbers, siteOf } from "../../test/support/site.ts";
import { tinyModel } from "../../test/support/tiny-model.ts";
import { forward, type Model } from "../models/index.ts";
import { parseOptions } from "../nn/options.ts";
import { add, noGrad, Rng, start, tensor } from "../tensor/index.ts";
import { adapt, attachedTo, ia3, merge, unmerge } from "./index.ts";

beforeAll(async () => {
  await start();
});

const o = parseOptions(ia3, {});
const [attention, feedforward] = ["model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj"];
const context = { rng: new Rng(3), dtype: "f64", sites: [] } as const;

/** IA³'s output and the base's, of one input. */
async function outputs(path: string, bias: boolean) {
  const site = siteOf(3, 4, { path, bias });
  const l = leaf(path === feedforward ? [1, 4] : [3, 1], 5);
  const x = tensor(sample([1, 4], 9), [1, 4], "f64");
  const result = noGrad(() => {
    const y = ia3.weight!({ l }, site, o, liveOf(false), {}).apply(x);
    const extra = ia3.bias!({ l }, site, o);
    const withBase = site.bias ? add(y, site.bias) : y;
    return extra ? add(withBase, extra) : withBase;
  });
  return {
    found: await numbers(result),
    l: await numbers(l),
    x: await numbers(x),
    W: await numbers(site.weight.toDense()),
    b: site.bias ? await numbers(site.bias) : [0, 0, 0],
  };
}

describe("ia3", () => {
  it.each([false, true])("scales outputs, the bias (%s) too: l ⊙ (x·Wᵀ + b)", async (bias) => {
    const { found, l, x, W, b } = await outputs(attention, bias);
    found.forEach((value, i) => expect(value).toBeCloseTo(l[i]! * (x.reduce((sum, v, j) => sum + v * W[i * 4 + j]!, 0) + b[i]!), 12));
  });

  it.each([false, true])("scales the inputs of feed-forward modules, but not the bias (%s): (x ⊙ l)·Wᵀ + b", async (bias) => {
    const { found, l, x, W, b } = await outputs(feedforward, bias);
    found.forEach((value, i) => expect(value).toBeCloseTo(x.reduce((sum, v, j) => sum + v * l[j]! * W[i * 4 + j]!, 0) + b[i]!, 12));
  });

  it("has out or in numbers, all 1 at the start", async () => {
    for (const [path, shape] of [
      [attention, [3, 1]],
      [feedforward, [1, 4]],
    ] as const) {
      const { l } = await ia3.init(siteOf(3, 4, { path }), o, context, {});
      expect(l.shape).toEqual(shape);
      expect(new Set(await numbers(l))).toEqual(new Set([1]));
    }
  });

  it("takes the modules it is told as feed-forward ones, in place of those it knows", async () => {
    const own = parseOptions(ia3, { feedforward_modules: ["k_proj"] });
    expect((await ia3.init(siteOf(3, 4, { path: attention }), own, context, {})).l.shape).toEqual([1, 4]);
    expect((await ia3.init(siteOf(3, 4, { path: feedforward }), own, context, {})).l.shape).toEqual([3, 1]);
    expect(
      (await ia3.init(siteOf(3, 4, { path: "model.block_proj" }), parseOptions(ia3, { feedforward_modules: ["proj"] }), context, {})).l.shape,
      "whole names only",
    ).toEqual([3, 1]);
  });

  it("sits on k_proj, v_proj and down_proj of a LLaMA when not told where, scales at 1 leave the logits as they are, to the bit", async () => {
    const base = tinyModel();
    const tuned = await adapt(base, ia3);
    expect([...attachedTo(tuned, "default")!.entries.keys()]).toEqual(
      [0, 1].flatMap((i) => [`model.layers.${i}.self_attn.k_proj`, `model.layers.${i}.self_attn.v_proj`, `model.layers.${i}.mlp.down_proj`]),
    );
    const logits = (model: Model) => numbers(noGrad(() => forward(model, tensor([1, 2, 3], [1, 3], "i32"))));
    expect(await logits(tuned)).toEqual(await logits(base));
  });

  it("is unmerged without dividing, so that a scale of 0 is undone too", async () => {
    const base = tinyModel();
    const tuned = await adapt(base, ia3);
    for (const { l } of attachedTo(tuned, "default")!.entries.values() as Iterable<{ l: ReturnType<typeof leaf> }>)
      l.assign(tensor(new Float32Array(l.size), l.shape));
    const folded = merge(tuned);
    expect(new Set(await numbers(folded.layers.get(attention)!.weight)), "merged").toEqual(new Set([0]));
    expect(await numbers(unmerge(folded, tuned).layers.get(attention)!.weight)).toEqual(await numbers(base.layers.get(attention)!.weight));
  });
});
