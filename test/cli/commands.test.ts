import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { loadTokenizer, type Tokenizer } from "../../src/formats/tokenizer.ts";
import { evaluate, generate, loadModel } from "../../src/models/index.ts";
import { json, names, STORIES, strut, strutIn, temporary } from "./strut.ts";

const folder = temporary();
const DORA = "test/interop/peft/lora-dora";

/** A text that encodes to these ids, special tokens in their own spelling. */
function textOf(ids: readonly number[], tokenizer: Tokenizer): string {
  const pieces: string[] = [];
  let piece: number[] = [];
  for (const id of [...ids, 1]) {
    if (id !== 1) {
      piece.push(id);
      continue;
    }
    pieces.push(piece.length > 0 ? tokenizer.decode(piece) : "");
    piece = [];
  }
  return pieces.join("<s>");
}

describe("strut info", () => {
  it("names the backend, its variant and threads, and how f64 runs", async () => {
    const { code, out } = await strut("info");
    expect(code).toBe(0);
    for (const word of ["backend", "variant", "threads", "f64"]) expect(out).toMatch(new RegExp(`^${word} +\\S`, "m"));
    expect(json(await strut("info", "--json"))).toMatchObject({ node: process.versions.node, notes: expect.anything() });
  });

  it("describes a model from its header alone", async () => {
    const known = json(await strut("info", STORIES, "--json"));
    expect(known).toMatchObject({
      kind: "model",
      architecture: "LlamaForCausalLM",
      parameters: 260032,
      bytes: 4 * 260032,
      layers: 5,
      context: 512,
      tied: true,
      tokenizer: { tokens: 512, bos: 1 },
    });
    expect(known["sites"]).toHaveLength(37);
    expect((await strut("info", "data/lm/gpt-nano-sort")).out).toMatch(/none \(no tokenizer.json\)/);
  });

  it("describes adapters and single files", async () => {
    expect(json(await strut("info", DORA, "--json"))).toMatchObject({ kind: "adapter", type: "LORA", rank: 4, dora: true, parameters: 10000 });
    expect((await strut("info", "data/adapters/roberta-base-lora-mnli")).out).toMatch(/targets +query, value/);
    expect(json(await strut("info", join(STORIES, "model.safetensors"), "--json"))).toMatchObject({ kind: "safetensors", tensors: 47, dtypes: { F32: 47 } });
  });
});

describe("strut eval", () => {
  // transformers' losses on tokens that a model made; each text is spelled so that it encodes to those tokens
  it.each(["stories260K", "babyllama-tok105"])("reproduces the losses of transformers on %s", async (name) => {
    const golden = JSON.parse(await readFile(`test/interop/generate/${name}.json`, "utf8")) as {
      eval: { ids: number[]; window: number; loss_token_mean: number; perplexity: number; scored_tokens: number };
    };
    const tokenizer = await loadTokenizer(`data/lm/${name}`);
    const text = textOf(golden.eval.ids, tokenizer);
    expect(tokenizer.encode(text, { special: false })).toEqual(golden.eval.ids);
    const file = join(folder, `${name}.txt`);
    await writeFile(file, text);
    const { code, out, err } = await strut("eval", `data/lm/${name}`, "--data", file, "--window", String(golden.eval.window), "--json");
    expect([code, err]).toEqual([0, ""]);
    const printed = JSON.parse(out) as Record<string, number>;
    expect(Object.keys(printed)).toEqual(["loss", "perplexity", "tokens", "tokens_per_second"]);
    expect(printed["tokens"]).toBe(golden.eval.scored_tokens);
    expect(Math.abs(printed["loss"]! - golden.eval.loss_token_mean)).toBeLessThan(1e-5);
    expect(Math.abs(printed["perplexity"]! - golden.eval.perplexity)).toBeLessThan(1e-4);
  });

  it("takes the model's context as window, and puts an adapter on the model", async () => {
    const file = join(folder, "stories.txt");
    await writeFile(file, "Once upon a time there was a little boat. ".repeat(60));
    const ids = (await loadTokenizer(STORIES)).encode(await readFile(file, "utf8"), { special: false });
    const plain = json(await strut("eval", STORIES, "--data", file, "--json"));
    expect(plain["loss"]).toBe((await evaluate(await loadModel(STORIES), ids, { window: 512 })).loss);
    const adapted = json(await strut("eval", STORIES, "--adapter", DORA, "--data", file, "--json"));
    expect(adapted["loss"]).not.toBe(plain["loss"]);
  });

  it("prints lines for people, without colour in pipes", async () => {
    const file = join(folder, "short.txt");
    await writeFile(file, "Once upon a time");
    const { out } = await strut("eval", STORIES, "--data", file);
    expect(out).toMatch(/^loss +\d\.\d+ nats a token$/m);
    expect(out).toMatch(/^backend +\w+ \(\w+\), \d+ threads?$/m);
    expect(out).not.toContain("\u001b");
  });
});

