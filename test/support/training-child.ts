import { createHash } from "node:crypto";
import { adapt, adapterParameters, lora } from "../../src/adapters/index.ts";
import { engine, start } from "../../src/tensor/index.ts";
import { train } from "../../src/training/index.ts";
import { busy } from "./probe.ts";
import { tinyBatches, tinyModel } from "./tiny-model.ts";

const say = (line: object): void => void process.stdout.write(`${JSON.stringify(line)}\n`);

/** Trains with a checkpoint every other step, going on where an earlier process was killed; ends with a digest of the weights. */
async function interruptible(dir: string, steps: number): Promise<void> {
  const stop = new AbortController();
  process.on("SIGINT", () => stop.abort());
  const model = await busy(tinyModel());
  const options = { batches: tinyBatches(7), steps, learningRate: 0.03, clip: 1, seed: 8, evaluate: { every: 5, data: tinyBatches(2, 9) } };
  const result = await train(model, { ...options, checkpoint: { dir, every: 2 }, resume: true, signal: stop.signal, onEvent: say });
  const digest = createHash("sha256");
  for (const w of adapterParameters(model.adapters.get("default")!).values())
    digest.update(String(w.shape)).update(new Uint8Array(((await w.data()) as Float32Array).buffer));
  say({ digest: digest.digest("hex"), stopped: result.stopped });
}

/** Trains a thousand steps; tells what the pool and the process hold at step 100 and at the end. */
async function memory(): Promise<void> {
  await train(await adapt(tinyModel(), lora, { r: 2, dropout: 0.1 }), {
    batches: tinyBatches(3),
    learningRate: 0.05,
    steps: 1000,
    clip: 1,
    accumulate: 2,
    evaluate: { every: 50, data: tinyBatches(2) },
    onEvent(event) {
      if (event.event === "step" && (event.step === 100 || event.step === 1000))
        say({ pooled: engine().pool.pooledBytes, resident: process.memoryUsage().rss });
    },
  });
}

export async function main([mode, dir, steps]: string[]): Promise<void> {
  await start();
  await (mode === "memory" ? memory() : interruptible(dir!, Number(steps)));
}
