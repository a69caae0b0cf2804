import { StrutError } from "../errors.ts";
import type { ByteSource } from "./safetensors.ts";
import { files, type OpenFile, paths } from "./system.ts";

const { basename, dirname, join, relative, resolve, sep } = paths;

/** Node reads and writes at most 2^31 - 1 bytes at once; this much is as fast. */
const most = 2 ** 28;

/** What the system said, as a sentence with what to do. */
export function fileError(cause: unknown, path: string, doing: "read" | "write"): StrutError {
  if (cause instanceof StrutError) return cause;
  const { code, message } = cause as NodeJS.ErrnoException;
  const tell = (sentence: string, hint: string): StrutError => new StrutError("files", sentence, { path, hint, cause });
  const unchanged = "Nothing was left half-written.";
  switch (code) {
    case "ENOENT":
      return doing === "read"
        ? tell(`There is no file or folder ${path}.`, "Check the spelling, and that the path is relative to where the command runs.")
        : tell(`${path} cannot be written, because its folder does not exist.`, "Create the folder first, or choose another one.");
    case "ENOTDIR":
      return tell(`${path} cannot be ${doing === "read" ? "read" : "written"}: a part of this path is a file, expected a folder.`, "Check the path.");
    case "EISDIR":
      return tell(`${path} is a folder, expected a file.`, "Name a file inside of it.");
    case "EACCES":
    case "EPERM":
    case "EROFS":
      return tell(`${path} may not be ${doing === "read" ? "read" : "written"} (${code}).`, "Check its permissions, or choose another place.");
    case "ENOSPC":
    case "EDQUOT":
      return tell(`The disk is full: ${path} could not be written.`, `${unchanged} Free some space, or choose another place, and run this again.`);
    case "EFBIG":
      return tell(`${path} would be larger than this file system allows.`, `${unchanged} Write smaller shards.`);
    default:
      return tell(
        `${path} could not be ${doing === "read" ? "read" : "written"}: ${code ?? message}.`,
        doing === "write" ? unchanged : "Check that the file and its disk are in order.",
      );
  }
}

/** Opens a file for reading in pieces; symbolic links are followed. Close it when done. */
export async function fileSource(path: string): Promise<ByteSource & { close(): Promise<void> }> {
  let handle: OpenFile | undefined;
  try {
    handle = await files.open(path, "r");
    const status = await handle.stat();
    if (status.isDirectory()) throw Object.assign(new Error("folder"), { code: "EISDIR" });
    return sourceOf(handle, status.size, path);
  } catch (cause) {
    await handle?.close();
    throw fileError(cause, path, "read");
  }
}

function sourceOf(handle: OpenFile, size: number, path: string): ByteSource & { close(): Promise<void> } {
  return {
    size,
    async read(offset, length) {
      const bytes = new Uint8Array(length);
      for (let done = 0; done < length;) {
        const piece = Math.min(most, length - done);
        const { bytesRead } = await handle.read(bytes, done, piece, offset + done).catch((cause: unknown) => {
          throw fileError(cause, path, "read");
        });
        if (bytesRead === 0)
          throw new StrutError("files", `${path} ended at byte ${offset + done}, expected ${size} bytes as when it was opened.`, {
            path,
            hint: "Something else changed the file meanwhile; run this again when it is finished.",
          });
        done += bytesRead;
      }
      return bytes;
    },
    close: () => handle.close(),
  };
}

/** Reads a small text file whole. */
export async function readText(path: string): Promise<string> {
  try {
    return await files.readFile(path, "utf8");
  } catch (cause) {
    throw fileError(cause, path, "read");
  }
}

/** What `writeAtomically` writes through; tests put a failing one in its place. */
export interface WritableFile {
  write(bytes: Uint8Array): Promise<void>;
  sync(): Promise<void>;
  close(): Promise<void>;
}

export interface WriteOptions {
  /** Opens the temporary file; defaults to Node's. */
  openFile?: (path: string) => Promise<WritableFile>;
}

async function openForWriting(path: string): Promise<WritableFile> {
  const handle = await files.open(path, "wx");
  return {
    async write(bytes) {
      for (let done = 0; done < bytes.length;) done += (await handle.write(bytes, done, Math.min(most, bytes.length - done))).bytesWritten;
    },
    sync: () => handle.sync(),
    close: () => handle.close(),
  };
}

const unique = (): string => Array.from(crypto.getRandomValues(new Uint32Array(2)), (word) => word.toString(36)).join("-");