describe("strut generate", () => {
  it("continues a prompt as generate() does", async () => {
    const model = await loadModel(STORIES);
    const tokenizer = await loadTokenizer(STORIES);
    const wanted = await generate(model, tokenizer.encode("Once upon"), { tokenizer, maxNewTokens: 20, temperature: 0.8, topK: 40, topP: 0.9, seed: 7 });
    const printed = json(
      await strut(
        "generate",
        STORIES,
        "--prompt",
        "Once upon",
        "--max-new-tokens",
        "20",
        "--temperature",
        "0.8",
        "--top-k",
        "40",
        "--top-p",
        "0.9",
        "--seed",
        "7",
        "--json",
      ),
    );
    expect(printed).toMatchObject({ prompt: "Once upon", text: wanted.text, ids: wanted.ids, reason: "length" });
    const { out } = await strut(
      "generate",
      STORIES,
      "--prompt",
      "Once upon",
      "--max-new-tokens",
      "20",
      "--temperature",
      "0.8",
      "--top-k",
      "40",
      "--top-p",
      "0.9",
      "--seed",
      "7",
    );
    expect(out).toBe(`Once upon${wanted.text}\n`);
  });

  it("ends before stop strings and for Ctrl-C", async () => {
    expect(json(await strut("generate", STORIES, "--prompt", "Once", "--stop", "little", "girl", "--json"))).toMatchObject({
      text: " upon a time, there was a ",
      reason: "stop",
    });
    expect(json(await strutIn({ signal: AbortSignal.abort() }, "generate", STORIES, "--prompt", "Once", "--json"))).toMatchObject({
      text: "",
      reason: "abort",
    });
  });
});

describe("strut to-lora", () => {
  it("writes a LoRA of the wanted rank, and prints what it lost", async () => {
    const out = join(folder, "as-lora");
    const { error, sites } = json(await strut("to-lora", STORIES, DORA, "--rank", "8", "--out", out, "--json"));
    expect(error).toBeGreaterThan(0.01);
    expect(Math.max(...Object.values(sites as Record<string, number>))).toBeGreaterThanOrEqual(error);
    const info = json(await strut("info", out, "--json"));
    expect(info).toMatchObject({ kind: "adapter" });
    const full = await strut("to-lora", STORIES, DORA, "--rank", "64", "--out", join(folder, "as-full-lora"));
    expect(full.out).toMatch(/^lost +0 of the update/m);
    const wrong = await strut("to-lora", STORIES, DORA, "--rank", "0", "--out", join(folder, "none"));
    expect([wrong.code, wrong.err]).toEqual([1, expect.stringMatching(/rank is 0; it must be a whole number/)]);
  });
});

describe("strut combine", () => {
  it("makes one LoRA of two, which weighs them as told", async () => {
    const [a, b] = ["a", "b"].map((name) => join("test/interop/combine/in", name));
    const out = join(folder, "combined");
    const { code } = await strut("combine", STORIES, a!, b!, "--weights", "0.7,0.4", "--out", out);
    expect(code).toBe(0);
    const twice = await strut("combine", STORIES, out, "--weights", "1", "--type", "svd", "--rank", "8", "--out", join(folder, "combined-again"));
    expect(twice.out).toMatch(/^combined +1 × /m);
    const few = await strut("combine", STORIES, a!, b!, "--weights", "1", "--out", join(folder, "few"));
    expect([few.code, few.err]).toEqual([1, expect.stringMatching(/2 adapters and 1 weights/)]);
    expect((await strut("combine", STORIES, a!, b!, "--weights", "x,1", "--out", join(folder, "words"))).code).toBe(2);
  });
});

