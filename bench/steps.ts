import { adapt, adapterParameters, lora, parameters, randomModel, unfreeze, type Model } from "strut";
import { add, backward, cast, engine, mul, noGrad, Parameter, Rng, scale, scope, sum, tensor, type Tensor } from "strut/tensor";
import { adamw } from "strut/optimizers";
import { languageModelLoss, train } from "strut/training";
import { median, report, resetPeak, type Options } from "./measure.ts";

/** GPT-2 small: 124,439,808 parameters, tied head. */
const config = { model_type: "gpt2", vocab_size: 50257, n_layer: 12, n_head: 12, n_embd: 768, n_positions: 1024 };
const [rows, tokens] = [4, 128];

type Mode = "forward" | "lora" | "full";

/** Random weights; with `from`, those of another model as f64. */
async function makeModel(mode: Mode, rng: Rng, from?: Model): Promise<Model> {
  const source = from && new Map([...parameters(from), ...adapterParts(from)]);
  const draw = (name: string, shape: readonly number[]): Tensor => (source ? cast(source.get(name)!, "f64") : rng.fork(name).normal(shape, 0.02));
  const base = randomModel(config, draw, { dtype: from ? "f64" : "f32" });
  if (mode === "full") return unfreeze(base);
  if (mode === "forward") return base;
  const tuned = await adapt(base, lora, { r: 8, alpha: 16 }, { targets: ["c_attn"], seed: 1 });
  // B is small instead of zero: otherwise A's first gradient is zero
  for (const [name, parameter] of adapterParts(tuned))
    if (source) parameter.assign(cast(source.get(name)!, "f64"));
    else if (name.endsWith("/B")) parameter.assign(rng.fork(name).normal(parameter.shape, 0.01));
  return tuned;
}

const adapterParts = (model: Model): Map<string, Parameter> => new Map([...model.adapters.values()].flatMap((set) => [...adapterParameters(set)]));

const trainable = (model: Model): Map<string, Parameter> =>
  new Map([...parameters(model), ...adapterParts(model)].filter(([, { trainable: trains }]) => trains));

/** f32 gradient against an f64 central difference along a masked direction that touches every trained tensor. */
async function checkGradient(mode: Mode, model: Model, batch: { ids: number[][] }, rng: Rng) {
  const gradients = scope(() => backward(languageModelLoss(model, batch)));
  const wide = await makeModel(mode, rng, model);
  let analytic = 0;
  const moves: { parameter: Parameter; exact: Tensor; direction: Tensor }[] = [];
  for (const [name, parameter] of trainable(wide)) {
    const gradient = noGrad(() => cast(gradients.get(trainable(model).get(name)!)!, "f64"));
    const values = (await gradient.data()) as Float64Array;
    const norm = Math.sqrt(values.reduce((total, x) => total + x * x, 0));
    const mask = rng.fork(`mask/${name}`);
    const direction = tensor(
      values.map((x) => (mask.random() < 0.5 ? x / norm : 0)),
      parameter.shape,
      "f64",
    );
    analytic += await noGrad(() => sum(mul(gradient, direction))).item();
    moves.push({ parameter, exact: noGrad(() => cast(cast(parameter, "f32"), "f64")), direction });
  }
  const step = 1e-4;
  const at = async (factor: number): Promise<number> => {
    for (const { parameter, exact, direction } of moves) parameter.assign(noGrad(() => add(exact, scale(direction, factor))));
    return noGrad(() => scope(() => languageModelLoss(wide, batch))).item();
  };
  const numeric = ((await at(step)) - (await at(-step))) / (2 * step);
  return { analytic, numeric, rel_error: Math.abs(analytic - numeric) / Math.abs(numeric) };
}

/** One training step of GPT-2 small on 4×128 tokens, through the public model, adapter and loop. */
export async function trainStep(options: Options, mode: Mode): Promise<void> {
  const rng = new Rng(20261125);
  const model = await makeModel(mode, rng);
  const count = [...parameters(model).values()].reduce((total, { size }) => total + size, 0);
  // each row's last token is only a target
  const batch = { ids: Array.from({ length: rows }, () => Array.from({ length: tokens + 1 }, () => rng.integer(config.vocab_size))) };
  const extra: Record<string, unknown> = { mode, parameters: count, trainable: [...trainable(model).values()].reduce((total, { size }) => total + size, 0) };
  if (options.check && mode !== "forward") extra["check"] = await checkGradient(mode, model, batch, rng);
  const [runs, warmup] = [options.runs ?? 7, options.warmup ?? 2];
  const { times, losses } = await (mode === "forward"
    ? forwardTimes(model, batch, runs + warmup)
    : stepTimes(model, batch, runs + warmup, mode === "lora" ? 1e-3 : 1e-4, options.updateInBackward));
  const kept = times.slice(warmup);
  const middle = median(kept);
  Object.assign(extra, {
    tokens_per_s: Math.round((rows * tokens * 10) / middle) / 10,
    first_loss: losses[0],
    last_loss: losses.at(-1),
    pool_mib: Math.round(engine().pool.pooledBytes / 2 ** 20),
  });
  report(options, { name: "gpt2-step", shape: `${rows}x${tokens} ${mode}`, median_s: middle, min_s: Math.min(...kept), runs, extra });
}

async function forwardTimes(model: Model, batch: { ids: number[][] }, count: number) {
  const [times, losses]: [number[], number[]] = [[], []];
  resetPeak();
  for (let i = 0; i < count; i++) {
    const start = performance.now();
    losses.push(await noGrad(() => scope(() => languageModelLoss(model, batch))).item());
    times.push((performance.now() - start) / 1000);
  }
  return { times, losses };
}

/** Seconds between the ends of consecutive steps of one run. */
async function stepTimes(model: Model, batch: { ids: number[][] }, count: number, learningRate: number, updateInBackward: boolean) {
  const [times, losses]: [number[], number[]] = [[], []];
  let last = performance.now();
  resetPeak();
  await train(model, {
    batches: [batch],
    steps: count,
    learningRate,
    updateInBackward,
    optimizer: { method: adamw, options: { weightDecay: 0.01 } },
    onEvent(event) {
      if (event.event === "start") last = performance.now();
      if (event.event !== "step") return;
      const now = performance.now();
      times.push((now - last) / 1000);
      losses.push(event.loss);
      last = now;
    },
  });
  return { times, losses };
}
