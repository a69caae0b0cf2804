import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

/** A path inside strut's own package, wherever it is installed and this file was bundled to. */
export const packagePath = (path: string): string => join(dirname(createRequire(import.meta.url).resolve("strut/package.json")), path);

/** strut's package.json. */
export const readPackage = async (): Promise<{ version: string }> => JSON.parse(await readFile(packagePath("package.json"), "utf8")) as { version: string };