/**
 * Writes a file whole or not at all: to a temporary file in the same folder, forced to disk, then renamed over `path`.
 * `content` may be a function that writes piece by piece. Whatever fails, the temporary file goes and `path` stays as it was.
 */
export async function writeAtomically(
  path: string,
  content: Uint8Array | string | ((write: (bytes: Uint8Array) => Promise<void>) => Promise<void>),
  { openFile = openForWriting }: WriteOptions = {},
): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}.${unique()}.tmp`);
  let file: WritableFile | undefined;
  try {
    if ((await files.stat(path).catch(() => undefined))?.isDirectory()) throw Object.assign(new Error("folder"), { code: "EISDIR" });
    file = await openFile(temporary);
    const target = file;
    if (typeof content === "function") await content((bytes) => target.write(bytes));
    else await target.write(typeof content === "string" ? new TextEncoder().encode(content) : content);
    await target.sync();
    file = undefined;
    await target.close();
    await files.rename(temporary, path);
  } catch (cause) {
    await file?.close().catch(() => undefined);
    await files.rm(temporary, { force: true });
    throw isSystemError(cause) ? fileError(cause, path, "write") : cause;
  }
  await syncFolder(dirname(path));
}

const isSystemError = (error: unknown): boolean =>
  error instanceof Error && typeof (error as NodeJS.ErrnoException).code === "string" && !(error instanceof StrutError);

/** Makes a rename last through a power cut, where the system can (Windows cannot open folders). */
async function syncFolder(folder: string): Promise<void> {
  const handle = await files.open(folder, "r").catch(() => undefined);
  await handle?.sync().catch(() => undefined);
  await handle?.close();
}

/**
 * Fills a folder whole or not at all: `fill` writes into a temporary folder beside `folder`, which is renamed at the end.
 * A folder that already holds something is refused, or replaced as a whole with `overwrite`.
 */
export async function writeFolderAtomically(
  folder: string,
  fill: (temporary: string) => Promise<void>,
  { overwrite = false }: { overwrite?: boolean } = {},
): Promise<void> {
  const path = await files.realpath(folder).catch(() => resolve(folder));
  await (overwrite ? refuseCurrent(path, folder) : refuseFilled(folder));
  const aside = (kind: string): string => join(dirname(path), `.${basename(path)}.${unique()}.${kind}`);
  const temporary = aside("tmp");
  try {
    await files.mkdir(dirname(path), { recursive: true });
    await files.mkdir(temporary);
    await fill(temporary);
    await syncFolder(temporary);
    await replaceFolder(temporary, path, aside("old"), overwrite);
  } catch (cause) {
    await files.rm(temporary, { recursive: true, force: true });
    throw isSystemError(cause) ? fileError(cause, folder, "write") : cause;
  }
  await syncFolder(dirname(path));
}

/** Refuses to write into a file, or into a folder that holds something; `hint` says what else to do. */
export async function refuseFilled(folder: string, hint = "Choose a new folder, or allow overwriting."): Promise<void> {
  const inside = await namesIn(folder);
  if (inside.length === 0) return;
  throw new StrutError("files", `The folder ${folder} is not empty: it holds ${inside.slice(0, 3).join(", ")}${inside.length > 3 ? ", …" : ""}.`, {
    path: folder,
    hint,
  });
}

/** What a folder to write into holds; nothing where it is not there yet. */
const namesIn = (folder: string): Promise<string[]> =>
  files.readdir(folder).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === "ENOENT") return [];
    if (cause.code !== "ENOTDIR") throw fileError(cause, folder, "write");
    throw new StrutError("files", `${folder} is a file, expected a folder to write into.`, { path: folder, hint: "Choose another folder." });
  });

/** Refuses to replace the folder that the process stands in, or one around it. */
async function refuseCurrent(path: string, shown: string): Promise<void> {
  if ((await namesIn(shown)).length === 0) return;
  const toHere = relative(path, resolve("."));
  if (toHere !== ".." && !toHere.startsWith(`..${sep}`))
    throw new StrutError("files", `The folder ${shown} holds the current folder, so it is not replaced.`, { path: shown, hint: "Choose a new folder." });
}

async function replaceFolder(from: string, to: string, aside: string, overwrite: boolean): Promise<void> {
  if (!overwrite) {
    await files.rmdir(to).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOENT") throw error;
    });
    return files.rename(from, to);
  }
  const moved = await files.rename(to, aside).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return false;
      throw error;
    },
  );
  try {
    await files.rename(from, to);
  } catch (error) {
    if (moved) await files.rename(aside, to);
    throw error;
  }
  if (moved) await files.rm(aside, { recursive: true, force: true });
}
