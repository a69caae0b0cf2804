import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import * as Plot from "@observablehq/plot";
import { parseHTML } from "linkedom";
import { median } from "./measure.ts";
import { mean, spread } from "./trends/recipe.ts";

// npm run pretraining -- pretrain | finetune [--steps N] [--only ID,…]: optimisers on real text, by the command line as a user would.

type Json = Readonly<Record<string, unknown>>;

/** What differs between the runs of a table: keys of the recipe and of its training, and the rates that are tried. */
interface Entry {
  readonly recipe?: Json;
  readonly training: (steps: number) => Json;
  readonly rates: readonly number[];
}

interface Course {
  readonly title: string;
  readonly about: string;
  readonly recipe: Json;
  readonly entries: Readonly<Record<string, Entry>>;
}

interface Run {
  readonly curve: readonly { readonly step: number; readonly loss: number }[];
  readonly memory: { readonly weights: number; readonly gradients: number; readonly states: number; readonly activations: number; readonly process: number };
  readonly seconds: number;
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { steps: { type: "string", default: "800" }, only: { type: "string" }, out: { type: "string", default: "bench/results" } },
});
const steps = Number(values.steps);
/** Rates are chosen by shorter runs of another seed. */
const searchSteps = Math.round(steps / 4);
const seeds = [1, 2, 3];

const projection = { rank: 32, updateProjGap: 50 };
const whole = { optimizer: "galore", optimizerOptions: { ...projection, scale: 0.25 } };
const jagged = (every: number): Json => ({ schedule: "jagged_cosine", scheduleOptions: { every, restartWarmup: Math.max(1, Math.round(every / 10)) } });

const courses: Readonly<Record<string, Course>> = {
  pretrain: {
    title: "Pre-training on TinyStories",
    about: "A LLaMA of 0.94 M parameters (128 wide, inner 352, 4 heads, 4 layers) from random weights, stories260K's tokenizer",
    recipe: {
      model: resolve("examples/tinystories-9m.config.json"),
      fromScratch: true,
      tokenizer: resolve("data/lm/stories260K"),
      data: { text: resolve("data/text/tinystories-part0.txt.gz"), heldOut: 0.01, window: 128 },
    },
    entries: {
      AdamW: { training: () => ({ optimizer: "adamw", weightDecay: 0 }), rates: [1e-3, 3e-3, 1e-2, 3e-2] },
      GaLore: { training: () => whole, rates: [3e-3, 1e-2, 3e-2, 1e-1] },
      "GaLore, 8-bit": {
        training: () => ({ ...whole, innerOptimizer: "adamw", innerOptions: { state: "8bit" } }),
        rates: [3e-3, 1e-2, 3e-2, 1e-1],
      },
      Fira: { training: () => ({ optimizer: "fira", optimizerOptions: { ...projection, alpha: 0.25 } }), rates: [3e-3, 1e-2, 3e-2, 1e-1] },
      FRUGAL: { training: () => ({ optimizer: "frugal", optimizerOptions: { density: 0.25, updateGap: 50 } }), rates: [1e-3, 3e-3, 1e-2] },
      ReLoRA: {
        recipe: { method: "relora", options: { r: 32, alpha: 32, dropout: 0, every: Math.round(steps / 8) }, targets: "all-linear" },
        training: () => jagged(Math.round(steps / 8)),
        rates: [1e-3, 3e-3, 1e-2],
      },
      "LoRA on random weights": {
        recipe: { method: "lora", options: { r: 32, alpha: 32 }, targets: "all-linear" },
        training: () => ({}),
        rates: [1e-3, 3e-3, 1e-2],
      },
    },
  },
  finetune: {
    title: "Fine-tuning stories260K on Shakespeare",
    about: "All of stories260K's 0.26 M parameters (64 wide, 5 layers)",
    recipe: {
      model: resolve("data/lm/stories260K"),
      method: "full",
      data: { text: resolve("data/text/tinyshakespeare.txt"), heldOut: 0.05, window: 128 },
    },
    entries: {
      AdamW: { training: () => ({ optimizer: "adamw", weightDecay: 0 }), rates: [1e-3, 3e-3, 1e-2] },
      GaLore: { training: () => ({ ...whole, optimizerOptions: { rank: 16, updateProjGap: 50, scale: 1 } }), rates: [1e-3, 3e-3, 1e-2, 3e-2] },
      OwLore: {
        training: () => ({
          optimizer: "owlore",
          optimizerOptions: { activatedLayers: 2, intervalSteps: 25, rank: 16, updateProjGap: 50, outlierThreshold: 5 },
        }),
        rates: [1e-3, 3e-3, 1e-2, 3e-2],
      },
      LISA: { training: () => ({ optimizer: "lisa", optimizerOptions: { activatedLayers: 2, intervalSteps: 25 }, weightDecay: 0 }), rates: [1e-3, 3e-3, 1e-2] },
      "SGD, momentum": { training: () => ({ optimizer: "sgd", optimizerOptions: { momentum: 0.9 } }), rates: [0.01, 0.03, 0.1, 0.3] },
      MKOR: { training: () => ({ optimizer: "mkor" }), rates: [0.01, 0.03, 0.1, 0.3] },
      LoRA: { recipe: { method: "lora", options: { r: 16, alpha: 32 }, targets: "all-linear" }, training: () => ({}), rates: [3e-3, 1e-2, 3e-2] },
    },
  },
};

