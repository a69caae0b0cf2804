import { fork } from "node:child_process";
import type { Done, Job } from "./job.ts";

/** What a job's process tells while it trains. */
export interface JobProgress {
  readonly step: number;
  readonly steps: number;
  readonly loss: number;
}

export interface Workers {
  /** strut's command line, which runs `compare-job FOLDER JOB`. */
  readonly program: string;
  readonly folder: string;
  readonly signal: AbortSignal;
}

/** Runs a job in a process of its own, on one thread. A process that ends without a result is a failure in its own words. */
export function runInProcess(job: Job, { program, folder, signal }: Workers, onProgress: (progress: JobProgress) => void): Promise<Done> {
  signal.throwIfAborted();
  const child = fork(program, ["compare-job", folder, JSON.stringify(job)], {
    // a group of its own: Ctrl-C is for this process, which then ends its children
    detached: true,
    execArgv: [],
    env: { ...process.env, STRUT_THREADS: "1" },
    stdio: ["ignore", "ignore", "pipe", "ipc"],
  });
  const stop = (): void => void child.kill();
  signal.addEventListener("abort", stop);
  let [done, problems]: [Done | undefined, string] = [undefined, ""];
  child.stderr!.setEncoding("utf8").on("data", (text: string) => void (problems += text));
  child.on("message", (message: JobProgress | Done) => {
    if ("job" in message) done = message;
    else onProgress(message);
  });
  return new Promise<Done>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, killed) => {
      const ended = killed ? `was ended by ${killed}` : `ended with code ${code}`;
      const words = problems
        .trim()
        .replace(/^strut: /, "")
        .split(/\n\s*/)
        .join(" ");
      if (signal.aborted) reject(signal.reason as Error);
      else resolve(done ?? { job, failed: words || `its process ${ended}` });
    });
  }).finally(() => signal.removeEventListener("abort", stop));
}

/** Runs at most so many tasks at once; of those that wait, the one with the lowest rank begins first. */
export function slots(count: number): <T>(rank: number, task: () => Promise<T>) => Promise<T> {
  let free = count;
  const waiting: { rank: number; begin: () => void }[] = [];
  return async (rank, task) => {
    if (free > 0) free--;
    else
      await new Promise<void>((begin) => {
        waiting.push({ rank, begin });
        waiting.sort((a, b) => a.rank - b.rank);
      });
    try {
      return await task();
    } finally {
      const next = waiting.shift();
      if (next) next.begin();
      else free++;
    }
  };
}
