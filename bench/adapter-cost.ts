import { readFile, writeFile } from "node:fs/promises";
import { cpus } from "node:os";
import { adapters } from "strut";
import { adapt, lora, merge, type Adapter } from "strut/adapters";
import { forward, randomModel, type Model } from "strut/models";
import type { Batch } from "strut/nn";
import { engine, noGrad, Rng, scope, start, stop, tensor } from "strut/tensor";
import { train } from "strut/training";
import { median } from "./measure.ts";
import { gpt2Case } from "./models.ts";

// npm run adapter-cost [-- ID ...]: time of a step and memory of every adapter beside LoRA's, kept in bench/results.
const results = "bench/results/2026-11-25-adapter-cost";
const [ROUNDS, STEPS, WARM, THREADS] = [3, 3, 1, 1];

/** Figures as ratios: of a step and its memory to LoRA's, of a merged model's forward pass to the base's. */
interface Cost {
  readonly step?: number;
  readonly memory?: number;
  readonly merged?: number;
  readonly failed?: string;
  readonly unmergeable?: string;
}

const { config, rows, tokens } = gpt2Case("gpt2", 256, 4, 1000, 4, 64);
const rng = new Rng(8);
const batch: Batch = { ids: Array.from({ length: rows }, () => Array.from({ length: tokens + 1 }, () => rng.integer(config.vocab_size))) };

/** The option that stands for a rank, at 8; a growing rank is there from the start. */
const atRank8 = ({ id, options, size = "r" }: Adapter): Record<string, number> => ({
  ...("r" in options.shape ? { r: 8 } : size in options.shape ? { [size]: 8 } : {}),
  ...more[id],
});
const more: Readonly<Record<string, Readonly<Record<string, number>>>> = { increlora: { targetRank: 8 } };

const adapted = (base: Model, method: Adapter): Promise<Model> => adapt(base, method, atRank8(method), { targets: "all-linear" });

/** Seconds of each step of a short run, and the most that it held beyond what was held before. */
async function steps(model: Model): Promise<{ times: number[]; bytes: number }> {
  const { pool } = engine();
  const times: number[] = [];
  const held = pool.usedBytes;
  pool.peakBytes = held;
  let last = performance.now();
  await train(model, {
    batches: [batch],
    steps: STEPS + WARM,
    learningRate: 1e-4,
    onEvent({ event }) {
      const now = performance.now();
      if (event === "step") times.push(now - last);
      if (event === "start" || event === "step") last = performance.now();
    },
  });
  return { times: times.slice(WARM), bytes: pool.peakBytes - held };
}

/** Two things measured in turn. */
async function alternated<T>(first: () => T | Promise<T>, second: () => T | Promise<T>, rounds: number): Promise<[T[], T[]]> {
  const [one, other]: [T[], T[]] = [[], []];
  for (let round = 0; round < rounds; round++) {
    one.push(await first());
    other.push(await second());
  }
  return [one, other];
}

async function seconds(model: Model): Promise<number> {
  const ids = tensor(
    batch.ids.flatMap((row) => Array.from(row).slice(0, tokens)),
    [rows, tokens],
    "i32",
  );
  const began = performance.now();
  const y = noGrad(() => scope(() => forward(model, ids)));
  await y.data();
  return performance.now() - began;
}

async function cost(base: Model, beside: Model, method: Adapter): Promise<Cost> {
  try {
    const model = await adapted(base, method);
    const [theirs, own] = await alternated(
      () => steps(beside),
      () => steps(model),
      ROUNDS,
    );
    const time = (runs: typeof own): number => median(runs.flatMap(({ times }) => times));
    const memory = (runs: typeof own): number => median(runs.map(({ bytes }) => bytes));
    const measured = { step: time(own) / time(theirs), memory: memory(own) / memory(theirs) };
    try {
      const whole = merge(model);
      const [plain, merged] = await alternated(
        () => seconds(base),
        () => seconds(whole),
        ROUNDS * STEPS,
      );
      return { ...measured, merged: median(merged) / median(plain) };
    } catch (error) {
      return { ...measured, unmergeable: (error as Error).message };
    }
  } catch (error) {
    return { failed: (error as Error).message };
  }
}

const wanted = process.argv.slice(2);
const { backend } = await start({ threads: THREADS });
const base = randomModel(config, (name, shape) => rng.fork(name).normal(shape, 0.02));
const beside = await adapted(base, lora as unknown as Adapter);
const kept = JSON.parse(await readFile(`${results}.json`, "utf8").catch(() => "{}")) as Record<string, Cost>;
for (const method of await adapters()) {
  if (wanted.length > 0 ? !wanted.includes(method.id) : kept[method.id]?.step !== undefined) continue;
  kept[method.id] = await cost(base, beside, method);
  console.log(method.id, JSON.stringify(kept[method.id]));
  await write();
}
stop();

async function write(): Promise<void> {
  const sorted = Object.entries(kept).sort(([, a], [, b]) => (a.step ?? Infinity) - (b.step ?? Infinity));
  const row = ([id, { step, memory, merged, failed, unmergeable }]: [string, Cost]): string =>
    failed ? `| ${id} | failed: ${failed} | | |` : `| ${id} | ${step!.toFixed(2)} | ${memory!.toFixed(2)} | ${merged?.toFixed(2) ?? `none: ${unmergeable}`} |`;
  const text = [
    "# What each adapter costs beside LoRA",
    "",
    `\`npm run adapter-cost\`. ${cpus()[0]!.model}, ${THREADS} thread, backend ${backend.name} ${backend.variant}, Node ${process.version}.`,
    "",
    `GPT-2 of random weights, width 256, 4 layers, batches of ${rows} × ${tokens} tokens, rank 8 (or the option that stands for it) on every linear module. Ratios of medians of ${ROUNDS * STEPS} steps taken in turn with LoRA's; memory is the most the pool held during a run beyond what it held before; merged is the forward pass after merging to the base's.`,
    "",
    "| method | step / LoRA's | memory / LoRA's | merged / base |",
    "|---|--:|--:|--:|",
    ...sorted.map(row),
    "",
  ];
  await writeFile(`${results}.json`, `${JSON.stringify(kept, null, 1)}\n`);
  await writeFile(`${results}.md`, text.join("\n"));
}
