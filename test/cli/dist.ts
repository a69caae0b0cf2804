import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";

/** Compiles src to dist if a source is newer. */
export function build(): void {
  const sources = readdirSync("src", { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".ts") && !name.endsWith(".test.ts"));
  const newest = Math.max(...sources.map((name) => statSync(join("src", name)).mtimeMs));
  const built = statSync("dist/node/cli/main.js", { throwIfNoEntry: false })?.mtimeMs ?? 0;
  if (built >= newest) return;
  execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json"], { stdio: "pipe" });
  execFileSync(process.execPath, ["scripts/bundle.mjs"], { stdio: "pipe" });
}

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly out: string;
  readonly err: string;
}

/** strut in a process of its own. */
export class Strut {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  out = "";
  err = "";

  constructor(...argv: readonly string[]) {
    this.child = spawn(process.execPath, ["dist/node/cli/main.js", ...argv], { stdio: ["ignore", "pipe", "pipe"] });
    this.child.stdout!.setEncoding("utf8").on("data", (text: string) => void (this.out += text));
    this.child.stderr!.setEncoding("utf8").on("data", (text: string) => void (this.err += text));
    this.ended = new Promise((resolve) => this.child.on("close", (code, signal) => resolve({ code, signal, out: this.out, err: this.err })));
  }

  /** Waits until the output has something, or the process ended. */
  async until(pattern: RegExp): Promise<void> {
    while (this.child.exitCode === null && this.child.signalCode === null && !pattern.test(this.out)) await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
