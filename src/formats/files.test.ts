import { mkdir, mkdtemp, readFile, readdir, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { StrutError } from "../errors.ts";
import { fileError, fileSource, readText, writeAtomically, writeFolderAtomically } from "./files.ts";

let folder: string;
beforeEach(async () => void (folder = await mkdtemp(join(tmpdir(), "strut-files-"))));
afterEach(() => rm(folder, { recursive: true }));
const file = (name: string): string => join(folder, name);

describe("fileSource", () => {
  it("reads pieces and follows links", async () => {
    await writeFile(file("a"), "hello");
    await symlink("a", file("b"));
    const source = await fileSource(file("b"));
    expect(source.size).toBe(5);
    expect(Buffer.from(await source.read(1, 3)).toString()).toBe("ell");
    await source.close();
  });

  it("says so when the file shrinks while it is open", async () => {
    await writeFile(file("a"), "hello");
    const source = await fileSource(file("a"));
    await writeFile(file("a"), "he");
    await expect(source.read(0, 5)).rejects.toMatchObject({ code: "files", message: expect.stringContaining("ended at byte 2") });
    await source.close();
  });

  it("tells a missing file, a folder and a file taken for a folder apart", async () => {
    await writeFile(file("a"), "");
    await expect(fileSource(file("no"))).rejects.toThrow("There is no file or folder");
    await expect(fileSource(folder)).rejects.toThrow("is a folder, expected a file");
    await expect(fileSource(file("a/b"))).rejects.toThrow("a part of this path is a file");
    await expect(readText(file("no"))).rejects.toThrow(StrutError);
  });
});

describe("writeAtomically", () => {
  it("replaces a file, from bytes, text or pieces", async () => {
    await writeAtomically(file("a"), "one");
    expect(await readFile(file("a"), "utf8")).toBe("one");
    await writeAtomically(file("a"), new Uint8Array([50]));
    expect(await readFile(file("a"), "utf8")).toBe("2");
    await writeAtomically(file("a"), async (write) => {
      await write(new Uint8Array([51]));
      await write(new Uint8Array([52]));
    });
    expect(await readFile(file("a"), "utf8")).toBe("34");
    expect(await readdir(folder)).toEqual(["a"]);
  });

  it.each(["write", "sync", "close"] as const)("keeps the old file when %s fails, and leaves nothing beside it", async (step) => {
    await writeFile(file("a"), "old");
    const broken = async (): Promise<never> => {
      throw Object.assign(new Error("EIO: i/o error"), { code: "EIO" });
    };
    const openFile = async (path: string) => {
      await writeFile(path, "half");
      return { write: async () => undefined, sync: async () => undefined, close: async () => undefined, [step]: broken };
    };
    await expect(writeAtomically(file("a"), "new", { openFile })).rejects.toMatchObject({
      name: "StrutError",
      code: "files",
      message: expect.stringContaining("EIO"),
    });
    expect(await readFile(file("a"), "utf8")).toBe("old");
    expect(await readdir(folder)).toEqual(["a"]);
  });

  it("needs a folder to write into, and does not replace a folder", async () => {
    await expect(writeAtomically(file("no/a"), "x")).rejects.toThrow("its folder does not exist");
    await mkdir(file("d"));
    await expect(writeAtomically(file("d"), "x")).rejects.toThrow("is a folder");
    expect(await readdir(folder)).toEqual(["d"]);
  });
});

describe("system errors", () => {
  it.each([
    ["ENOSPC", /disk is full/],
    ["EDQUOT", /disk is full/],
    ["EACCES", /may not be written/],
    ["EROFS", /may not be written/],
    ["EFBIG", /larger than this file system allows/],
    ["EMFILE", /could not be written: EMFILE/],
  ])("%s is a sentence with what to do", (code, message) => {
    const error = fileError(Object.assign(new Error("x"), { code }), "p", "write");
    expect(error.message).toMatch(message);
    expect(error).toMatchObject({ path: "p", hint: expect.stringMatching(/\.$/) });
  });
});

describe("writeFolderAtomically", () => {
  const fill = (content: string) => (path: string) => writeFile(join(path, "a"), content);
  const read = (): Promise<string> => readFile(file("out/a"), "utf8");

  it("makes a folder, its parents too, or fills an empty one", async () => {
    await writeFolderAtomically(file("x/y/out"), fill("1"));
    expect(await readFile(file("x/y/out/a"), "utf8")).toBe("1");
    await mkdir(file("out"));
    await writeFolderAtomically(file("out"), fill("2"));
    expect(await read()).toBe("2");
    expect((await readdir(folder)).sort()).toEqual(["out", "x"]);
  });

  it("refuses a folder that holds something, unless told to overwrite it whole", async () => {
    await mkdir(file("out"));
    await writeFile(file("out/other"), "");
    await expect(writeFolderAtomically(file("out"), fill("1"))).rejects.toThrow("is not empty: it holds other");
    await writeFolderAtomically(file("out"), fill("1"), { overwrite: true });
    expect(await readdir(file("out"))).toEqual(["a"]);
    expect(await readdir(folder)).toEqual(["out"]);
  });

  it("leaves no part of a folder when filling fails, and keeps the old one", async () => {
    const half = async (path: string): Promise<void> => {
      await fill("half")(path);
      throw Object.assign(new Error("ENOSPC"), { code: "ENOSPC" });
    };
    await expect(writeFolderAtomically(file("out"), half)).rejects.toThrow("disk is full");
    expect(await readdir(folder)).toEqual([]);
    await writeFolderAtomically(file("out"), fill("old"));
    await expect(writeFolderAtomically(file("out"), half, { overwrite: true })).rejects.toThrow("disk is full");
    expect(await read()).toBe("old");
    expect(await readdir(folder)).toEqual(["out"]);
  });

  it("writes where a link points to, and keeps the link", async () => {
    await mkdir(file("real"));
    await symlink("real", file("out"));
    await writeFolderAtomically(file("out"), fill("1"));
    expect(await readFile(file("real/a"), "utf8")).toBe("1");
    expect(await read()).toBe("1");
  });

  it("refuses a file, and never replaces the folder it runs in", async () => {
    await writeFile(file("f"), "");
    await expect(writeFolderAtomically(file("f"), fill("1"))).rejects.toThrow("is a file, expected a folder");
    const before = process.cwd();
    await mkdir(file("here/inside"), { recursive: true });
    process.chdir(file("here/inside"));
    try {
      await writeFile("content", "");
      for (const path of [".", "..", file("here")])
        await expect(writeFolderAtomically(path, fill("1"), { overwrite: true })).rejects.toThrow("holds the current folder");
    } finally {
      process.chdir(before);
    }
  });
});
