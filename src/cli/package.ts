import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

/** A path inside strut's own package, wherever it is installed. */
export const packagePath = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));

/** strut's package.json. */
export const readPackage = async (): Promise<{ version: string }> => JSON.parse(await readFile(packagePath("package.json"), "utf8")) as { version: string };
