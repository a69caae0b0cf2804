import { mkdtempSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { run } from "../../src/cli/program.ts";

export const STORIES = "data/lm/stories260K";

export interface Ran {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

interface World {
  readonly env?: Readonly<Record<string, string>>;
  readonly terminal?: boolean;
  readonly signal?: AbortSignal;
}

/** Runs strut's command line in this process. */
export async function strutIn({ env = {}, terminal = false, signal = new AbortController().signal }: World, ...argv: readonly string[]): Promise<Ran> {
  let [out, err] = ["", ""];
  const code = await run(argv, {
    stdout: { write: (text) => void (out += text), isTTY: terminal, columns: 100 },
    stderr: { write: (text) => void (err += text) },
    env,
    interrupt: () => signal,
  });
  return { code, out, err };
}

export const strut = (...argv: readonly string[]): Promise<Ran> => strutIn({}, ...argv);

/** What a command with --json printed. */
export const json = ({ out }: Ran): Record<string, any> => JSON.parse(out) as Record<string, any>;

/** A new empty folder for one test file, removed with the system's own. */
export const temporary = (): string => mkdtempSync(join(tmpdir(), "strut-cli-"));

/** Names in a folder, hidden ones too; none if it is not there. */
export const names = (folder: string): Promise<string[]> =>
  readdir(folder).then(
    (found) => found.sort(),
    () => [],
  );
