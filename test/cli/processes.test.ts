import { readFile, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { build, Strut } from "./dist.ts";
import { names, temporary } from "./strut.ts";

const folder = temporary();
const to = (name: string): string => join(folder, name);
const recipe = to("recipe.yaml");

beforeAll(async () => {
  build();
  await writeFile(to("text.txt"), (await readFile("data/text/tinyshakespeare.txt", "utf8")).slice(0, 40_000));
  // an epoch has 180 steps: what is interrupted is interrupted in the middle of one
  await writeFile(
    recipe,
    `model: ${resolve("data/lm/stories260K")}
data: { text: text.txt, window: 32, heldOut: 0.05 }
options: { r: 4, dropout: 0.1 }
targets: all-linear
training: { steps: 60, batchSize: 2, accumulate: 2, learningRate: 1e-2, warmup: 5, clip: 1, evaluateEvery: 25, checkpointEvery: 8 }
merge: true
`,
  );
});

const train = (out: string, ...more: readonly string[]): Strut => new Strut("train", "--recipe", recipe, "--out", to(out), ...more);

const weights = (out: string): Promise<Buffer[]> =>
  Promise.all(["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "merged/model.safetensors"].map((file) => readFile(join(to(out), file))));

/** The run that nobody interrupted. */
let whole: Promise<Buffer[]> | undefined;
const uninterrupted = (): Promise<Buffer[]> =>
  (whole ??= (async () => {
    expect(await train("whole").ended).toMatchObject({ code: 0, err: "" });
    return weights("whole");
  })());

describe("strut train in a process of its own", () => {
  it("Ctrl-C in mid-epoch saves and exits within a second; --resume ends with the same bytes", { retry: 2 }, async ({ task }) => {
    const out = `interrupted-${task.result?.retryCount ?? 0}`;
    const run = train(out);
    await run.until(/^step 18\//m);
    const from = performance.now();
    run.child.kill("SIGINT");
    const ended = await run.ended;
    expect(performance.now() - from).toBeLessThan(1000);
    expect(ended).toMatchObject({ code: 130, signal: null, err: "" });
    expect(ended.out).toMatch(/Stopped\. To go on: strut train .* --resume\n$/);
    const saved = (await names(join(to(out), "checkpoints"))).at(-1)!;
    const step = Number(saved.slice("step-".length));
    expect(step).toBeGreaterThanOrEqual(18);
    expect(step).toBeLessThan(60);
    const resumed = await train(out, "--resume").ended;
    expect(resumed).toMatchObject({ code: 0, err: "" });
    expect(resumed.out).toContain(`${saved}, step ${step}\n`);
    expect(await weights(out)).toEqual(await uninterrupted());
  });

  it("killed at any moments, it resumes from its last checkpoint to the same bytes", async () => {
    for (const [i, wait] of [/^step 6\//m, /^step 24\//m, /^step 36\//m, /^step 60\//m].entries()) {
      const run = train("killed", "--resume");
      await run.until(wait);
      await new Promise((resume) => setTimeout(resume, i * 7)); // anywhere in a step, or in writing
      run.child.kill("SIGKILL");
      await run.ended;
    }
    expect(await train("killed", "--resume").ended).toMatchObject({ code: 0, err: "" });
    expect(await weights("killed")).toEqual(await uninterrupted());
    expect((await names(to("killed"))).concat(await names(to("killed/checkpoints"))).filter((name) => name.startsWith(".step"))).toEqual([]);
    const events = (await readFile(to("killed/events.jsonl"), "utf8")).trimEnd().split("\n");
    for (const line of events) expect(() => JSON.parse(line) as unknown).not.toThrow();
  });
});

describe("the program", () => {
  it("starts fast, and ends quietly when its reader has seen enough", async () => {
    const began = performance.now();
    expect(await new Strut("--version").ended).toMatchObject({ code: 0, err: "" });
    expect(performance.now() - began).toBeLessThan(2000);
    const run = new Strut("methods", "--json");
    run.child.stdout!.destroy();
    expect(await run.ended).toMatchObject({ code: 0, err: "" });
  });

  it("fine-tunes the bundled model from loading to merging", { timeout: 300_000 }, async () => {
    const { code, out, err } = await new Strut("demo", "--out", to("demo"), "--json").ended;
    expect([code, err]).toEqual([0, ""]);
    const shown = JSON.parse(out) as Record<string, any>;
    expect(shown["before"].loss).toBeGreaterThan(4.9);
    expect(shown["lower"]).toBeGreaterThan(0.35);
    expect(shown["max_logit_difference"]).toBeLessThan(1e-3);
    expect(shown["sample_after"]).not.toBe(shown["sample_before"]);
    expect(await names(to("demo"))).toEqual(["adapter", "checkpoints", "events.jsonl", "merged"]);
  });
});
