import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { child } from "../../test/support/child.ts";
import { checkpointsIn } from "./checkpoint.ts";

let dir: string;
beforeEach(async () => void (dir = await mkdtemp(join(tmpdir(), "strut-process-"))));
afterEach(() => rm(dir, { recursive: true, force: true }));

type Line = Record<string, unknown>;

/** Runs the child; `watch` sees every line it prints and may send it a signal. */
async function run(
  args: string[],
  watch: (line: Line, kill: (signal: NodeJS.Signals) => void) => void = () => {},
): Promise<{ lines: Line[]; signal: NodeJS.Signals | null }> {
  const process = child("training-child.ts", ...args);
  const lines: Line[] = [];
  let errors = "";
  process.stderr.on("data", (text) => void (errors += String(text)));
  createInterface({ input: process.stdout }).on("line", (text) => {
    const line = JSON.parse(text) as Line;
    lines.push(line);
    watch(line, (signal) => void process.kill(signal));
  });
  const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve) => process.on("close", (...end) => resolve(end)));
  if (code) throw new Error(errors);
  return { lines, signal };
}

describe("a process that trains", () => {
  it("may be killed at any moment: it goes on from its last checkpoint to the same bits", { timeout: 180_000 }, async () => {
    const steps = "60";
    const expected = (await run(["run", join(dir, "whole"), steps])).lines.at(-1)!["digest"];
    const killed = join(dir, "killed");
    let kills = 0;
    for (;;) {
      let wait = Math.random() * 12;
      const { lines, signal } = await run(["run", killed, steps], (line, kill) => {
        if (kills < 4 && line["event"] === "step" && wait-- < 0) setTimeout(() => kill("SIGKILL"), Math.random() * 20);
      });
      if (signal === "SIGKILL") {
        kills++;
        continue;
      }
      expect(lines.at(-1)!["digest"]).toBe(expected);
      break;
    }
    expect(kills).toBeGreaterThan(1);
  });

  it("stops within a second of Ctrl-C, with a checkpoint of the step it was in", { timeout: 60_000 }, async () => {
    let [sent, stoppedAt] = [0, 0];
    const { lines } = await run(["run", dir, "1000000"], (line, kill) => {
      if (line["event"] === "step" && line["step"] === 9) {
        sent = performance.now();
        kill("SIGINT");
      }
      if ("stopped" in line) stoppedAt = performance.now();
    });
    expect(stoppedAt - sent).toBeLessThan(1000);
    expect(lines.at(-1)).toMatchObject({ stopped: true });
    const last = lines.findLast(({ event }) => event === "step")!["step"];
    expect((await checkpointsIn(dir))[0]!.step).toBe(last);
  });

  it("holds no more memory at step 1000 than at step 100", { timeout: 60_000 }, async () => {
    const { lines } = await run(["memory"]);
    const [early, late] = lines as { pooled: number; resident: number }[];
    expect(late!.pooled).toBe(early!.pooled);
    expect(late!.resident / early!.resident).toBeLessThan(1.05);
  });
});
