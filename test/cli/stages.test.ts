import { readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { parseRecipe } from "../../src/recipe/read.ts";
import { json, names, strut, strutIn, temporary, type Ran } from "./strut.ts";

const folder = temporary();
const to = (name: string): string => join(folder, name);
const model = resolve("data/lm/stories260K");

beforeAll(async () => {
  const text = await readFile("data/text/tinyshakespeare.txt", "utf8");
  await writeFile(to("text.txt"), text.slice(0, 4000));
  await writeFile(to("other.txt"), text.slice(4000, 8000));
});

const recipe = (lines: string): string => `model: ${model}
data: { text: text.txt, window: 16, heldOut: 0.1 }
training: { steps: 6, batchSize: 2, learningRate: 1e-2 }
${lines}`;

const small = recipe(`method: loram
options: { r: 2 }
prune: { ratio: 0.5, calibrationBatches: 2, quantize: nf4, align: { steps: 4, text: other.txt, learningRate: 1e-3 } }
merge: true
`);

let count = 0;
async function trained(text: string, ...more: readonly string[]): Promise<Ran & { at: string }> {
  const [file, at] = [to(`recipe-${count}.yaml`), to(`out-${count++}`)];
  await writeFile(file, text);
  return { ...(await strut("train", "--recipe", file, "--out", at, ...more)), at };
}

const loss = async (...args: readonly string[]): Promise<number> =>
  json(await strut("eval", ...args, "--data", to("held-out.txt"), "--window", "16", "--json"))["loss"] as number;

describe("a recipe that prunes", () => {
  it("trains on the small base, and writes it, the adapter of the full one, and both merged", async () => {
    const { code, out, err, at } = await trained(small);
    expect([code, err]).toEqual([0, ""]);
    expect(out).toMatch(/^trained on +192,\d{3} of the model's 260,032 parameters$/m);
    expect(await names(at)).toEqual(["adapter", "before", "checkpoints", "events.jsonl", "merged", "pruned"]);
    expect(await names(join(at, "adapter"))).toEqual(["adapter_config.json", "adapter_model.safetensors", "kept.safetensors", "strut.json"]);
    expect(await names(join(at, "pruned"))).toEqual(expect.arrayContaining(["config.json", "kept.safetensors", "model.safetensors", "tokenizer.json"]));
    expect((await strut("info", join(at, "pruned"))).out).toMatch(/^parameters +192,\d{3}/m);
    // the loss that is told is that of the full model with the adapter
    await writeFile(to("held-out.txt"), (await readFile(to("text.txt"), "utf8")).slice(3600));
    const told = Number(/held-out loss +(\d+\.\d+), perplexity .* at step 6/.exec(out)![1]);
    expect(await loss(model, "--adapter", join(at, "adapter"))).toBeCloseTo(told, 4);
    expect(await loss(join(at, "merged"))).toBeCloseTo(told, 3);
    // a published small base is taken as it is
    const again = await trained(recipe(`method: lora\noptions: { r: 2 }\ntargets: all-linear\nprune: { from: ${join(at, "pruned")} }\n`));
    expect([again.code, again.err]).toEqual([0, ""]);
    expect(await names(again.at)).toEqual(["adapter", "checkpoints", "events.jsonl", "pruned"]);
    const weights = (of: string): Promise<Buffer> => readFile(join(of, "pruned", "model.safetensors"));
    expect((await weights(again.at)).equals(await weights(at))).toBe(true);
  });

  it("goes on where it was stopped, and ends with the same bytes", async () => {
    const adapter = (at: string): Promise<Buffer> => readFile(join(at, "adapter", "adapter_model.safetensors"));
    const whole = await trained(small);
    const [file, at] = [to(`recipe-${count - 1}.yaml`), to("stopped")];
    const { code } = await strutIn({ signal: AbortSignal.abort() }, "train", "--recipe", file, "--out", at);
    expect([code, await names(at)]).toEqual([130, ["before", "events.jsonl"]]);
    expect((await strut("train", "--recipe", file, "--out", at, "--resume")).code).toBe(0);
    expect((await adapter(at)).equals(await adapter(whole.at))).toBe(true);
    expect((await strut("train", "--recipe", file, "--out", at, "--resume")).code).toBe(0);
    expect((await adapter(at)).equals(await adapter(whole.at))).toBe(true);
  });

  it("puts zeros in places and keeps them through the alignment, for semi and unst", async () => {
    const { code, err, at } = await trained(small.replace("ratio: 0.5", "variant: unst, ratio: 0.5").replace("quantize: nf4, ", ""));
    expect([code, err]).toEqual([0, ""]);
    const file = await readFile(join(at, "pruned", "model.safetensors"));
    const size = Number(file.readBigUInt64LE(0));
    const header = JSON.parse(file.subarray(8, 8 + size).toString()) as Record<string, { data_offsets: [number, number] }>;
    const [from, until] = header["model.layers.1.mlp.up_proj.weight"]!.data_offsets;
    const bytes = file.subarray(8 + size + from, 8 + size + until);
    const zero = Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(4 * i)).filter((w) => w === 0).length;
    expect(zero).toBe((172 * 64) / 2);
  });

  it.each([
    ["an adapter that cannot be put back", small.replace("method: loram", "method: dora"), /more or other than factors A and B/],
    ["full training", small.replace("method: loram\noptions: { r: 2 }", "method: full"), /there is nothing to put back/],
    ["a sparse base in 4 bits", small.replace("ratio", "variant: semi, ratio"), /is not quantised/],
    ["a small base that is aligned again", small.replace("prune: {", "prune: { from: nowhere,"), /prune\.align has no meaning/],
    ["a small base that is not there", small.replace(/align.*}\n/, "from: nowhere }\n"), /There is no file or folder .*nowhere/],
    ["a share of all", small.replace("0.5", "1"), /prune\.ratio is 1/],
  ])("refuses %s in a sentence", async (_, text, about) => {
    const { code, err } = await trained(text);
    expect([code, err]).toEqual([1, expect.stringMatching(about)]);
  });

  it("has paths relative to itself", () => {
    const text = (inside: string): string => `model: m\ndata: { text: t }\nprune: { ${inside} }`;
    expect(parseRecipe(text("from: p"), "a/r.yaml").prune!.from).toBe(join("a", "p"));
    expect(parseRecipe(text("align: { steps: 1, text: u }"), "a/r.yaml").prune!.align!.text).toBe(join("a", "u"));
  });
});

