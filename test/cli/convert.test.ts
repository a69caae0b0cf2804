import { copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openSafetensorsFile, openWeights } from "../../src/formats/safetensors-folder.ts";
import { writeSafetensors, type TensorToWrite } from "../../src/formats/safetensors-write.ts";
import { json, names, STORIES, strut, strutIn, temporary } from "./strut.ts";

const folder = temporary();
const to = (name: string): string => join(folder, name);
const same = async (a: string, b: string): Promise<boolean> => (await readFile(a)).equals(await readFile(b));

/** A model's folder whose header has an order, spacing and metadata of its own, and tensors that strut does not compute with. */
async function oddModel(name: string): Promise<string> {
  await mkdir(to(name));
  const bytes = (n: number): Uint8Array => Uint8Array.from({ length: n }, (_, i) => (i * 37) & 0x3f);
  const header =
    ` { "scales":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]},"__metadata__":{"made by":"hand"} ,"z":{"dtype":"F32","shape":[2],"data_offsets":[3,11]}, "ids":{"dtype":"I64","shape":[1],"data_offsets":[11,19]} } `.trim();
  const head = new Uint8Array(8);
  new DataView(head.buffer).setBigUint64(0, BigInt(header.length), true);
  await writeFile(join(to(name), "model.safetensors"), Buffer.concat([head, Buffer.from(header), bytes(19)]));
  await writeFile(join(to(name), "config.json"), '{"torch_dtype": "float32",   "odd": [1,2]}');
  return to(name);
}

