import { mkdir, mkdtemp, open, readFile, readdir, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { StrutError } from "../errors.ts";
import { openSafetensorsFile, openWeights, parseIndex, writeSharded } from "./safetensors-folder.ts";
import { type TensorToWrite, writeSafetensors } from "./safetensors-write.ts";

const tensor = (name: string, length: number, fill = 0): TensorToWrite => ({
  name,
  dtype: "U8",
  shape: [length],
  bytes: () => new Uint8Array(length).fill(fill),
});

let folder: string;
beforeEach(async () => void (folder = await mkdtemp(join(tmpdir(), "strut-folder-"))));
afterEach(() => rm(folder, { recursive: true }));

const file = (name: string): string => join(folder, name);
const readJson = async (name: string): Promise<unknown> => JSON.parse(await readFile(file(name), "utf8"));
const refusal = async (path = folder): Promise<StrutError> => {
  const error: unknown = await openWeights(path).then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(StrutError);
  return error as StrutError;
};

describe("sharded weights", () => {
  it("split as huggingface_hub splits them: in order, a large tensor by itself", async () => {
    // huggingface_hub 1.x: split_state_dict_into_shards_factory({a:6,b:6,big:20,c:2,d:6,e:2,f:2}, max_shard_size=10)
    const sizes = { a: 6, b: 6, big: 20, c: 2, d: 6, e: 2, f: 2 };
    const written = await writeSharded(
      folder,
      Object.entries(sizes).map(([name, size]) => tensor(name, size)),
      { maxShardBytes: 10 },
    );
    expect(written).toHaveLength(5);
    expect((await readdir(folder)).sort()).toEqual(written.toSorted());
    expect(await readJson("model.safetensors.index.json")).toEqual({
      metadata: { total_size: 44 },
      weight_map: {
        a: "model-00001-of-00004.safetensors",
        big: "model-00002-of-00004.safetensors",
        b: "model-00003-of-00004.safetensors",
        c: "model-00003-of-00004.safetensors",
        d: "model-00004-of-00004.safetensors",
        e: "model-00004-of-00004.safetensors",
        f: "model-00004-of-00004.safetensors",
      },
    });
    const weights = await openWeights(folder);
    expect(Object.fromEntries([...weights.entries].map(([name, { shape }]) => [name, shape[0]]))).toEqual(sizes);
    expect(weights.metadata).toEqual({ format: "pt" });
    expect(await weights.read("big")).toHaveLength(20);
    await expect(weights.read("bigg")).rejects.toThrow('no tensor "bigg" among its 7');
    await weights.close();
  });

  it("are one file without an index where they fit into one", async () => {
    expect(await writeSharded(folder, [tensor("a", 3, 5)])).toEqual(["model.safetensors"]);
    const weights = await openWeights(folder);
    expect([...(await weights.read("a"))]).toEqual([5, 5, 5]);
    expect(weights.metadata).toEqual({ format: "pt" });
    await weights.close();
  });

  it("refuse a name given twice before anything is written", async () => {
    await expect(writeSharded(folder, [tensor("a", 3), tensor("a", 3)], { maxShardBytes: 3 })).rejects.toThrow("two tensors");
    expect(await readdir(folder)).toEqual([]);
  });

  it("follow symbolic links, as a Hugging Face cache has them", async () => {
    await mkdir(file("blobs"));
    await mkdir(file("snapshot"));
    await writeSafetensors(file("blobs/abc"), [tensor("a", 1, 9)]);
    await symlink("../blobs/abc", file("snapshot/model.safetensors"));
    const weights = await openWeights(file("snapshot"));
    expect([...(await weights.read("a"))]).toEqual([9]);
    await weights.close();
  });
});

describe("a file larger than memory should hold", () => {
  it("gives a tensor beyond 4 GiB without reading the rest", async () => {
    const size = 6 * 2 ** 30;
    const header = JSON.stringify({
      large: { dtype: "U8", shape: [size], data_offsets: [0, size] },
      small: { dtype: "U8", shape: [3], data_offsets: [size, size + 3] },
    });
    const handle = await open(file("model.safetensors"), "w");
    await handle.write(Buffer.concat([new Uint8Array(new BigUint64Array([BigInt(header.length)]).buffer), Buffer.from(header)]));
    await handle.write(new Uint8Array([1, 2, 3]), 0, 3, 8 + header.length + size);
    await handle.close();
    const weights = await openWeights(folder);
    expect([...(await weights.read("small"))]).toEqual([1, 2, 3]);
    await weights.close();
  });
});

const index = (map: Record<string, string>): string => JSON.stringify({ metadata: { total_size: 1 }, weight_map: map });

describe("an index", () => {
  const parse = (text: string) => (): unknown => parseIndex(text, "index.json");

  it("may hold unknown members", () => {
    expect(parseIndex('{"x":[{"y":[1.5e3,-2,true,false,null,"s"]},{}],"weight_map":{"a":"b.safetensors"},"metadata":{"total_size":1.0}}', "i")).toEqual(
      new Map([["a", "b.safetensors"]]),
    );
  });

  it.each([
    "/etc/a.safetensors",
    "../a.safetensors",
    "a/b.safetensors",
    "a\\b.safetensors",
    "a\0.safetensors",
    "C:a.safetensors",
    "..",
    "",
    "pytorch_model.bin",
  ])("may not point to %j", (name) => {
    expect(parse(index({ a: name }))).toThrow(/expected the name of a safetensors file beside the index/);
  });

  it.each<[string, RegExp, string]>([
    ["lists a weight twice", /"a" appears twice/, '{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}'],
    ["has two weight_maps", /"weight_map" appears twice/, '{"weight_map":{"a":"x.safetensors"},"weight_map":{}}'],
    ["has no weight_map", /no weight_map/, '{"metadata":{}}'],
    ["has an empty weight_map", /is empty/, '{"weight_map":{}}'],
    ["is a list", /where the index begins/, "[]"],
    ["is empty", /the end of the text/, ""],
    ["names a number as file", /expected a string/, '{"weight_map":{"a":1}}'],
    ["nests without end", /deeper than 64/, `{"x":${"[".repeat(100_000)}`],
    ["uses __proto__", /__proto__/, '{"weight_map":{"__proto__":"x.safetensors"}}'],
    ["holds what is not JSON", /expected a JSON value/, '{"x":NaN,"weight_map":{}}'],
    ["is followed by more", /nothing after/, `${index({ a: "a.safetensors" })}{}`],
  ])("that %s is refused", (_what, message, text) => {
    expect(parse(text)).toThrow(message);
    expect(parse(text)).toThrow(StrutError);
  });

  it("and shards that disagree are told apart, name by name", async () => {
    await writeSafetensors(file("x.safetensors"), [tensor("a", 1), tensor("b", 1), tensor("twice", 1)]);
    await writeSafetensors(file("y.safetensors"), [tensor("c", 1), tensor("twice", 1), tensor("extra", 1)]);
    await writeFile(
      file("model.safetensors.index.json"),
      index({ a: "x.safetensors", b: "y.safetensors", c: "y.safetensors", twice: "x.safetensors", gone: "x.safetensors" }),
    );
    const { message } = await refusal();
    expect(message).toContain("1 missing from the shard named for them: gone (x.safetensors)");
    expect(message).toContain("1 in a shard but not in the index: extra (y.safetensors)");
    expect(message).toContain("1 in another shard than the index says: b (index: y.safetensors, found: x.safetensors)");
    expect(message).toContain("1 in two shards: twice (x.safetensors and y.safetensors)");
  });

  it("that names a missing shard is refused with the shard's name", async () => {
    await writeFile(file("model.safetensors.index.json"), index({ a: "x.safetensors" }));
    expect((await refusal()).message).toContain("names the shard x.safetensors, which is not in the folder");
  });
});

describe("a folder without weights", () => {
  it("of pickles only is refused with the way to convert them, and nothing is executed", async () => {
    await writeFile(file("pytorch_model.bin"), "cos\nsystem\n");
    expect(await refusal()).toMatchObject({
      code: "pickle",
      message: expect.stringContaining("pytorch_model.bin"),
      hint: expect.stringContaining("safe_serialization"),
    });
  });

  it.each([
    ["adapter_model.safetensors", "adapter's folder"],
    ["other.safetensors", "name that file itself"],
    ["readme.md", "config.json"],
  ])("but with %s says what it may be", async (name, hint) => {
    await writeFile(file(name), "");
    expect((await refusal()).hint).toContain(hint);
  });

  it("or without being there at all gets a sentence", async () => {
    expect((await refusal(file("nowhere"))).message).toContain("no file or folder");
    await writeFile(file("text"), "hello");
    expect((await refusal(file("text"))).message).toContain("at least 8 bytes");
    await mkdir(file("d"));
    await expect(openSafetensorsFile(file("d"))).rejects.toThrow("is a folder, expected a file");
  });
});
