import { adapt, adapterParameters, type Adapter, type AdaptOptions } from "strut/adapters";
import { applyLinear, forward, makeLayer, makeModel, parameters, unfreeze, type Architecture, type LayerSpec, type Model } from "strut/models";
import type { Awaitable, Batch, Task } from "strut/nn";
import type { Optimizer } from "strut/optimizers";
import { noGrad, Parameter, scope, type Tensor } from "strut/tensor";
import { train, type TrainOptions } from "strut/training";

/** A synthetic task: a base model, data by seed, and how good an adapted model is. */
export interface Scaffold {
  readonly base: Model;
  readonly task: Task;
  /** Batch k of a run with a seed. */
  batch(seed: number, k: number): Awaitable<Batch>;
  /** The figure that the sheets quote: relative error, accuracy … on data that no run sees. */
  measure(model: Model): Promise<number>;
}

/** A model of named matrices [out, in], some with a bias, whose forward pass is `forward`; the last matrix is the head. */
export function modelOf(
  name: string,
  weights: ReadonlyMap<string, Tensor>,
  forward: (apply: (path: string, x: Tensor) => Tensor, x: Tensor) => Tensor,
  biases: ReadonlyMap<string, Tensor> = new Map(),
): Model {
  const specs = [...weights].map(([path, { shape }], depth): LayerSpec => ({ path, kind: "linear", shape, bias: biases.has(path), depth }));
  const head = specs.at(-1)!.path;
  const architecture: Architecture = {
    modelType: name,
    head,
    parse: () => ({ width: specs.at(-1)!.shape[1]!, depth: specs.length }),
    layers: () => specs,
    check: () => {},
    forward: (model, x, run) => forward((path, input) => applyLinear(model, path, input, run), x),
  };
  const leaf = (of: ReadonlyMap<string, Tensor>, path: string, kind: string): Parameter => new Parameter(of.get(path)!, `${path}.${kind}`, false);
  const layers = new Map(
    specs.map((spec) => [spec.path, makeLayer(spec, leaf(weights, spec.path, "weight"), spec.bias ? leaf(biases, spec.path, "bias") : undefined)]),
  );
  return makeModel({ architecture, config: { model_type: name }, dimensions: { width: specs.at(-1)!.shape[1]!, depth: specs.length }, layers });
}

/** A model whose own weights no longer train: a base. */
export function frozen(model: Model): Model {
  for (const w of parameters(model).values()) w.trainable = false;
  return model;
}

/** How many rows of outputs are largest at their label. */
export function hits(outputs: Float32Array, labels: Int32Array): number {
  const classes = outputs.length / labels.length;
  return labels.filter((label, row) => {
    const own = outputs.subarray(row * classes, (row + 1) * classes);
    return own.indexOf(Math.max(...own)) === label;
  }).length;
}

/** Share of the rows whose largest output is at their label. */
export async function accuracy(model: Model, { x, labels }: { readonly x: Tensor; readonly labels: Tensor }): Promise<number> {
  const outputs = noGrad(() => scope(() => forward(model, x)));
  const [values, wanted] = [(await outputs.data()) as Float32Array, (await labels.data()) as Int32Array];
  return hits(values, wanted) / wanted.length;
}

export interface Course {
  readonly steps: number;
  readonly learningRate: number;
  readonly targets?: AdaptOptions["targets"];
  /** Chooses the start, from the first batches of the seed: four, unless `calibrationBatches` says otherwise. */
  readonly initializer?: AdaptOptions["initializer"];
  readonly calibrationBatches?: number;
  /** Modules that train whole beside the adapter. */
  readonly modulesToSave?: readonly string[];
  readonly more?: Partial<TrainOptions>;
}

/** Every matrix but head and embedding; the head where there is no other. */
const inside = ({ sites, architecture: { head } }: Model): string[] =>
  sites.length === 1 ? [head] : sites.filter(({ path, kind }) => path !== head && kind !== "embedding").map(({ path }) => path);

/** A batch to calibrate on: of tokens without the one that only the last position predicts. */
const context = (batch: Batch): Batch => (batch.inputs ? batch : { ids: batch.ids.map((row) => Array.from(row).slice(0, -1)) });

// oxlint-disable-next-line typescript/no-explicit-any -- a method of any options
export type Trainer = Adapter<any, any, any> | Optimizer<any>;

/** One run of a method on a scaffold: the figure at the end, and how many parameters trained. An optimiser trains all weights of the base. */
export async function run(
  scaffold: Scaffold,
  method: Trainer,
  options: Readonly<Record<string, unknown>>,
  seed: number,
  { steps, learningRate, more = {}, ...course }: Course,
): Promise<{ figure: number; parameters: number; model: Model }> {
  const { base, task, batch, measure } = scaffold;
  // otherwise they would train beside the adapter, and the next run would start from what this one left
  if ([...parameters(base).values()].some(({ trainable }) => trainable)) throw new Error("a scaffold's base must not train: give it as frozen(model)");
  const moves = method.family === "optimizers";
  const started = moves ? unfreeze(base) : await adaptedBase(scaffold, method as Adapter, options, seed, course);
  const weights = moves ? parameters(started) : adapterParameters(started.adapters.get("default")!);
  const count = [...weights.values()].filter(({ trainable }) => trainable).reduce((sum, { size }) => sum + size, 0);
  const { model } = await train(started, {
    ...(moves ? { optimizer: { method: method as Optimizer, options }, consume: true } : {}),
    task,
    batches: (k) => batch(seed, k),
    steps,
    learningRate,
    weightDecay: 0,
    seed,
    ...more,
  });
  return { figure: await scope(() => measure(model)), parameters: count, model };
}

async function adaptedBase(
  { base, task, batch }: Scaffold,
  method: Adapter,
  options: Readonly<Record<string, unknown>>,
  seed: number,
  { targets = inside(base), initializer, calibrationBatches = 4, modulesToSave }: Omit<Course, "steps" | "learningRate">,
): Promise<Model> {
  const calibration = (): Promise<Batch[]> => Promise.all(Array.from({ length: calibrationBatches }, async (_, k) => context(await batch(seed, k))));
  return adapt(base, method, options, {
    seed,
    targets,
    ...(modulesToSave ? { modulesToSave } : {}),
    ...(initializer ? { initializer, task, calibration: await calibration() } : {}),
  });
}
