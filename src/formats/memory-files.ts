import type { Files, Paths } from "./system.ts";

/** Paths with slashes, from the root: a page has no current folder. */
export const memoryPaths: Paths = {
  sep: "/",
  resolve: (...parts) => normal(parts.reduce((path, part) => (part.startsWith("/") ? part : `${path}/${part}`), "/")),
  join: (...parts) => {
    const path = parts.filter((part) => part !== "").join("/");
    const ups = path.startsWith("/") ? [] : climbs(path);
    const rest = [...ups, ...names(path)].join("/");
    return path.startsWith("/") ? `/${rest}` : rest || ".";
  },
  dirname: (path) => {
    const at = path.replace(/\/+$/, "").lastIndexOf("/");
    return at > 0 ? path.slice(0, at) : at === 0 || path.startsWith("/") ? "/" : ".";
  },
  basename: (path) => path.replace(/\/+$/, "").split("/").at(-1)!,
  relative(from, to) {
    const [a, b] = [names(memoryPaths.resolve(from)), names(memoryPaths.resolve(to))];
    let same = 0;
    while (same < Math.min(a.length, b.length) && a[same] === b[same]) same++;
    return [...a.slice(same).map(() => ".."), ...b.slice(same)].join("/");
  },
};

/** The parts of a path that are left when every ".." has taken the part before it. */
function names(path: string): string[] {
  const kept: string[] = [];
  for (const part of path.split("/"))
    if (part === "..") kept.pop();
    else if (part !== "" && part !== ".") kept.push(part);
  return kept;
}

/** The ".." that take nothing, since they stand before all else. */
function climbs(path: string): string[] {
  let [depth, ups] = [0, 0];
  for (const part of path.split("/"))
    if (part === ".." && depth === 0) ups++;
    else if (part === "..") depth--;
    else if (part !== "" && part !== ".") depth++;
  return new Array<string>(ups).fill("..");
}

const normal = (path: string): string => `/${names(path).join("/")}`;

interface File {
  bytes: Uint8Array;
  size: number;
}
type Entry = File | "folder";

const failed = (code: string, path: string): Error => Object.assign(new Error(`${code}: ${path}`), { code });

/** Files that live as long as the page; they answer as Node's do, with its error codes. */
export function memoryFiles(): Files {
  const entries = new Map<string, Entry>([["/", "folder"]]);
  const at = (path: string): string => memoryPaths.resolve(path);

  const entry = (path: string): Entry => {
    const found = entries.get(at(path));
    if (found) return found;
    parent(path);
    throw failed("ENOENT", path);
  };
  const parent = (path: string): void => {
    for (let above = memoryPaths.dirname(at(path)); ; above = memoryPaths.dirname(above)) {
      const found = entries.get(above);
      if (found === "folder") {
        if (above !== memoryPaths.dirname(at(path))) throw failed("ENOENT", path);
        return;
      }
      if (found) throw failed("ENOTDIR", path);
    }
  };
  /** Not there, with nothing in the way. */
  const missing = (path: string): boolean => {
    try {
      return !entry(path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return true;
      throw error;
    }
  };
  const file = (path: string): File => {
    const found = entry(path);
    if (found === "folder") throw failed("EISDIR", path);
    return found;
  };
  const folder = (path: string): void => {
    if (entry(path) !== "folder") throw failed("ENOTDIR", path);
  };
  const inside = (path: string): string[] => {
    const prefix = at(path) === "/" ? "/" : `${at(path)}/`;
    return [...entries.keys()].filter((key) => key.startsWith(prefix) && key !== "/");
  };
  const put = (path: string): File => {
    parent(path);
    const made = { bytes: new Uint8Array(0), size: 0 };
    entries.set(at(path), made);
    return made;
  };
  const append = (to: File, bytes: Uint8Array): void => {
    if (to.size + bytes.length > to.bytes.length) {
      const larger = new Uint8Array(Math.max(to.size + bytes.length, 2 * to.bytes.length));
      larger.set(to.bytes.subarray(0, to.size));
      to.bytes = larger;
    }
    to.bytes.set(bytes, to.size);
    to.size += bytes.length;
  };
  const status = (of: Entry) => ({ size: of === "folder" ? 0 : of.size, isFile: () => of !== "folder", isDirectory: () => of === "folder" });

  return {
    async open(path, flags) {
      if (flags === "wx" && entries.has(at(path))) throw failed("EEXIST", path);
      const held: Entry = flags === "wx" ? put(path) : entry(path);
      return {
        async read(bytes, offset, length, position) {
          if (held === "folder") throw failed("EISDIR", path);
          const piece = held.bytes.subarray(position, Math.min(position + length, held.size));
          bytes.set(piece, offset);
          return { bytesRead: piece.length };
        },
        async write(bytes, offset, length) {
          if (held === "folder" || flags === "r") throw failed("EBADF", path);
          append(held, bytes.subarray(offset, offset + length));
          return { bytesWritten: length };
        },
        stat: async () => status(held),
        async sync() {},
        async close() {},
      };
    },
    readFile: (async (path: string, encoding?: "utf8") => {
      const { bytes, size } = file(path);
      return encoding ? new TextDecoder().decode(bytes.subarray(0, size)) : bytes.slice(0, size);
    }) as Files["readFile"],
    async writeFile(path, content) {
      if (entries.get(at(path)) === "folder") throw failed("EISDIR", path);
      append(put(path), typeof content === "string" ? new TextEncoder().encode(content) : content);
    },
    async copyFile(from, to) {
      const { bytes, size } = file(from);
      if (entries.get(at(to)) === "folder") throw failed("EISDIR", to);
      append(put(to), bytes.subarray(0, size));
    },
    async mkdir(path, { recursive = false } = {}) {
      if (!recursive) parent(path);
      if (!recursive && entries.has(at(path))) throw failed("EEXIST", path);
      const parts = names(at(path));
      parts.forEach((_, i) => {
        const key = `/${parts.slice(0, i + 1).join("/")}`;
        const found = entries.get(key);
        if (found && found !== "folder") throw failed(i + 1 < parts.length ? "ENOTDIR" : "EEXIST", path);
        entries.set(key, "folder");
      });
    },
    async readdir(path) {
      folder(path);
      const depth = names(at(path)).length;
      return inside(path)
        .filter((key) => names(key).length === depth + 1)
        .map((key) => names(key).at(-1)!)
        .sort();
    },
    async realpath(path) {
      entry(path);
      return at(path);
    },
    async rename(from, to) {
      const [moved, [source, target]] = [entry(from), [at(from), at(to)]];
      parent(to);
      const there = entries.get(target);
      if (source === target) return;
      if (moved === "folder" && target.startsWith(`${source}/`)) throw failed("EINVAL", to);
      if (there && there !== "folder" && moved === "folder") throw failed("ENOTDIR", to);
      if (there === "folder" && moved !== "folder") throw failed("EISDIR", to);
      if (there === "folder" && inside(to).length > 0) throw failed("ENOTEMPTY", to);
      for (const key of [source, ...inside(from)]) {
        entries.set(target + key.slice(source.length), entries.get(key)!);
        entries.delete(key);
      }
    },
    async rm(path, { recursive = false, force = false } = {}) {
      if (force && missing(path)) return;
      if (entry(path) === "folder" && !recursive) throw failed("ERR_FS_EISDIR", path);
      for (const key of [at(path), ...inside(path)]) entries.delete(key);
    },
    async rmdir(path) {
      folder(path);
      if (inside(path).length > 0) throw failed("ENOTEMPTY", path);
      entries.delete(at(path));
    },
    stat: async (path) => status(entry(path)),
  };
}
