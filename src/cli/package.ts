import { readFile, stat } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join, relative } from "node:path";
import { StrutError } from "../errors.ts";

/** A path inside strut's own package, wherever it is installed and this file was bundled to. */
export const packagePath = (path: string): string => join(dirname(createRequire(import.meta.url).resolve("strut/package.json")), path);

/** strut's package.json. */
export const readPackage = async (): Promise<{ version: string }> => JSON.parse(await readFile(packagePath("package.json"), "utf8")) as { version: string };

/** A path of what the repository holds beside the code; an installed package comes without it. Relative where that is shorter to read. */
export async function bundledPath(path: string): Promise<string> {
  const whole = packagePath(path);
  if (!(await stat(whole).catch(() => undefined)))
    throw new StrutError("files", "this installation of strut comes without the demo's model and text", {
      path: whole,
      hint: "Clone the repository and run `npm ci && npm start` in it.",
    });
  // relative paths read better, and stay out of what is written
  const here = relative(process.cwd(), whole);
  return here.startsWith("..") ? whole : here;
}
