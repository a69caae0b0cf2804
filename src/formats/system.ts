import { memoryFiles, memoryPaths } from "./memory-files.ts";

/** The part of Node's `fs/promises` that strut uses. */
export interface Files {
  open(path: string, flags: "r" | "wx"): Promise<OpenFile>;
  readFile(path: string, encoding: "utf8"): Promise<string>;
  readFile(path: string): Promise<Uint8Array>;
  writeFile(path: string, content: string | Uint8Array): Promise<void>;
  copyFile(from: string, to: string): Promise<void>;
  mkdir(path: string, options?: { recursive?: boolean }): Promise<unknown>;
  readdir(path: string): Promise<string[]>;
  realpath(path: string): Promise<string>;
  rename(from: string, to: string): Promise<void>;
  rm(path: string, options?: { recursive?: boolean; force?: boolean }): Promise<void>;
  rmdir(path: string): Promise<void>;
  stat(path: string): Promise<FileStatus>;
}

export interface OpenFile {
  read(bytes: Uint8Array, offset: number, length: number, position: number): Promise<{ bytesRead: number }>;
  write(bytes: Uint8Array, offset: number, length: number): Promise<{ bytesWritten: number }>;
  stat(): Promise<FileStatus>;
  sync(): Promise<void>;
  close(): Promise<void>;
}

interface FileStatus {
  readonly size: number;
  isFile(): boolean;
  isDirectory(): boolean;
}

export type Paths = Pick<typeof import("node:path"), "sep" | "resolve" | "join" | "dirname" | "basename" | "relative">;

const node = globalThis.process?.getBuiltinModule;

/**
 * The files that paths name: Node's, or in a browser files in memory, which last as long as the page.
 *
 * @example
 * const folder = "out/notes";
 * await files.mkdir(folder, { recursive: true });
 * await files.writeFile(`${folder}/first.txt`, "hello");
 * console.log(await files.readdir(folder));
 */
export const files: Files = node ? node("node:fs/promises") : /* @__PURE__ */ memoryFiles();

export const paths: Paths = node ? node("node:path") : memoryPaths;
