import { parse } from "csv-parse/sync";
import { readFile, writeFile } from "node:fs/promises";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { adapters } from "strut";
import { adapt, adapterParameters, fullFineTuning as full, type Adapter } from "strut/adapters";
import { cifar10Images, imageBatches, type LabelledImages } from "strut/data";
import { applyLinear, forward, loadModel, makeLayer, makeModel, unfreeze, type Architecture, type LayerSpec, type Model } from "strut/models";
import type { Batch, Task } from "strut/nn";
import { crossEntropy, engine, noGrad, Parameter, scale, scope, start, stop, tensor, zeros, type Tensor } from "strut/tensor";
import { loadTokenizer } from "strut/formats";
import { classification, train } from "strut/training";
import { hits } from "./trends/scaffolds/model.ts";

// npm run real-tasks [-- ID ...] [--fresh]: trains every adapter of the catalog on real models and data, and keeps each run in bench/results.
const results = "bench/results/2026-11-25-real-tasks";

/** A real model and task that every method is tried on. */
interface RealTask {
  readonly title: string;
  readonly base: Model;
  readonly task: Task;
  readonly head: string;
  readonly targets: readonly string[];
  readonly steps: number;
  batch(k: number): Batch;
  /** Rows that choose a method's rate. */
  readonly chooses: readonly Batch[];
  readonly test: readonly Batch[];
}

interface Result {
  readonly before: number;
  readonly after?: number;
  readonly rate?: number;
  /** Trainable numbers beside the head's. */
  readonly parameters?: number;
  readonly seconds: number;
  readonly failed?: string;
}

/** Every method trains at each; the one that is best on the rows that choose is kept. */
const rates = [3e-4, 2e-3, 1e-2];

/** Options of methods that refuse their defaults on so small models or in so short runs. */
const settings: Readonly<Record<string, Readonly<Record<string, unknown>>>> = { increlora: { topH: 4, increInterval: 1 }, mos: { r: 2 } };

interface Question {
  readonly text: string;
  readonly category: string;
}

const readRows = (content: string): Question[] => parse(content, { columns: true });

/** Task of padded texts: inputs x and mask [rows, tokens], labels [rows]. */
const intents: Task = {
  ...classification,
  name: "intents",
  loss: (model, { inputs }, run) => crossEntropy(forward(model as Model, inputs!["x"]!, { ...run, mask: inputs!["mask"]! }), inputs!["labels"]!),
};

/** A linear layer over an encoder's sentence vectors (brought to the length √width); it starts at 0. */
function withClassifier(encoder: Model, classes: number): Model {
  const { output, ...rest } = encoder.architecture;
  const { width } = encoder.dimensions;
  const spec: LayerSpec = { path: "classifier", kind: "linear", shape: [classes, width], bias: true, depth: encoder.dimensions.depth };
  const architecture: Architecture = {
    ...rest,
    head: "classifier",
    layers: (dimensions) => [...rest.layers(dimensions), spec],
    forward: (model, ids, run) => scale(output!(applyLinear(model, rest.head, rest.forward(model, ids, run), run)), Math.sqrt(width)),
  };
  const leaf = (name: string, shape: readonly number[]): Parameter => new Parameter(zeros(shape), `classifier.${name}`, false);
  const head = makeLayer(spec, leaf("weight", [classes, width]), leaf("bias", [classes]));
  return makeModel({ ...encoder, architecture, layers: new Map([...encoder.layers, ["classifier", head]]) });
}

/** The first so many rows of each class. */
function perClass<T extends { category: string }>(rows: readonly T[], count: number): T[] {
  const seen = new Map<string, number>();
  return rows.filter(({ category }) => {
    const n = (seen.get(category) ?? 0) + 1;
    seen.set(category, n);
    return n <= count;
  });
}

