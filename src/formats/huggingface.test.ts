import { mkdir, mkdtemp, readFile, readdir, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { companionFiles, copyCompanions, readConfig, readGenerationConfig, writeConfig } from "./huggingface.ts";

let folder: string;
beforeEach(async () => void (folder = await mkdtemp(join(tmpdir(), "strut-hf-"))));
afterEach(() => rm(folder, { recursive: true }));
const file = (name: string): string => join(folder, name);

describe("config.json", () => {
  it("keeps unknown keys, their order and nested values when it is written back", async () => {
    const text = '{\n  "model_type": "llama",\n  "future": {\n    "list": [\n      1.5,\n      null\n    ]\n  },\n  "a": "é"\n}\n';
    await writeFile(file("config.json"), text);
    const config = await readConfig(folder);
    expect(config).toEqual({ model_type: "llama", future: { list: [1.5, null] }, a: "é" });
    await writeConfig(folder, config);
    expect(await readFile(file("config.json"), "utf8")).toBe(text);
  });

  it("may begin with a byte-order mark", async () => {
    await writeFile(file("config.json"), '\ufeff{"a":1}');
    expect(await readConfig(folder)).toEqual({ a: 1 });
  });

  it.each([
    ["is not JSON", "{", /config\.json is not valid JSON/],
    ["is empty", "", /config\.json is not valid JSON/],
    ["is a list", "[]", /holds a list, expected an object/],
    ["is null", "null", /holds null, expected an object/],
    ["is a number", "3", /holds a number, expected an object/],
  ])("that %s gets a sentence", async (_what, text, message) => {
    await writeFile(file("config.json"), text);
    await expect(readConfig(folder)).rejects.toMatchObject({
      name: "StrutError",
      code: "config",
      message: expect.stringMatching(message),
      path: file("config.json"),
    });
  });

  it("that is missing gets a sentence, with a near name", async () => {
    await expect(readConfig(folder)).rejects.toThrow(`The folder ${folder} has no config.json.`);
    await writeFile(file("confg.json"), "{}");
    await expect(readConfig(folder)).rejects.toMatchObject({ hint: expect.stringContaining("It has confg.json.") });
  });

  it("in a folder that is missing or a file gets a sentence", async () => {
    await expect(readConfig(file("no"))).rejects.toThrow("There is no file or folder");
    await writeFile(file("f"), "");
    await expect(readConfig(file("f"))).rejects.toThrow("is a file, expected a model's folder");
    await mkdir(file("config.json"));
    await expect(readConfig(folder)).rejects.toThrow("is a folder, expected a file");
  });

  it("of the bundled models says what they are", async () => {
    const config = await readConfig(fileURLToPath(new URL("../../data/lm/stories260K", import.meta.url)));
    expect(config).toMatchObject({ model_type: "llama", hidden_size: 64, rms_norm_eps: 1e-5 });
  });
});

describe("companion files", () => {
  it("are the small files of a model, not its weights, config or card", async () => {
    const companions = [
      "LICENSE",
      "chat_template.jinja",
      "generation_config.json",
      "merges.txt",
      "special_tokens_map.json",
      "tokenizer.json",
      "tokenizer.model",
      "tokenizer_config.json",
      "vocab.json",
    ];
    for (const name of [...companions, "config.json", "model.safetensors", "model.safetensors.index.json", "README.md", "golden.json", "training_args.bin"])
      await writeFile(file(name), name);
    await mkdir(file("tokenizer_extra.json"));
    expect(await companionFiles(folder)).toEqual(companions);
    await mkdir(file("to"));
    expect(await copyCompanions(folder, file("to"))).toEqual(companions);
    expect((await readdir(file("to"))).sort()).toEqual(companions);
    expect(await readFile(file("to/tokenizer.json"), "utf8")).toBe("tokenizer.json");
  });

  it("are copied through links, and replace what is there", async () => {
    await mkdir(file("from"));
    await mkdir(file("to"));
    await writeFile(file("blob"), "new");
    await writeFile(file("to/vocab.json"), "old");
    await symlink("../blob", file("from/vocab.json"));
    await copyCompanions(file("from"), file("to"));
    expect(await readFile(file("to/vocab.json"), "utf8")).toBe("new");
  });

  it("include generation_config.json, which may be missing", async () => {
    expect(await readGenerationConfig(folder)).toBeUndefined();
    await writeFile(file("generation_config.json"), '{"temperature":0.7}');
    expect(await readGenerationConfig(folder)).toEqual({ temperature: 0.7 });
  });

  it("of a folder that is not there get a sentence", async () => {
    await expect(companionFiles(file("no"))).rejects.toThrow("There is no file or folder");
  });
});
