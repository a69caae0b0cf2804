import { cp, mkdir, readFile, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { openSafetensorsFile } from "../../src/formats/safetensors-folder.ts";
import { writeSafetensors, type TensorToWrite } from "../../src/formats/safetensors-write.ts";
import { names, STORIES, strut, strutIn, temporary, type Ran } from "./strut.ts";

const folder = temporary();
const to = (name: string): string => join(folder, name);
const DORA = "test/interop/peft/lora-dora";
const TEXT = to("text.txt");

beforeAll(() => writeFile(TEXT, "Once upon a time there was a little girl named Lily. ".repeat(40)));

/** A command that ends with code 1 and a sentence, with a hint below, on stderr, and with nothing else. */
function expectSentence({ code, out, err }: Ran, about: RegExp): void {
  expect({ code, out }).toEqual({ code: 1, out: "" });
  expect(err).toMatch(about);
  expect(err).toMatch(/^strut: \S/);
  expect(err).not.toMatch(/\n\s+at |undefined|\[object|something unexpected|Error:/);
  const lines = err.trimEnd().split("\n");
  for (const line of lines.slice(1)) expect(line).toMatch(/^ {7}/);
  expect(err).toMatch(/[.?!]\n$/);
}

/** A copy of the bundled model with other tensors. */
async function altered(name: string, change: (tensors: TensorToWrite[]) => TensorToWrite[], config: Record<string, unknown> = {}): Promise<string> {
  await cp(STORIES, to(name), { recursive: true });
  const file = await openSafetensorsFile(join(STORIES, "model.safetensors"));
  const tensors = [...file.entries].map(([key, { dtype, shape }]): TensorToWrite => ({ name: key, dtype, shape, bytes: () => file.read(key) }));
  await writeSafetensors(join(to(name), "model.safetensors"), change(tensors));
  await file.close();
  const before = JSON.parse(await readFile(join(STORIES, "config.json"), "utf8")) as object;
  await writeFile(join(to(name), "config.json"), JSON.stringify({ ...before, ...config }));
  return to(name);
}

const evaluated = (model: string, ...more: readonly string[]): Promise<Ran> => strut("eval", model, "--data", TEXT, "--json", ...more);

describe("a model that does not fit together", () => {
  it("missing, extra and mis-shaped weights are listed", async () => {
    const model = await altered("mixed", (tensors) => [
      ...tensors
        .filter(({ name }) => name !== "model.norm.weight")
        .map((tensor) => (tensor.name.endsWith("layers.0.mlp.up_proj.weight") ? { ...tensor, shape: [64, 172] } : tensor)),
      { name: "model.layers.9.extra", dtype: "F32", shape: [1], bytes: () => new Uint8Array(4) },
    ]);
    const ran = await evaluated(model);
    expectSentence(ran, /missing \(1\): model\.norm\.weight/);
    expect(ran.err).toMatch(/unexpected \(1\): model\.layers\.9\.extra/);
    expect(ran.err).toMatch(/wrong shape \(1\): model\.layers\.0\.mlp\.up_proj\.weight is \[64,172\], expected \[172,64\]/);
  });

  it("weights of a dtype that nobody computes with", async () => {
    expectSentence(
      await evaluated(await altered("integers", (tensors) => tensors.map((t) => (t.name === "model.norm.weight" ? { ...t, dtype: "I32" } : t)))),
      /model\.norm\.weight is stored as I32/,
    );
  });

  it("a tokenizer with ids beyond the vocabulary", async () => {
    const small = await altered(
      "small",
      (tensors) =>
        tensors.map((t) =>
          t.name === "model.embed_tokens.weight" ? { ...t, shape: [500, 64], bytes: async () => (await t.bytes()).slice(0, 500 * 64 * 4) } : t,
        ),
      { vocab_size: 500 },
    );
    expectSentence(await evaluated(small), /500 rows in its vocabulary, but 12 of the tokenizer's ids lie beyond/);
    expect((await strut("info", small)).out).toMatch(/^tokenizer .*12 of the tokenizer's ids lie beyond/m);
  });

  it("weights that are not finite", async () => {
    const nan = await altered("nan", (tensors) =>
      tensors.map((t) => (t.name === "model.norm.weight" ? { ...t, bytes: () => new Uint8Array(256).fill(0xff) } : t)),
    );
    expectSentence(await evaluated(nan), /loss on .* is NaN/);
    expectSentence(await strut("generate", nan, "--prompt", "Once", "--json"), /logits are not finite/);
  });

  it.each([
    ["no-config", async (path: string) => mkdir(path), /has no config\.json/],
    [
      "broken-config",
      async (path: string) => {
        await mkdir(path);
        await writeFile(join(path, "config.json"), '{"model_type": "llama",');
      },
      /config\.json is not valid JSON/,
    ],
    [
      "list-config",
      async (path: string) => {
        await mkdir(path);
        await writeFile(join(path, "config.json"), "[1]");
      },
      /holds a list, expected an object/,
    ],
    [
      "unknown-type",
      async (path: string) => {
        await mkdir(path);
        await writeFile(join(path, "config.json"), '{"model_type": "mamba"}');
      },
      /model_type "mamba"; strut knows llama, gpt2/,
    ],
    [
      "no-weights",
      async (path: string) => {
        await mkdir(path);
        await cp(join(STORIES, "config.json"), join(path, "config.json"));
      },
      /neither model\.safetensors nor/,
    ],
    [
      "pickle",
      async (path: string) => {
        await mkdir(path);
        await cp(join(STORIES, "config.json"), join(path, "config.json"));
        await writeFile(join(path, "pytorch_model.bin"), "x");
      },
      /pickle .* never opened/,
    ],
    [
      "short-weights",
      async (path: string) => {
        await cp(STORIES, path, { recursive: true });
        await writeFile(join(path, "model.safetensors"), "1234");
      },
      /at least 8 bytes, found 4/,
    ],
    [
      "long-header",
      async (path: string) => {
        await cp(STORIES, path, { recursive: true });
        await writeFile(join(path, "model.safetensors"), new Uint8Array(16).fill(255));
      },
      /header claims \d+ bytes/,
    ],
    [
      "broken-tokenizer",
      async (path: string) => {
        await cp(STORIES, path, { recursive: true });
        await writeFile(join(path, "tokenizer.json"), '{"model": {"type": "Magic"}}');
      },
      /tokenizer that cannot be used/,
    ],
    [
      "dangling",
      async (path: string) => {
        await cp(STORIES, path, { recursive: true, filter: (name) => !name.endsWith(".safetensors") });
        await symlink(to("nowhere"), join(path, "model.safetensors"));
      },
      /There is no file or folder/,
    ],
  ] as const)("%s", async (name, make, about) => {
    await make(to(name));
    expectSentence(await evaluated(to(name)), about);
  });
});

describe("what was named is not what was meant", () => {
  it.each([
    ["no such model", ["eval", "nowhere", "--data", TEXT], /There is no file or folder nowhere/],
    ["a file as the model", ["eval", "package.json", "--data", TEXT], /package\.json is a file, expected a model's folder/],
    ["no such text", ["eval", STORIES, "--data", "nowhere.txt"], /There is no file or folder nowhere\.txt/],
    ["a folder as the text", ["eval", STORIES, "--data", "data"], /data is a folder, expected a file/],
    ["no text at all", ["eval", STORIES, "--data", join(STORIES, "model.safetensors")], /is no text: it holds zero bytes/],
    ["a model without tokenizer", ["eval", "data/lm/gpt-nano-sort", "--data", TEXT], /has no tokenizer\.json/],
    ["an adapter as the model", ["eval", DORA, "--data", TEXT], /has no config\.json/],
    ["a model as the adapter", ["eval", STORIES, "--adapter", STORIES, "--data", TEXT], /has no adapter_config\.json.*\n.*It is a model's folder/],
    ["another model's adapter", ["eval", "data/lm/babyllama-tok105", "--adapter", DORA, "--data", TEXT], /expected 4×352/],
    ["a pickled adapter", ["eval", STORIES, "--adapter", "test/interop/peft/lora-bin", "--data", TEXT], /only as a pickle/],
    ["a method that is not there", ["methods", "loora"], /there is no method "loora"\.\n {7}Did you mean lora/],
    ["a window beyond the context", ["eval", STORIES, "--data", TEXT, "--window", "513"], /window of 513 .* context of 512/],
    ["a window of half a token", ["eval", STORIES, "--data", TEXT, "--window", "2.5"], /window is 2\.5/],
    ["probabilities beyond 1", ["generate", STORIES, "--prompt", "Once", "--top-p", "1.5", "--json"], /topP is 1\.5/],
    ["an empty stop string", ["generate", STORIES, "--prompt", "Once", "--stop", "", "--json"], /stopStrings\.0 is/],
    ["a prompt longer than the context", ["generate", STORIES, "--prompt", "Once upon a time ".repeat(200), "--json"], /more than the model's context of 512/],
    ["a folder that is in use", ["merge", STORIES, DORA, "--out", "data"], /The folder data is not empty/],
    ["a file as the folder to write", ["merge", STORIES, DORA, "--out", "package.json"], /package\.json is a file, expected a folder/],
    ["a folder inside of a file", ["convert", STORIES, "--out", "package.json/x"], /package\.json/],
    ["nothing to describe", ["info", "nowhere"], /There is no file or folder nowhere/],
  ] as const)("%s", async (_, argv, about) => {
    expectSentence(await strut(...argv), about);
  });

  it("an empty text, and one of a single token", async () => {
    await writeFile(to("empty.txt"), "");
    expectSentence(await strut("eval", STORIES, "--data", to("empty.txt")), /the text has \d tokens/);
  });

  it("bytes that are not UTF-8", async () => {
    await writeFile(to("latin1.txt"), Uint8Array.of(0x63, 0x61, 0x66, 0xe9));
    expectSentence(await strut("eval", STORIES, "--data", to("latin1.txt")), /is no text: it is not valid UTF-8/);
  });

  it("a merge that cannot be leaves nothing behind", async () => {
    expectSentence(await strut("merge", STORIES, "test/interop/peft/lora-lora_bias-nobias-base", "--out", to("unmerged")), /./);
    expect((await names(folder)).filter((name) => name.includes("unmerged"))).toEqual([]);
  });
});

describe("an unexpected error", () => {
  it("gets a sentence, and its stack only with STRUT_DEBUG=1", async () => {
    const broken = {
      interrupt: (): AbortSignal => {
        throw new Error("boom");
      },
    };
    const ran = async (env: Record<string, string>): Promise<string> => {
      let err = "";
      const { run } = await import("../../src/cli/program.ts");
      const sink = { write: (text: string) => void (err += text) };
      expect(await run(["generate", STORIES, "--prompt", "Once", "--json"], { stdout: sink, stderr: sink, env, ...broken })).toBe(1);
      return err;
    };
    expect(await ran({})).toBe("strut: something unexpected went wrong: boom.\n       Run it again with STRUT_DEBUG=1 to see where; please report it.\n");
    expect(await ran({ STRUT_DEBUG: "1" })).toMatch(/^strut: something unexpected went wrong: boom\.\nError: boom\n +at /);
  });
});

describe("a command line that is wrong ends with code 2", () => {
  it.each([
    [["evl"], /^strut: unknown command 'evl'\.\n {7}Did you mean eval\?\n/],
    [["eval", "--data", "x"], /^strut: missing required argument 'model'\.\n {7}Run `strut eval --help`/],
    [["eval", STORIES], /^strut: required option '--data <file>' not specified\.\n/],
    [["eval", STORIES, "--data", "x", "--windw", "3"], /^strut: unknown option '--windw'\.\n {7}Did you mean --window\?\n/],
    [["eval", STORIES, "--data", "x", "--window", "many"], /^strut: option '--window <number>' argument 'many' is invalid\. It must be a number\.\n/],
    [["eval", STORIES, "surplus", "--data", "x"], /^strut: too many arguments/],
    [
      ["merge", STORIES, DORA, "--out", "x", "--dtype", "f8"],
      /^strut: option '--dtype <dtype>' argument 'f8' is invalid\. Allowed choices are f32, bf16, f16\.\n/,
    ],
    [["convert", STORIES, "--out", "x", "--max-shard-size", "5 apples"], /must be a size such as 5GB/],
    [["--backend", "gpu"], /^strut: unknown option '--backend'/],
    [["train", "--out", "x"], /^strut: needs '--recipe <file>', or '--from-scratch <config>' with '--data <text>'\.\n/],
  ] as const)("%j", async (argv, message) => {
    const { code, out, err } = await strutIn({}, ...argv);
    expect({ code, out }).toEqual({ code: 2, out: "" });
    expect(err).toMatch(message);
    expect(err).toMatch(/^ {7}Run `strut( \w+)? --help` to see/m);
  });
});
