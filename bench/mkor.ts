import { randomModel, unfreeze, type Model } from "strut/models";
import type { Batch } from "strut/nn";
import { mkor, sgd } from "strut/optimizers";
import { Rng } from "strut/tensor";
import { classification, languageModelling, train, type TrainOptions } from "strut/training";
import { watchKernels } from "./kernel-time.ts";
import { median, report, type Options } from "./measure.ts";
import { gpt2Case } from "./models.ts";
import { skewedInputs } from "./trends/scaffolds/skewed-inputs.ts";

const INV_FREQ = 10;

interface Work {
  readonly name: string;
  readonly model: () => Model;
  readonly options: TrainOptions;
  /** Intervals between two updates that are timed, after one that is not, in each of the rounds. */
  readonly intervals: number;
}

async function works(): Promise<Work[]> {
  const { model, batch } = await skewedInputs("skewed");
  const held = Array.from({ length: 8 }, (_, k) => batch(1, k));
  const { config, rows, tokens } = gpt2Case("gpt2", 768, 2, 1000, 4, 128);
  const rng = new Rng(8);
  const text: Batch = { ids: Array.from({ length: rows }, () => Array.from({ length: tokens + 1 }, () => rng.integer(config.vocab_size))) };
  return [
    { name: "mlp 32-64-64-10, 128 rows", model: () => model(1), options: { task: classification, batches: held }, intervals: 30 },
    {
      name: "gpt2 768 wide, 2 blocks, 4x128",
      model: () => unfreeze(randomModel(config, (name, shape) => rng.fork(name).normal(shape, 0.02))),
      options: { task: languageModelling, batches: [text] },
      intervals: 2,
    },
  ];
}

/** Seconds a step, of each interval between two updates of the factors. */
async function intervals({ model, options, intervals: count }: Work, optimizer: NonNullable<TrainOptions["optimizer"]>): Promise<number[]> {
  const times: number[] = [];
  let last = 0;
  await train(model(), {
    ...{ ...options, optimizer, learningRate: 1e-3, steps: INV_FREQ * (count + 1) },
    onEvent({ event, ...rest }) {
      if (event !== "step" || (rest as { step: number }).step % INV_FREQ !== 0) return;
      const now = performance.now();
      if (last > 0) times.push((now - last) / 1000 / INV_FREQ);
      last = now;
    },
  });
  return times;
}

/** MKOR before SGD with momentum beside SGD with momentum alone, in turn: ratios of one run. On a busy machine the fastest intervals tell more than medians. */
export async function mkorSteps(options: Options): Promise<void> {
  const momentum = { method: sgd, options: { momentum: 0.9 } };
  const before = { method: mkor, options: { invFreq: INV_FREQ }, inner: momentum };
  for (const work of await works()) {
    const [plain, preconditioned]: [number[], number[]] = [[], []];
    for (let round = 0; round < (options.runs ?? 3); round++) {
      plain.push(...(await intervals(work, momentum)));
      preconditioned.push(...(await intervals(work, before)));
    }
    const ratio = (of: (times: readonly number[]) => number): number => Math.round((100 * of(preconditioned)) / of(plain)) / 100;
    const clocks = watchKernels();
    const seconds = (await intervals(work, before)).reduce((sum, time) => sum + time * INV_FREQ, 0);
    report(options, {
      name: "mkor",
      shape: work.name,
      median_s: median(preconditioned),
      min_s: Math.min(...preconditioned),
      runs: preconditioned.length,
      extra: { sgd_s: median(plain), ratio: ratio(median), ratio_of_fastest: ratio((times) => Math.min(...times)), ...clocks.shares(seconds) },
    });
  }
}
