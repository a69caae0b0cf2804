import { Argument, type Command } from "commander";
import { join } from "node:path";
import { runJob, type Done, type Job } from "../compare/job.ts";
import type { JobProgress } from "../compare/processes.ts";
import { readSetup } from "../compare/setup.ts";
import { StrutError } from "../errors.ts";
import { writeAtomically } from "../formats/files.ts";
import type { Io } from "./io.ts";

/** One run of a comparison: `strut compare` starts it in a process of its own and listens. */
export function define(command: Command, _io: Io): void {
  command
    .argument("<folder>", "folder of the comparison")
    .addArgument(new Argument("<job>", "the job, in JSON").argParser((text) => JSON.parse(text) as Job))
    .action(async (folder: string, job: Job) => {
      // nobody waits for the result any more
      const orphaned = (): void => process.exit(130);
      process.on("disconnect", orphaned);
      try {
        await run(folder, job);
      } finally {
        process.off("disconnect", orphaned);
        if (process.connected) process.disconnect();
      }
    });
}

async function run(folder: string, job: Job): Promise<void> {
  const tell = (message: JobProgress | Done): void => void process.send?.(message);
  const setup = await readSetup(folder);
  let done: Done;
  try {
    done = { job, measured: await runJob(setup, job, ({ step, steps, loss }) => tell({ step, steps, loss })) };
  } catch (error) {
    if (!(error instanceof StrutError)) throw error;
    done = { job, failed: error.message };
  }
  await writeAtomically(join(folder, job.file), `${JSON.stringify(done, null, 2)}\n`);
  tell(done);
}
