import { describe, expect, it } from "vitest";
import type { Outcome } from "./runner.worker.ts";
import { suite } from "./suite.ts";

/** Runs a test file in a worker of its own. */
function outcomes(file: string): Promise<Outcome[]> {
  const worker = new Worker(new URL("./runner.worker.ts", import.meta.url), { type: "module" });
  return new Promise<Outcome[]>((resolve, reject) => {
    worker.addEventListener("message", ({ data }: MessageEvent<Outcome[]>) => resolve(data));
    worker.addEventListener("error", ({ message }) => reject(new Error(message || "the worker could not be loaded")));
    worker.postMessage(file);
  }).finally(() => worker.terminate());
}

describe("in a worker, with threads", () => {
  it.each(Object.keys(suite))(
    "every test of %s passes",
    async (file) => {
      const ended = await outcomes(file);
      console.log(`${ended.filter(({ state }) => state === "pass").length} of ${ended.length} tests of ${file} passed in a worker`);
      expect(ended.filter(({ state }) => state !== "pass")).toEqual([]);
      expect(ended.length).toBeGreaterThan(0);
    },
    180_000,
  );
});