describe("a recipe that removes heads", () => {
  const heads = recipe("method: dsee\noptions: { r: 2, num_sparse: 4 }\ntargets: [q_proj, v_proj]\nremove_heads: { count: 1 }\nmerge: true\n");

  it("trains twice, and writes the smaller base, its adapter, and both merged", async () => {
    const { code, out, err, at } = await trained(heads);
    expect([code, err]).toEqual([0, ""]);
    expect(await names(at)).toEqual(["adapter", "before", "checkpoints", "events.jsonl", "merged", "pruned"]);
    expect(await names(join(at, "before"))).toEqual(["step-0000003"]);
    const info = json(await strut("info", join(at, "pruned"), "--json"))["sites"] as { path: string; shape: number[] }[];
    expect(info.find(({ path }) => path === "model.layers.0.self_attn.k_proj")!.shape).toEqual([24, 64]);
    const told = Number(/held-out loss +(\d+\.\d+), perplexity/.exec(out)![1]);
    await writeFile(to("held-out.txt"), (await readFile(to("text.txt"), "utf8")).slice(3600));
    expect(await loss(join(at, "pruned"), "--adapter", join(at, "adapter"))).toBeCloseTo(told, 3);
    expect(await loss(join(at, "merged"))).toBeCloseTo(told, 3);
  });

  it.each([
    ["more heads than there are", heads.replace("count: 1", "count: 4"), /4 of 4 heads cannot be removed/],
    ["without steps", heads.replace("steps: 6, ", ""), /needs training\.steps/],
    [
      "with another adapter",
      heads.replace("dsee", "ia3").replace("r: 2, num_sparse: 4", "").replace("[q_proj, v_proj]", "[k_proj, v_proj, down_proj]"),
      /is no DSEE or LoRA/,
    ],
  ])("refuses %s in a sentence", async (_, text, about) => {
    const { code, err } = await trained(text);
    expect([code, err]).toEqual([1, expect.stringMatching(about)]);
  });
});