describe("strut convert on models", () => {
  it("writes an unchanged folder byte for byte, whatever its header is like", async () => {
    const odd = await oddModel("odd");
    for (const [from, out] of [
      [STORIES, to("same")],
      [odd, to("odd-same")],
    ] as const) {
      expect(json(await strut("convert", from, "--out", out, "--json"))["converted"]).toBe(0);
      for (const file of ["model.safetensors", "config.json"]) expect(await same(join(from, file), join(out, file))).toBe(true);
    }
    expect(await same(join(STORIES, "tokenizer.json"), to("same/tokenizer.json"))).toBe(true);
  });

  it("converts floating-point tensors, passes others through as bytes, and mends the config", async () => {
    const odd = await oddModel("odd-2");
    expect(json(await strut("convert", odd, "--out", to("odd-bf16"), "--dtype", "bf16", "--json"))).toMatchObject({ converted: 1, tensors: 3 });
    const [before, after] = [await openSafetensorsFile(join(odd, "model.safetensors")), await openSafetensorsFile(to("odd-bf16/model.safetensors"))];
    expect([...after.entries].map(([name, { dtype }]) => [name, dtype]).sort()).toEqual([
      ["ids", "I64"],
      ["scales", "F8_E4M3"],
      ["z", "BF16"],
    ]);
    for (const name of ["ids", "scales"]) expect(await after.read(name)).toEqual(await before.read(name));
    expect(after.metadata).toEqual({ "made by": "hand" });
    expect(JSON.parse(await readFile(to("odd-bf16/config.json"), "utf8"))).toEqual({ torch_dtype: "bfloat16", odd: [1, 2] });
    await Promise.all([before.close(), after.close()]);
  });

  it("rounds to the nearest bf16, ties to even, and comes back from f16 through f32", async () => {
    await mkdir(to("values"));
    const values = Float32Array.of(1.00390625, 1.01171875, -0, 1e-40, 3.4e38, Infinity, 0.1);
    const tensor: TensorToWrite = { name: "x", dtype: "F32", shape: [7], bytes: () => new Uint8Array(values.buffer) };
    await writeSafetensors(to("values/model.safetensors"), [tensor], {});
    const read = async (name: string): Promise<Uint16Array> => {
      const weights = await openWeights(to(name));
      return new Uint16Array((await weights.read("x").finally(() => weights.close())).buffer);
    };
    await strut("convert", to("values/model.safetensors"), "--out", to("values-bf16"), "--dtype", "bf16");
    expect([...(await read("values-bf16"))].map((bits) => bits.toString(16))).toEqual(["3f80", "3f82", "8000", "1", "7f80", "7f80", "3dcd"]);
    await strut("convert", to("values-bf16/model.safetensors"), "--out", to("values-f16"), "--dtype", "f16");
    expect([...(await read("values-f16"))].map((bits) => bits.toString(16))).toEqual(["3c00", "3c10", "8000", "0", "7c00", "7c00", "2e68"]);
  });

  it("shards, keeps shards, and puts them together again to the same file", async () => {
    const { files } = json(await strut("convert", STORIES, "--out", to("shards"), "--max-shard-size", "200KB", "--json"));
    expect(files.filter((name: string) => name.startsWith("model-")).length).toBeGreaterThan(4);
    await strut("convert", to("shards"), "--out", to("shards-same"));
    for (const name of (await names(to("shards"))).filter((file) => file.startsWith("model")))
      expect(await same(to(`shards/${name}`), to(`shards-same/${name}`))).toBe(true);
    await strut("convert", to("shards"), "--out", to("whole"), "--max-shard-size", "1GiB");
    const [a, b] = [await openWeights(STORIES), await openWeights(to("whole"))];
    expect(b.files).toHaveLength(1);
    for (const name of a.entries.keys()) expect(await b.read(name)).toEqual(await a.read(name));
    await Promise.all([a.close(), b.close()]);
    const data = to("short.txt");
    await writeFile(data, "Once upon a time there was a boat.");
    const losses = await Promise.all(
      [STORIES, to("shards"), to("whole")].map(async (model) => json(await strut("eval", model, "--data", data, "--json"))["loss"] as number),
    );
    expect(new Set(losses).size).toBe(1);
  });

  it("never overwrites without --overwrite, and then replaces the whole folder", async () => {
    await mkdir(to("kept"));
    await writeFile(to("kept/mine.txt"), "mine");
    const refused = await strut("convert", STORIES, "--out", to("kept"));
    expect(refused).toMatchObject({ code: 1, out: "", err: expect.stringContaining("add --overwrite") });
    expect(await names(to("kept"))).toEqual(["mine.txt"]);
    expect((await strut("convert", STORIES, "--out", to("kept"), "--overwrite")).code).toBe(0);
    expect(await names(to("kept"))).toEqual(["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    expect((await strut("convert", to("kept"), "--out", to("kept"), "--overwrite", "--dtype", "f16")).code).toBe(0); // onto itself
    expect(json(await strut("info", to("kept"), "--json"))["dtypes"]).toEqual({ F16: 47 });
  });
});

describe("strut convert on adapters", () => {
  const DOTTED = "test/interop/peft/lora-dot-default-keys";

  it("strips adapter names from keys and keeps the config as it is", async () => {
    await strut("convert", DOTTED, "--out", to("plain"));
    const [before, after] = [
      await openSafetensorsFile(join(DOTTED, "adapter_model.safetensors")),
      await openSafetensorsFile(to("plain/adapter_model.safetensors")),
    ];
    expect([...before.entries.keys()].every((key) => key.includes(".default."))).toBe(true);
    expect([...after.entries.keys()].sort()).toEqual([...before.entries.keys()].map((key) => key.replace(".default", "")).sort());
    for (const key of before.entries.keys()) expect(await after.read(key.replace(".default", ""))).toEqual(await before.read(key));
    expect(await same(join(DOTTED, "adapter_config.json"), to("plain/adapter_config.json"))).toBe(true);
    await Promise.all([before.close(), after.close()]);
  });

  it("puts a named adapter into a subfolder, and takes it out again", async () => {
    const from = "test/interop/peft/lora-default";
    expect(json(await strut("convert", from, "--out", to("named"), "--adapter-name", "bob", "--json"))["out"]).toBe(to("named/bob"));
    expect(await names(to("named"))).toEqual(["bob"]);
    await strut("convert", to("named/bob"), "--out", to("unnamed"));
    for (const file of await names(to("unnamed"))) expect(await same(join(from, file), join(to("unnamed"), file))).toBe(true);
    expect(await strut("convert", to("named"), "--out", to("x"))).toMatchObject({ code: 1 });
  });

  it("converts the dtype, and other methods' files too", async () => {
    for (const name of ["lora-dora", "eva"]) {
      const out = to(`${name}-f16`);
      expect((await strut("convert", `test/interop/peft/${name}`, "--out", out, "--dtype", "f16")).err).toBe("");
      expect(Object.keys(json(await strut("info", out, "--json"))["dtypes"])).toEqual(["F16"]);
    }
  });

  it("refuses a shard size, and a name for a model", async () => {
    expect((await strut("convert", DOTTED, "--out", to("y"), "--max-shard-size", "1MB")).err).toContain("always one file");
    expect((await strut("convert", STORIES, "--out", to("y"), "--adapter-name", "bob")).err).toContain("no adapter to name");
    expect((await strut("convert", DOTTED, "--out", to("y"), "--adapter-name", "../bob")).err).toContain("cannot be named");
    expect(await names(to("y"))).toEqual([]);
  });
});

describe("Ctrl-C", () => {
  it("ends a conversion or merge with code 130 and leaves nothing", async () => {
    const signal = AbortSignal.abort();
    for (const argv of [
      ["convert", STORIES],
      ["merge", STORIES, "test/interop/peft/lora-dora"],
    ]) {
      const ran = await strutIn({ signal }, ...argv, "--out", to("stopped"));
      expect(ran).toEqual({ code: 130, out: "", err: "strut: interrupted; nothing was left half-written.\n" });
    }
    expect((await names(folder)).filter((name) => name.includes("stopped"))).toEqual([]);
  });
});

describe("a file that changes while it is converted", () => {
  it("ends in a sentence and writes nothing", async () => {
    await mkdir(to("cut"));
    await copyFile(join(STORIES, "model.safetensors"), to("cut/model.safetensors"));
    await writeFile(to("cut/model.safetensors"), (await readFile(to("cut/model.safetensors"))).subarray(0, 500_000));
    await copyFile(join(STORIES, "config.json"), to("cut/config.json"));
    expect(await strut("convert", to("cut"), "--out", to("cut-out"))).toMatchObject({ code: 1, out: "" });
    expect((await names(folder)).filter((name) => name.includes("cut-out"))).toEqual([]);
  });
});
