import { readFile, writeFile } from "node:fs/promises";
import { resolve } from "node:path";
import { beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { names, STORIES, strut, temporary, type Ran } from "./strut.ts";

/** Bytes that still go onto the disk; every file that is opened for writing counts. */
const disk = vi.hoisted(() => ({ left: Infinity }));

vi.mock("../../src/formats/system.ts", async (original) => {
  const { files, paths } = await original<typeof import("../../src/formats/system.ts")>();
  const open: typeof files.open = async (path, flags) => {
    const handle = await files.open(path, flags);
    if (flags !== "wx") return handle;
    const write = handle.write.bind(handle);
    handle.write = async (bytes, ...rest) => {
      disk.left -= bytes.length;
      if (disk.left < 0) throw Object.assign(new Error("ENOSPC: no space left on device, write"), { code: "ENOSPC", syscall: "write" });
      return write(bytes, ...rest);
    };
    return handle;
  };
  return { paths, files: { ...files, open } };
});

const folder = temporary();
const to = (name: string): string => `${folder}/${name}`;

beforeAll(async () => {
  await writeFile(to("text.txt"), (await readFile("data/text/tinyshakespeare.txt", "utf8")).slice(0, 4000));
  await writeFile(
    to("recipe.yaml"),
    `model: ${resolve(STORIES)}\ndata: { text: text.txt, window: 16 }\noptions: { r: 2 }\ntargets: all-linear\ntraining: { steps: 6, batchSize: 2, checkpointEvery: 2 }\n`,
  );
});

beforeEach(() => void (disk.left = Infinity));

function expectFull({ code, err }: Ran): void {
  expect(code).toBe(1);
  expect(err).toMatch(/^strut: .*[Tt]he disk is full: .* could not be written\.\n {7}Nothing was left half-written\./);
}

describe("a full disk", () => {
  it.each([
    ["merge", [STORIES, "test/interop/peft/lora-dora"]],
    ["convert", [STORIES]],
    ["convert", [STORIES, "--max-shard-size", "200KB"]],
    ["convert", ["test/interop/peft/lora-dora", "--dtype", "f16"]],
  ] as const)("strut %s %j leaves nothing", async (command, argv) => {
    disk.left = command === "convert" && argv.length === 1 ? 500_000 : 5_000;
    expectFull(await strut(command, ...argv, "--out", to("out")));
    expect((await names(folder)).filter((name) => name.includes("out"))).toEqual([]);
  });

  it("leaves the folder that was to be overwritten as it was", async () => {
    expect((await strut("convert", STORIES, "--out", to("kept"))).code).toBe(0);
    const before = await readFile(to("kept/model.safetensors"));
    disk.left = 5_000;
    expectFull(await strut("convert", STORIES, "--out", to("kept"), "--overwrite", "--dtype", "bf16"));
    expect((await readFile(to("kept/model.safetensors"))).equals(before)).toBe(true);
  });

  it("strut train keeps the last good checkpoint and goes on from it when there is room", async () => {
    const argv = ["train", "--recipe", to("recipe.yaml"), "--out", to("run")];
    disk.left = 330_000; // a checkpoint of this run is about 140 kB
    const { code, err } = await strut(...argv);
    expect(code).toBe(1);
    expect(err).toMatch(/^strut: the checkpoint of step \d could not be written: The disk is full/);
    const kept = await names(to("run/checkpoints"));
    expect(kept.length).toBeGreaterThan(0);
    expect(kept.every((name) => /^step-\d{7}$/.test(name))).toBe(true);
    expect(err).toContain(kept.at(-1)!);
    disk.left = Infinity;
    const resumed = await strut(...argv, "--resume");
    expect([resumed.code, resumed.err]).toEqual([0, ""]);
    expect(resumed.out).toContain(`${kept.at(-1)}, step`);
    expect((await strut("train", "--recipe", to("recipe.yaml"), "--out", to("whole"))).code).toBe(0);
    const weights = (name: string): Promise<Buffer> => readFile(to(`${name}/adapter/adapter_model.safetensors`));
    expect((await weights("run")).equals(await weights("whole"))).toBe(true);
  });
});
