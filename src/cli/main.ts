#!/usr/bin/env node
import type { Io } from "./io.ts";
import { run } from "./program.ts";

let controller: AbortController | undefined;
const io: Io = {
  stdout: process.stdout,
  stderr: process.stderr,
  env: process.env,
  interrupt() {
    if (!controller) {
      controller = new AbortController();
      // the first asks the command to end; if it does not, the second ends the process
      const end = (): void => {
        if (controller!.signal.aborted) process.exit(130);
        controller!.abort();
      };
      process.on("SIGINT", end).on("SIGTERM", end);
    }
    return controller.signal;
  },
};

// a reader that has seen enough (strut methods | head) is no error
for (const stream of [process.stdout, process.stderr])
  stream.on("error", (error: NodeJS.ErrnoException) => {
    process.exit(error.code === "EPIPE" ? 0 : 1);
  });

process.exitCode = await run(process.argv.slice(2), io);