async function banking(): Promise<RealTask> {
  const folder = "data/encoder/use-lite";
  const [encoder, tokenizer] = [await loadModel(folder), await loadTokenizer(folder)];
  const [trainRows, testRows] = await Promise.all(["train", "test"].map(async (name) => readRows(await readFile(`data/text/banking77/${name}.csv`, "utf8"))));
  const names = [...new Set(trainRows!.map(({ category }) => category))].sort().slice(0, 20);
  const encoded = (rows: ReturnType<typeof readRows>, count: number) =>
    perClass(
      rows.filter(({ category }) => names.includes(category)),
      count,
    ).map(({ text, category }) => ({ ids: tokenizer.encode(text).slice(0, 24), label: names.indexOf(category) }));
  const batchOf = (rows: ReturnType<typeof encoded>): Batch => {
    const tokens = Math.max(...rows.map(({ ids }) => ids.length));
    const padded = (value: (ids: readonly number[], t: number) => number): Tensor =>
      tensor(
        rows.flatMap(({ ids }) => Array.from({ length: tokens }, (_, t) => value(ids, t))),
        [rows.length, tokens],
        "i32",
      );
    const labels = tensor(
      rows.map(({ label }) => label),
      [rows.length],
      "i32",
    );
    return { ids: [], inputs: { x: padded((ids, t) => ids[t] ?? 0), mask: padded((ids, t) => Number(t < ids.length)), labels } };
  };
  const rows = encoded(trainRows!, 20);
  const [size, stride] = [16, 997]; // a step coprime to the number of rows mixes the classes
  const batch = (k: number): Batch => batchOf(Array.from({ length: size }, (_, i) => rows[((k * size + i) * stride) % rows.length]!));
  const held = encoded(testRows!, 15);
  const heldBatches = (keep: (i: number) => boolean): Batch[] => {
    const own = held.filter((_, i) => keep(i));
    return Array.from({ length: Math.ceil(own.length / 25) }, (_, i) => batchOf(own.slice(25 * i, 25 * (i + 1))));
  };
  const blank = withClassifier(encoder, names.length);
  const probe = unfreeze(blank, (name) => name.startsWith("classifier."));
  const { model: base } = await train(probe, { task: intents, batches: batch, steps: 60, learningRate: 1e-2, weightDecay: 0 });
  for (const leaf of ["weight", "bias"] as const) base.layers.get("classifier")![leaf]!.trainable = false;
  const targets = encoder.sites.filter(({ kind }) => kind === "linear").map(({ path }) => path);
  return {
    title: "USE-lite on 20 intents of Banking77",
    base,
    task: intents,
    head: "classifier",
    targets,
    steps: 15,
    batch: (k) => batch(60 + k),
    chooses: heldBatches((i) => i % 3 === 0),
    test: heldBatches((i) => i % 3 !== 0),
  };
}

/** The same pictures as photographic negatives. */
const inverted = (images: LabelledImages): LabelledImages => ({ ...images, pixels: images.pixels.map((value) => 255 - value) });

/** Images from `from` to before `until`. */
function part({ shape, pixels, labels }: LabelledImages, from: number, until: number): LabelledImages {
  const size = shape.reduce((a, b) => a * b, 1);
  return { count: until - from, shape, pixels: pixels.slice(from * size, until * size), labels: labels.slice(from, until) };
}

async function negatives(): Promise<RealTask> {
  const images = inverted(cifar10Images(await readFile("data/vision/cifar10-subset/test_batch_1000.bin")));
  const base = await loadModel("data/vision/resnet20-cifar10");
  const [mean, std] = [base.config["image_mean"], base.config["image_std"]] as [number[], number[]];
  const batches = imageBatches(part(images, 0, 600), { rows: 16, mean, std, shuffle: 0 });
  const made = ({ images: x, labels }: ReturnType<typeof batches.batch>): Batch => ({ ids: [], inputs: { x, labels } });
  const held = (from: number, until: number): Batch[] => {
    const own = imageBatches(part(images, from, until), { rows: 50, mean, std });
    return Array.from({ length: own.epochLength }, (_, k) => made(own.batch(k)));
  };
  return {
    title: "ResNet-20 on CIFAR-10 negatives",
    base,
    task: classification,
    head: "linear",
    targets: base.sites.filter(({ kind }) => kind === "conv2d").map(({ path }) => path),
    steps: 40,
    batch: (k) => made(batches.batch(k)),
    chooses: held(600, 800),
    test: held(800, 1000),
  };
}

/** Share of the held-out rows whose largest output is at their label. */
async function accuracy(model: Model, test: readonly Batch[]): Promise<number> {
  let [right, count] = [0, 0];
  for (const { inputs } of test) {
    const mask = inputs!["mask"];
    const outputs = noGrad(() => scope(() => forward(model, inputs!["x"]!, mask ? { mask } : {})));
    const [values, labels] = [(await outputs.data()) as Float32Array, (await inputs!["labels"]!.data()) as Int32Array];
    right += hits(values, labels);
    count += labels.length;
  }
  return right / count;
}

