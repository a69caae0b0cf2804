import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { adalora, attachedTo, budgetAt, dora, loadAdapter, lora, saveAdapter, type Adapter } from "../../../src/adapters/index.ts";
import { openSafetensorsFile } from "../../../src/formats/safetensors-folder.ts";
import { loadModel, parameters, unfreeze, type Model } from "../../../src/models/index.ts";
import type { Batch, Regime } from "../../../src/nn/contracts.ts";
import { start, type Parameter } from "../../../src/tensor/index.ts";
import { train, type StepEvent } from "../../../src/training/index.ts";
import { logitDifference, type Inputs, type Logits } from "../logits.ts";

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
  return Array.from({ length: count }, (_, b) => ({
    ids: Array.from({ length: rows }, (_, r) => ids.slice((b * rows + r) * tokens, (b * rows + r + 1) * tokens)),
  }));
}

const settings = { steps: 8, learningRate: 1e-3, schedule: "linear", warmup: 2, clip: 1 } as const;

const distance = (a: ArrayLike<number>, b: ArrayLike<number>): number => Array.from(a).reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!)), 0);

/** Largest relative distance. */
const relative = (a: readonly number[], b: readonly number[]): number => a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!) / Math.abs(b[i]!)), 0);

function checkSteps(run: string, steps: readonly StepEvent[], expected: Expected): void {
  const [losses, norms] = [
    relative(
      steps.map(({ loss }) => loss),
      expected.losses,
    ),
    relative(
      steps.map(({ gradNorm }) => gradNorm),
      expected.grad_norms,
    ),
  ];
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

interface Run {
  readonly steps: StepEvent[];
  readonly gradients: Map<Parameter, Promise<ArrayLike<number>>>;
}

/** Distance allowed to the gradients of step 0: a few roundings of their common norm. */
const gradientBound = (expected: Expected): number => 2e-6 * expected.grad_norms[0]!;

/** The recorded run; `watched` has a regime read the gradients, so that clipping happens in place and not in the kernel. */
async function runOn(model: Model, { accumulate = 1, watched = true } = {}): Promise<Run> {
  const run: Run = { steps: [], gradients: new Map() };
  const regimes = watched ? [firstGradients(run.gradients)] : [];
  await train(model, { ...settings, accumulate, batches: await batches(), regimes, onEvent: (event) => event.event === "step" && void run.steps.push(event) });
  return run;
}

/** Largest distance over the tensors of a file. */
async function worst(path: string, ours: (name: string) => Promise<ArrayLike<number>>): Promise<number> {
  let most = 0;
  for (const [name, wanted] of await readTensors(path)) most = Math.max(most, distance(await ours(name), wanted));
  return most;
}

describe("training as torch and PEFT do it", () => {
  it.each([true, false])("full: every parameter of the model (gradients watched: %s)", async (watched) => {
    const model = unfreeze(await loadModel("data/lm/stories260K"));
    const { steps, gradients } = await runOn(model, { watched });
    const expected = await expectedOf("full");
    checkSteps("full", steps, expected);
    const named = parameters(model);
    if (watched)
      expect(await worst(join(here, "full/grads_step0_some.safetensors"), (name) => gradients.get(named.get(name)!)!)).toBeLessThan(gradientBound(expected));
    const final = await worst(join(here, "full/final_some.safetensors"), (name) => named.get(name)!.data() as Promise<Float32Array>);
    expect(final).toBeLessThan(2e-5);
  });

  it.each([
    ["lora", "lora", 1],
    ["lora-filled", "lora-filled", 1],
    ["lora-accum2", "lora", 2],
    ["dora", "dora", 1],
  ] as const)("%s", async (run, initial, accumulate) => {
    const model = await loadAdapter(await loadModel("data/lm/stories260K"), join(here, initial, "initial"), { methods: [dora, lora] });
    const { steps, gradients } = await runOn(model, { accumulate });
    const expected = await expectedOf(run);
    checkSteps(run, steps, expected);

    const names = { A: "lora_A.weight", B: "lora_B.weight", m: "lora_magnitude_vector.weight" } as const;
    const { entries } = model.adapters.get("default")!;
    const byName = new Map(
      [...entries].flatMap(([path, params]) =>
        Object.entries(params).map(([key, w]): [string, Parameter] => [`${path}.${names[key as keyof typeof names]}`, w as Parameter]),
      ),
    );
    expect(await worst(join(here, run, "grads_step0.safetensors"), (name) => gradients.get(byName.get(name)!)!)).toBeLessThan(gradientBound(expected));

    const saved = join(await mkdtemp(join(tmpdir(), "strut-")), "adapter");
    await saveAdapter(model, saved);
    const ours = await readTensors(join(saved, "adapter_model.safetensors"));
    const final = await worst(join(here, run, "final/adapter_model.safetensors"), async (name) => ours.get(name)!);
    await rm(join(saved, ".."), { recursive: true });
    expect(final).toBeLessThan(2e-5);
  });
});

describe("AdaLoRA", () => {
  it("loses, prunes and ends as PEFT's allocator does, step by step", async () => {
    const { steps, modules, inputs, final_eval_logits } = JSON.parse(await readFile(join(here, "adalora/expected.json"), "utf8")) as {
      steps: { loss: number; budget: number; nonzero: number; mask: number[][] }[];
      modules: string[];
      inputs: Inputs;
      final_eval_logits: Logits;
    };
    const methods = [adalora as unknown as Adapter];
    const model = await loadAdapter(await loadModel("data/lm/stories260K"), join(here, "adalora/initial"), { methods });
    const options = attachedTo(model, "default")!.options;
    const { entries } = attachedTo(model, "default")!;
    const [all, sites] = [await batches(), modules.map((path) => entries.get(path)!)];
    const masks: number[][][] = [];
    const watch: Regime = {
      async afterStep() {
        masks.push(await Promise.all(sites.map(async ({ E }) => [...(await E!.data())].map((e) => Number(e !== 0)))));
      },
    };
    const losses: number[] = [];
    await train(model, {
      batches: all,
      steps: steps.length,
      learningRate: 5e-3,
      weightDecay: 0.01,
      regimes: [watch],
      onEvent: (event) => {
        if (event.event === "step") losses.push(event.loss + (event.extraLoss ?? 0));
      },
    });
    expect(steps.map((_, i) => budgetAt(i + 1, steps.length, sites.length, options as never).budget)).toEqual(steps.map(({ budget }) => budget));
    expect(
      relative(
        losses,
        steps.map(({ loss }) => loss),
      ),
    ).toBeLessThan(1e-5);
    expect(masks).toEqual(steps.map(({ mask }) => mask));
    expect(await logitDifference(model, inputs, final_eval_logits)).toBeLessThan(1e-3);
  });
});