const work = join(tmpdir(), `strut-pretraining-${process.pid}`);
let made = 0;

/** One run of the command line on one thread; undefined where it diverged. */
async function run(course: Course, { recipe = {}, training }: Entry, rate: number, count: number, seed: number): Promise<Run | undefined> {
  const [file, out] = [join(work, `${made}.yaml`), join(work, `out-${made++}`)];
  const shared = { batchSize: 8, schedule: "cosine", scheduleOptions: { minRate: 0.1 }, warmup: 0.1, clip: 1, evaluateEvery: Math.round(count / 8) };
  const settings = { ...shared, ...training(count), learningRate: rate, steps: count, seed };
  writeFileSync(file, JSON.stringify({ ...course.recipe, ...recipe, training: settings }));
  const child = spawn(process.execPath, ["dist/node/cli/main.js", "train", "--recipe", file, "--out", out, "--json", "--memory"], {
    env: { ...process.env, STRUT_THREADS: "1" },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let [text, problems] = ["", ""];
  child.stdout.setEncoding("utf8").on("data", (part: string) => void (text += part));
  child.stderr.setEncoding("utf8").on("data", (part: string) => void (problems += part));
  const code = await new Promise<number | null>((done) => child.on("close", done));
  rmSync(out, { recursive: true, force: true });
  if (code !== 0) {
    if (problems.includes("became")) return undefined;
    throw new Error(problems);
  }
  const events = text
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as { event: string } & Record<string, number>);
  const find = (name: string) => events.find(({ event }) => event === name) as unknown as Record<string, number>;
  const curve = events.filter(({ event }) => event === "evaluation").map(({ step, loss }) => ({ step: step!, loss: loss! }));
  return { curve, memory: find("memory-peak") as unknown as Run["memory"], seconds: find("end")["seconds"]! };
}

/** As many tasks at once as there are cores. */
async function together<T>(tasks: readonly (() => Promise<T>)[]): Promise<T[]> {
  const results: T[] = [];
  let next = 0;
  const worker = async (): Promise<void> => {
    for (let i = next++; i < tasks.length; i = next++) results[i] = await tasks[i]!();
  };
  await Promise.all(Array.from({ length: Math.min(2, cpus().length) }, worker));
  return results;
}

interface Row {
  readonly label: string;
  readonly rate: number;
  readonly tried: readonly { readonly rate: number; readonly loss: number | null }[];
  readonly runs: readonly Run[];
}

const last = (found: Run | undefined): number => found?.curve.at(-1)?.loss ?? Infinity;

async function rowOf(course: Course, label: string, entry: Entry): Promise<Row> {
  const tries = await together(entry.rates.map((rate) => () => run(course, entry, rate, searchSteps, 0)));
  const tried = entry.rates.map((rate, i) => ({ rate, loss: Number.isFinite(last(tries[i])) ? last(tries[i]) : null }));
  const { rate } = tried.toSorted((a, b) => (a.loss ?? Infinity) - (b.loss ?? Infinity))[0]!;
  const runs = (await together(seeds.map((seed) => () => run(course, entry, rate, steps, seed)))).filter((found) => found !== undefined);
  console.error(`${label}: ${tried.map((one) => `${one.rate} ${one.loss?.toFixed(3) ?? "diverged"}`).join(", ")} → ${mean(runs.map(last)).toFixed(4)}`);
  return { label, rate, tried, runs };
}

const kilobytes = (bytes: number): string => Math.round(bytes / 1e3).toLocaleString("en");

function table(course: Course, rows: readonly Row[], name: string): string {
  const lines = rows.map(({ label, rate, tried, runs }) => {
    const losses = runs.map(last);
    const { weights, gradients, states, activations, process: peak } = runs[0]!.memory;
    const edge = tried[0]!.rate === rate || tried.at(-1)!.rate === rate ? " (edge of the grid)" : "";
    return `| ${label} | ${rate}${edge} | ${mean(losses).toFixed(4)} ± ${spread(losses).toFixed(4)} | ${[weights, gradients, states, activations, peak].map(kilobytes).join(" | ")} | ${median(runs.map(({ seconds }) => seconds)).toFixed(0)} |`;
  });
  return `# ${course.title}

${course.about}: ${steps} steps of 8 × 128 tokens, cosine to a tenth after a tenth of warm-up, gradients clipped at 1. The rate of each is the best of its
grid after ${searchSteps} steps of another seed; losses are those of held-out text, mean ± standard deviation of ${seeds.length} seeds. kB as strut counts them at
the first step, the peak is the process's (Node's some 60 MB included). One thread a run, ${cpus()[0]?.model ?? "?"}, Node ${process.version}.

    npm run pretraining -- ${positionals[0]} --steps ${steps}

![curves](${name}.svg)

| optimiser | rate | held-out loss | weights kB | gradients kB | states kB | activations kB | peak kB | seconds |
|---|--:|--:|--:|--:|--:|--:|--:|--:|
${lines.join("\n")}
`;
}

function picture(rows: readonly Row[]): string {
  const { document } = parseHTML("<html><body></body></html>");
  const data = rows.flatMap(({ label, runs }) => runs[0]!.curve.map(({ step }, i) => ({ label, step, loss: mean(runs.map(({ curve }) => curve[i]!.loss)) })));
  const chart = Plot.plot({
    document,
    width: 760,
    height: 420,
    marginRight: 160,
    style: { background: "white", color: "#222", fontFamily: "sans-serif" },
    x: { label: "step" },
    y: { label: "held-out loss, nats a token", grid: true },
    color: { scheme: "dark2" },
    marks: [
      Plot.lineY(data, { x: "step", y: "loss", stroke: "label" }),
      Plot.text(data, Plot.selectLast({ x: "step", y: "loss", z: "label", text: "label", fill: "label", dx: 6, textAnchor: "start" })),
    ],
  });
  chart.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  return `${chart.outerHTML}\n`;
}

const course = courses[positionals[0] ?? ""];
if (!course) {
  console.error("usage: npm run pretraining -- pretrain | finetune [--steps N] [--only NAME,NAME] [--out FOLDER]");
  process.exit(2);
}
mkdirSync(work, { recursive: true });
mkdirSync(values.out, { recursive: true });
const name = `${new Date().toISOString().slice(0, 10)}-${positionals[0]}`;
const file = join(values.out, `${name}.json`);
const only = values.only?.split(",");
const kept = only && existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")) as Row[]) : [];
for (const [label, entry] of Object.entries(course.entries)) {
  if (only && !only.includes(label)) continue;
  const row = await rowOf(course, label, entry);
  const at = kept.findIndex((one) => one.label === label);
  if (at < 0) kept.push(row);
  else kept[at] = row;
  writeFileSync(file, `${JSON.stringify(kept, null, 1)}\n`);
}
const order = Object.keys(course.entries);
const rows = kept.toSorted((a, b) => order.indexOf(a.label) - order.indexOf(b.label));
writeFileSync(join(values.out, `${name}.md`), table(course, rows, name));
writeFileSync(join(values.out, `${name}.svg`), picture(rows));
rmSync(work, { recursive: true, force: true });