/** One method, or none, on one task: a row of the table. */
async function run(real: RealTask, before: number, method?: Adapter): Promise<Result> {
  const began = performance.now();
  const seconds = (): number => Math.round((performance.now() - began) / 100) / 10;
  try {
    let [best, model, parameters, rate] = [-1, real.base, 0, 0];
    for (const learningRate of rates) {
      const start = await adapt(real.base, method ?? full, method ? (settings[method.id] ?? {}) : {}, {
        targets: method ? real.targets : [real.head],
        ...(method ? { modulesToSave: [real.head] } : {}),
      });
      const own = [...adapterParameters(start.adapters.get("default")!)].filter(([name, w]) => w.trainable && !name.includes(real.head));
      const result = await train(start, { task: real.task, batches: real.batch, steps: real.steps, learningRate, weightDecay: 0, clip: 1 });
      const chosen = await accuracy(result.model, real.chooses);
      if (chosen > best) [best, model, parameters, rate] = [chosen, result.model, own.reduce((sum, [, { size }]) => sum + size, 0), learningRate];
    }
    return { before, after: await accuracy(model, real.test), rate, parameters, seconds: seconds() };
  } catch (error) {
    return { before, seconds: seconds(), failed: (error as Error).message };
  }
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

function tableOf(title: string, kept: Readonly<Record<string, Result>>): string {
  const rows = Object.entries(kept).map(([id, { before, after, rate, parameters, seconds, failed }]) =>
    failed !== undefined
      ? `| ${id} | ${percent(before)} | failed: ${failed} | | | ${seconds} |`
      : `| ${id} | ${percent(before)} | ${percent(after!)} | ${rate} | ${parameters} | ${seconds} |`,
  );
  return [`## ${title}`, "", "| method | before | after | rate | parameters beside the head | seconds |", "|---|--:|--:|--:|--:|--:|", ...rows, ""].join("\n");
}

const { values, positionals: wanted } = parseArgs({ allowPositionals: true, options: { fresh: { type: "boolean", default: false } } });
const { backend } = await start({ threads: 1 });
const kept = JSON.parse(values.fresh ? "{}" : await readFile(`${results}.json`, "utf8").catch(() => "{}")) as Record<string, Record<string, Result>>;
const about: string[] = [];
const machine = `${cpus()[0]!.model}, ${engine().backend.threads} thread, backend ${backend.name} ${backend.variant}, Node ${process.version}`;

async function write(): Promise<void> {
  await writeFile(`${results}.json`, `${JSON.stringify(kept, null, 1)}\n`);
  const note =
    "One seed; the head trains with every method, and *head alone* is that and nothing else. The classifier begins at the end of 60 steps of its own on the frozen encoder, the ResNet's is the published one, whose running statistics move with every method.";
  const own = `Options of their own have ${Object.entries(settings)
    .map(([id, options]) => `${id} ${JSON.stringify(options)}`)
    .join(
      " and ",
    )}; the learning rate is the one of three that is best on rows of their own. So few rows and steps show that a method trains, not which one is better.`;
  const tables = Object.entries(kept).map(([title, rows]) => tableOf(title, rows));
  await writeFile(
    `${results}.md`,
    [
      "# Every adapter on real models and data",
      "",
      `\`npm run real-tasks\`. ${machine}.`,
      "",
      note,
      "",
      own,
      "",
      ...about.flatMap((line) => [line, ""]),
      ...tables,
    ].join("\n"),
  );
}

for (const make of [banking, negatives]) {
  const real = await make();
  const done = (kept[real.title] ??= {});
  const before = await accuracy(real.base, real.test);
  const kinds = new Set(real.targets.map((path) => real.base.layers.get(path)!.spec.kind));
  const fitting = (await adapters()).filter((method) => [...kinds].every((kind) => method.kinds.some((own) => own === kind)));
  const rows = real.test.reduce((n, batch) => n + real.task.scored(batch), 0);
  about.push(`${real.title}: ${real.steps} steps of 16 rows, rates ${rates.join(", ")}, ${rows} held-out rows beside those that choose the rate.`);
  for (const method of [undefined, ...fitting]) {
    const id = method?.id ?? "head alone";
    if ((wanted.length > 0 && !wanted.includes(id)) || (wanted.length === 0 && done[id]?.after !== undefined)) continue;
    done[id] = await run(real, before, method);
    console.log(real.title, id, JSON.stringify(done[id]));
    await write();
  }
}
await write();
stop();