describe("strut merge", () => {
  it("writes a folder that evaluates as the adapted model does", async () => {
    const out = join(folder, "merged");
    const { max_logit_difference: difference, positions } = json(await strut("merge", STORIES, DORA, "--out", out, "--json"));
    expect(difference).toBeLessThan(1e-4);
    expect(positions).toBe(128);
    expect(await names(out)).toEqual(["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    const file = join(folder, "merge.txt");
    await writeFile(file, "Once upon a time there was a little girl named Lily.");
    const [merged, adapted] = [
      json(await strut("eval", out, "--data", file, "--json")),
      json(await strut("eval", STORIES, "--adapter", DORA, "--data", file, "--json")),
    ];
    expect(Math.abs(merged["loss"] - adapted["loss"])).toBeLessThan(1e-5);
  });

  it("stores the merged model in another dtype, and measures what it wrote", async () => {
    const out = join(folder, "merged-bf16");
    const { max_logit_difference: difference } = json(await strut("merge", STORIES, DORA, "--out", out, "--dtype", "bf16", "--json"));
    expect(difference).toBeGreaterThan(1e-3);
    expect(json(await strut("info", out, "--json"))["dtypes"]).toEqual({ BF16: 47 });
  });
});

describe("strut methods", () => {
  it("lists the catalog with JSON Schemas of the options", async () => {
    const listed = JSON.parse((await strut("methods", "--json")).out) as Record<string, any>[];
    expect(listed.map(({ id }) => id)).toEqual(expect.arrayContaining(["dora", "lora", "rslora"]));
    for (const method of listed) expect(Object.keys(method)).toEqual(["id", "family", "title", "paper", "options", "needs", "waives"]);
    expect(listed.find(({ id }) => id === "lora")!["options"].properties.r).toMatchObject({
      type: "integer",
      default: 8,
      description: expect.stringContaining("rank"),
    });
    expect(json(await strut("methods", "lora", "--json"))["id"]).toBe("lora");
  });

  it("prints a table, and a method's options in the words of its schema", async () => {
    expect((await strut("methods")).out).toMatch(/^dora +adapters +DoRA +arXiv:2402\.09353$/m);
    expect((await strut("methods", "lora")).out).toMatch(/^ {2}r +rank of the update; defaults to 8$/m);
  });
});

describe("help", () => {
  it.each(["demo", "info", "train", "eval", "generate", "merge", "combine", "to-lora", "convert", "methods"])("strut %s --help", async (name) => {
    const { code, out, err } = await strut(name, "--help");
    expect([code, err]).toEqual([0, ""]);
    expect(out).toMatch(new RegExp(`^Usage: strut ${name}`));
    expect(out).toContain("--json");
  });

  it("says what the option schemas say", async () => {
    const spaces = (text: string): string => text.replace(/\s+/g, " ");
    expect(spaces((await strut("generate", "--help")).out)).toContain("divides the logits before a token is drawn, 0 takes the likeliest; defaults to 1");
    expect(spaces((await strut("eval", "--help")).out)).toContain("the first of them is not scored; defaults to the model's context");
    expect((await strut("train", "--help")).out).toMatch(/^ {4}batchSize +rows of a batch; defaults to 8$/m);
  });

  it("shows the commands when nothing is asked, and the version", async () => {
    expect((await strut()).out).toMatch(/^ {2}convert +Change dtype/m);
    expect((await strut("--version")).out).toMatch(/^\d+\.\d+\.\d+\n$/);
  });
});

describe("colour", () => {
  it("is for terminals, not for CI, pipes or NO_COLOR", async () => {
    const shown = async (world: Parameters<typeof strutIn>[0]): Promise<boolean> => (await strutIn(world, "methods")).out.includes("\u001b[");
    expect(await shown({ terminal: true })).toBe(true);
    expect(await shown({ terminal: true, env: { NO_COLOR: "1" } })).toBe(false);
    expect(await shown({ terminal: true, env: { CI: "true" } })).toBe(false);
    expect(await shown({})).toBe(false);
  });
});
