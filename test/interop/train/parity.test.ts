import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { openSafetensorsFile } from "../../../src/formats/safetensors-folder.ts";
import { loadModel, parameters, unfreeze } from "../../../src/models/index.ts";
import type { Batch, Regime } from "../../../src/nn/contracts.ts";
import { start, type Parameter } from "../../../src/tensor/index.ts";
import { train, type StepEvent } from "../../../src/training/index.ts";

// Runs of torch and PEFT on stories260K, made by interop/make/train.py: AdamW 1e-3, decay 0.01, linear schedule with 2 warm-up steps of 8, clip 1.
const here = "test/interop/train";

interface Expected {
  readonly steps: number;
  readonly losses: number[];
  readonly grad_norms: number[];
  readonly lrs: number[];
}

const expectedOf = async (run: string): Promise<Expected> => JSON.parse(await readFile(join(here, run, "expected.json"), "utf8")) as Expected;

async function readTensors(path: string): Promise<Map<string, Float32Array>> {
  const file = await openSafetensorsFile(path);
  const found = new Map<string, Float32Array>();
  for (const name of file.entries.keys()) found.set(name, new Float32Array((await file.read(name)).slice().buffer));
  await file.close();
  return found;
}

async function batches(): Promise<Batch[]> {
  const file = await openSafetensorsFile(join(here, "batches.safetensors"));
  const { shape } = file.entries.get("ids")!;
  const ids = Array.from(new BigInt64Array((await file.read("ids")).slice().buffer), Number);
  await file.close();
  const [count, rows, tokens] = shape as [number, number, number];
  return Array.from({ length: count }, (_, b) => ({ ids: Array.from({ length: rows }, (_, r) => ids.slice((b * rows + r) * tokens, (b * rows + r + 1) * tokens)) }));
}

const settings = { steps: 8, learningRate: 1e-3, schedule: "linear", warmup: 2, clip: 1 } as const;

const distance = (a: ArrayLike<number>, b: ArrayLike<number>): number => Array.from(a).reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!)), 0);

/** Largest relative distance. */
const relative = (a: readonly number[], b: readonly number[]): number => a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!) / Math.abs(b[i]!)), 0);

function checkSteps(run: string, steps: readonly StepEvent[], expected: Expected): void {
  const [losses, norms] = [relative(steps.map(({ loss }) => loss), expected.losses), relative(steps.map(({ gradNorm }) => gradNorm), expected.grad_norms)];
  console.log(`${run}: losses ${losses.toExponential(1)}, gradient norms ${norms.toExponential(1)} relative`);
  expect(steps.map(({ learningRate }) => learningRate)).toEqual(expected.lrs.map((rate) => expect.closeTo(rate, 12) as number));
  expect(losses).toBeLessThan(2e-6);
  expect(norms).toBeLessThan(2e-6);
}

/** Keeps the gradients of step 0, before clipping. */
function firstGradients(kept: Map<Parameter, Promise<ArrayLike<number>>>): Regime {
  return {
    afterBackward(t) {
      if (t.step > 0) return;
      for (const w of t.parameters.values()) {
        const gradient = t.gradient(w);
        if (gradient) kept.set(w, gradient.data() as Promise<Float32Array>);
      }
    },
  };
}

beforeAll(() => start());

describe("training as torch and PEFT do it", () => {
  it("full: every parameter of the model", async () => {
    const expected = await expectedOf("full");
    const model = unfreeze(await loadModel("data/lm/stories260K"));
    const steps: StepEvent[] = [];
    const gradients = new Map<Parameter, Promise<ArrayLike<number>>>();
    await train(model, { ...settings, batches: await batches(), regimes: [firstGradients(gradients)], onEvent: (event) => event.event === "step" && void steps.push(event) });
    checkSteps("full", steps, expected);
    const named = parameters(model);
    for (const [name, wanted] of await readTensors(join(here, "full/grads_step0_some.safetensors"))) expect(distance(await gradients.get(named.get(name)!)!, wanted), name).toBeLessThan(2e-6);
    let most = 0;
    for (const [name, wanted] of await readTensors(join(here, "full/final_some.safetensors"))) most = Math.max(most, distance((await named.get(name)!.data()) as Float32Array, wanted));
    console.log(`full: final tensors ${most.toExponential(1)}`);
    expect(most).toBeLessThan(2e-5);
  });
});
