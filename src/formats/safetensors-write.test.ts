import { mkdtemp, open as openNode, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { StrutError } from "../errors.ts";
import type { WritableFile } from "./files.ts";
import { type SafetensorsFile, bytesSource, openSafetensors } from "./safetensors.ts";
import { openSafetensorsFile } from "./safetensors-folder.ts";
import { type TensorToWrite, safetensorsBytes, writeSafetensors } from "./safetensors-write.ts";

/** Written by Python's safetensors 0.8.0 with torch 2.13: `save({13 tensors of 11 dtypes}, {"format": "pt"})`. */
const fromPython = Buffer.from(
  "GAMAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJmb3JtYXQiOiJwdCJ9LCJhIjp7ImR0eXBlIjoiSTY0Iiwic2hhcGUiOlszXSwiZGF0YV9vZmZzZXRzIjpbMCwyNF19LCJzY2FsYXIiOnsiZHR5cGUiOiJGNjQiLCJzaGFwZSI6W10sImRhdGFfb2Zmc2V0cyI6WzI0LDMyXX0sImMiOnsiZHR5cGUiOiJDNjQiLCJzaGFwZSI6WzFdLCJkYXRhX29mZnNldHMiOlszMiw0MF19LCJiIjp7ImR0eXBlIjoiRjMyIiwic2hhcGUiOlsyLDJdLCJkYXRhX29mZnNldHMiOls0MCw1Nl19LCJlbXB0eSI6eyJkdHlwZSI6IkYzMiIsInNoYXBlIjpbMCwzXSwiZGF0YV9vZmZzZXRzIjpbNTYsNTZdfSwiaTMyIjp7ImR0eXBlIjoiSTMyIiwic2hhcGUiOlsxXSwiZGF0YV9vZmZzZXRzIjpbNTYsNjBdfSwiYnJhaW4iOnsiZHR5cGUiOiJCRjE2Iiwic2hhcGUiOlsyXSwiZGF0YV9vZmZzZXRzIjpbNjAsNjRdfSwiaGFsZiI6eyJkdHlwZSI6IkYxNiIsInNoYXBlIjpbMV0sImRhdGFfb2Zmc2V0cyI6WzY0LDY2XX0sImY4Ijp7ImR0eXBlIjoiRjhfRTRNMyIsInNoYXBlIjpbMl0sImRhdGFfb2Zmc2V0cyI6WzY2LDY4XX0sImk4Ijp7ImR0eXBlIjoiSTgiLCJzaGFwZSI6WzFdLCJkYXRhX29mZnNldHMiOls2OCw2OV19LCLDqVwiXFxcbiI6eyJkdHlwZSI6IlU4Iiwic2hhcGUiOlsxXSwiZGF0YV9vZmZzZXRzIjpbNjksNzBdfSwi77+uIjp7ImR0eXBlIjoiQk9PTCIsInNoYXBlIjpbMl0sImRhdGFfb2Zmc2V0cyI6WzcwLDcyXX0sIvCfmIAiOnsiZHR5cGUiOiJCT09MIiwic2hhcGUiOlsxXSwiZGF0YV9vZmZzZXRzIjpbNzIsNzNdfX0gICAgICABAAAAAAAAAP7/////////AwAAAAAAAAAAAAAAAAAEQAAAgD8AAABAAAAAAAAAgD8AAABAAABAQAUAAADAPwDAAD44QP8HAQAB",
  "base64",
);

const bundled = (path: string): string => fileURLToPath(new URL(`../../data/${path}`, import.meta.url));

const tensorsOf = (file: SafetensorsFile, names: Iterable<string> = file.entries.keys()): TensorToWrite[] =>
  [...names].map((name) => ({ name, ...file.entries.get(name)!, bytes: () => file.read(name) }));

const tensor = (name: string, length: number): TensorToWrite => ({ name, dtype: "U8", shape: [length], bytes: () => new Uint8Array(length).fill(7) });

let folder: string;
beforeEach(async () => void (folder = await mkdtemp(join(tmpdir(), "strut-write-"))));
afterEach(() => rm(folder, { recursive: true }));

describe("writing safetensors", () => {
  it("gives the bytes that Python gives for the same tensors, in whatever order they come", async () => {
    const file = await openSafetensors(bytesSource(fromPython), "python");
    const names = [...file.entries.keys()].toSorted().toReversed();
    const bytes = await safetensorsBytes(tensorsOf(file, names), "ours", { metadata: { format: "pt" } });
    expect(Buffer.from(bytes).equals(fromPython)).toBe(true);
  });

  it.each([
    "lm/stories260K/model.safetensors",
    "lm/gpt-nano-sort/golden_activations.safetensors",
    "adapters/gpt2-lora-product-reviews/checkpoint-2500/adapter_model.safetensors",
  ])("re-saves %s byte-equal", async (path) => {
    const file = await openSafetensorsFile(bundled(path));
    await writeSafetensors(join(folder, "again"), tensorsOf(file), { template: file });
    await file.close();
    expect((await readFile(join(folder, "again"))).equals(await readFile(bundled(path)))).toBe(true);
  });

  it("keeps header text and order of a template as they are, spaces and all", async () => {
    const header =
      '{ "z":{"shape":[1],"dtype":"U8","data_offsets":[0,1]}, "\\u0061":{"dtype":"F32","shape":[],"data_offsets":[1,5]}, "__metadata__":{"b":"2", "a":"1"}}   ';
    const bytes = new Uint8Array(8 + header.length + 5).fill(3);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(header.length), true);
    bytes.set(new TextEncoder().encode(header), 8);
    const file = await openSafetensors(bytesSource(bytes), "odd");
    expect(await safetensorsBytes(tensorsOf(file, ["a", "z"]), "again", { template: file })).toEqual(bytes);
    expect(await safetensorsBytes(tensorsOf(file), "again", { template: file, metadata: { a: "1", b: "2" } })).toEqual(bytes);

    const changed = await openSafetensors(bytesSource(await safetensorsBytes(tensorsOf(file), "again", { template: file, metadata: { a: "3" } })), "changed");
    expect([...changed.entries.keys()]).toEqual(["a", "z"]);
    expect(changed.metadata).toEqual({ a: "3" });
    const fewer = await openSafetensors(bytesSource(await safetensorsBytes(tensorsOf(file, ["a"]), "again", { template: file })), "fewer");
    expect([...fewer.entries.keys()]).toEqual(["a"]);
    expect(fewer.metadata).toEqual({ a: "1", b: "2" });
  });

  it("pads the header so that the data begins at a multiple of 8", async () => {
    for (let length = 1; length <= 8; length++) {
      const bytes = await safetensorsBytes([tensor("é".repeat(length), 1)], "m");
      expect((bytes.length - 1) % 8).toBe(0);
    }
  });

  it("asks for the bytes of one tensor at a time, in file order", async () => {
    const log: string[] = [];
    async function* stream(): AsyncGenerator<TensorToWrite> {
      for (const name of ["b", "c", "a"])
        yield {
          ...tensor(name, 4),
          bytes: async () => {
            log.push(name);
            return new Uint8Array(4);
          },
        };
    }
    await writeSafetensors(join(folder, "m"), stream());
    expect(log).toEqual(["a", "b", "c"]);
  });

  it("refuses what the format cannot hold, and leaves nothing behind", async () => {
    const path = join(folder, "m");
    for (const [bad, message] of [
      [[tensor("a", 1), tensor("a", 2)], /two tensors are named "a"/],
      [[tensor("__metadata__", 1)], /cannot be named/],
      [[tensor("\ud800", 1)], /cannot be named/],
      [[{ ...tensor("a", 1), dtype: "F7" as "F4" }], /dtype F7/],
      [[{ ...tensor("a", 1), shape: [-1] }], /shape \[-1\]/],
      [[{ ...tensor("a", 1), shape: [2 ** 40, 2 ** 40] }], /2\^53/],
      [[{ ...tensor("a", 1), dtype: "F4", shape: [1] }], /whole number of bytes/],
      [[{ ...tensor("a", 1), bytes: () => new Uint8Array(2) }], /needs 1 bytes, but 2/],
    ] as [TensorToWrite[], RegExp][])
      await expect(writeSafetensors(path, bad)).rejects.toThrow(message);
    await expect(writeSafetensors(path, [], { metadata: { a: 1 as unknown as string } })).rejects.toThrow(StrutError);
    expect(await readdir(folder)).toEqual([]);
  });

  it("leaves the old file as it was when a disk fills up half-way", async () => {
    const path = join(folder, "m");
    await writeFile(path, "before");
    let written = 0;
    const openFile = async (temporary: string): Promise<WritableFile> => {
      const handle = await openNode(temporary, "wx");
      return {
        async write(bytes) {
          written += bytes.length;
          if (written > 200) throw Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC" });
          await handle.write(bytes);
        },
        sync: () => handle.sync(),
        close: () => handle.close(),
      };
    };
    const error: unknown = await writeSafetensors(path, [tensor("a", 50), tensor("b", 100)], { openFile }).catch((reason: unknown) => reason);
    expect(written).toBeGreaterThan(200);
    expect(error).toMatchObject({ name: "StrutError", code: "files", message: `The disk is full: ${path} could not be written.` });
    expect(await readFile(path, "utf8")).toBe("before");
    expect(await readdir(folder)).toEqual(["m"]);
  });

  it("passes on the error of a tensor that cannot be made, and removes the temporary file", async () => {
    const bytes = (): Uint8Array => {
      throw new RangeError("no");
    };
    await expect(writeSafetensors(join(folder, "m"), [{ ...tensor("a", 1), bytes }])).rejects.toThrow(RangeError);
    expect(await readdir(folder)).toEqual([]);
  });
});
