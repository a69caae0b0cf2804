import { startTests, type File, type Task } from "@vitest/runner";
import { suite } from "./suite.ts";

/** How a test of a file ended. */
export interface Outcome {
  readonly name: string;
  readonly state: string;
  readonly errors: string[];
}

const outcomesOf = (task: Task, path: string): Outcome[] => {
  const name = `${path} > ${task.name}`;
  const own = { name, state: task.result?.state ?? task.mode, errors: (task.result?.errors ?? []).map(({ message }) => message) };
  if (task.type === "test") return [own];
  return [...(own.errors.length > 0 ? [own] : []), ...task.tasks.flatMap((child) => outcomesOf(child, name))];
};

const config = {
  root: "/",
  setupFiles: [],
  name: undefined,
  passWithNoTests: false,
  testNamePattern: undefined,
  allowOnly: false,
  sequence: { seed: 1, hooks: "stack", setupFiles: "list" },
  chaiConfig: undefined,
  maxConcurrency: 1,
  testTimeout: 60_000,
  hookTimeout: 60_000,
  retry: 0,
  includeTaskLocation: false,
  tags: [],
  tagsFilter: undefined,
  strictTags: false,
} as const;

self.addEventListener("message", ({ data: path }: MessageEvent<string>) => {
  const run = async (): Promise<void> => {
    const ran: File[] = await startTests([path], { config: { ...config, setupFiles: [], tags: [] }, importFile: () => suite[path]!() });
    self.postMessage(
      ran.flatMap((file) => file.tasks.flatMap((task) => outcomesOf(task, path)).concat(outcomesOf(file, "").filter(({ errors }) => errors.length > 0))),
    );
  };
  run().catch((error: Error) => self.postMessage([{ name: path, state: "fail", errors: [String(error.stack)] } satisfies Outcome]));
});
