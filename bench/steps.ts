import { parameters, type Model } from "strut";
import { adamw, galore } from "strut/optimizers";
import { engine, noGrad, Rng, scope } from "strut/tensor";
import { languageModelLoss, train } from "strut/training";
import { watchKernels, type KernelTimes } from "./kernel-time.ts";
import { median, report, resetPeak, type Options } from "./measure.ts";
import { checkGradient, makeModel, trainable, type Case, type Mode } from "./models.ts";

type Tokens = { ids: number[][] };

/** Training steps of one case, through the public model, adapter and loop. */
export async function trainStep(options: Options, tried: Case, mode: Mode): Promise<void> {
  const rng = new Rng(20261125);
  const model = await makeModel(tried, mode, rng);
  const count = [...parameters(model).values()].reduce((total, { size }) => total + size, 0);
  const { rows, tokens } = tried;
  // each row's last token is only a target
  const batch = { ids: Array.from({ length: rows }, () => Array.from({ length: tokens + 1 }, () => rng.integer(tried.config.vocab_size))) };
  const trained = [...trainable(model).values()].reduce((total, { size }) => total + size, 0);
  const extra: Record<string, unknown> = { mode, parameters: count, trainable: trained };
  if (options.check && mode !== "forward") extra["check"] = await checkGradient(tried, mode, model, batch, rng);
  const [runs, warmup] = [options.runs ?? 7, options.warmup ?? 2];
  const clocks = watchKernels();
  const timed = mode === "forward" ? forwardTimes(model, batch, runs + warmup, warmup, clocks) : stepTimes(model, batch, runs, warmup, clocks, mode, options);
  const { times, losses } = await timed;
  const kept = times.slice(warmup);
  const middle = median(kept);
  Object.assign(extra, {
    tokens_per_s: Math.round((rows * tokens * 10) / middle) / 10,
    first_loss: losses[0],
    last_loss: losses.at(-1),
    // the first step makes the projectors
    ...(mode === "galore" ? { refresh_s: times[0]! - middle } : {}),
    pool_mib: Math.round(engine().pool.pooledBytes / 2 ** 20),
    ...clocks.shares(kept.reduce((total, seconds) => total + seconds, 0)),
  });
  report(options, { name: tried.name, shape: `${rows}x${tokens} ${mode}`, median_s: middle, min_s: Math.min(...kept), runs, extra });
}

async function forwardTimes(model: Model, batch: Tokens, count: number, warmup: number, clocks: KernelTimes) {
  const [times, losses]: [number[], number[]] = [[], []];
  resetPeak();
  for (let i = 0; i < count; i++) {
    if (i === warmup) clocks.reset();
    const start = performance.now();
    losses.push(await noGrad(() => scope(() => languageModelLoss(model, batch))).item());
    times.push((performance.now() - start) / 1000);
  }
  return { times, losses };
}

/** Seconds between the ends of consecutive steps of one run. */
async function stepTimes(model: Model, batch: Tokens, runs: number, warmup: number, clocks: KernelTimes, mode: Mode, options: Options) {
  const [times, losses]: [number[], number[]] = [[], []];
  let last = performance.now();
  resetPeak();
  await train(model, {
    batches: [batch],
    steps: runs + warmup,
    learningRate: mode === "lora" ? 1e-3 : 1e-4,
    updateInBackward: options.updateInBackward,
    optimizer:
      mode === "galore" ? { method: galore, options: { rank: 128, updateProjGap: 200, scale: 0.25 } } : { method: adamw, options: { weightDecay: 0.01 } },
    onEvent(event) {
      if (event.event === "start") last = performance.now();
      if (event.event !== "step") return;
      const now = performance.now();
      times.push((now - last) / 1000);
      losses.push(event.loss);
      last = now;
      if (event.step === warmup) clocks.reset();
    },
  });
  return { times, losses };
}
