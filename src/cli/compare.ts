import { type Command, InvalidArgumentError } from "commander";
import { rm } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { compare, type CompareEvent } from "../compare/compare.ts";
import { chooseMethods } from "../compare/methods.ts";
import { htmlReport, markdownReport, plotOf, textReport } from "../compare/page.ts";
import { StrutError } from "../errors.ts";
import { writeAtomically } from "../formats/files.ts";
import { recipeSchema } from "../recipe/schema.ts";
import { grouped, secondsText, significant } from "../report/numbers.ts";
import { Exit } from "./exit.ts";
import { isLively, print, printJson, StatusLine, type Io } from "./io.ts";
import { byteSize, jsonOption, number, wholeFrom } from "./options.ts";
import { bundledPath, packagePath, readPackage } from "./package.ts";

interface Options {
  methods?: string;
  budget?: number;
  budgetBytes?: number;
  model?: string;
  data?: string;
  targets?: string[];
  steps: number;
  seeds: number;
  rates: number[];
  batchSize: number;
  window: number;
  heldOut: number;
  jobs: number;
  out: string;
  json?: boolean;
}

const listed = (text: string): string[] =>
  text
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part !== "");

function rateList(text: string): number[] {
  const rates = listed(text).map(number);
  if (rates.length === 0 || rates.some((rate) => rate <= 0)) throw new InvalidArgumentError("They must be numbers above 0, such as 1e-3,3e-3,1e-2.");
  return [...new Set(rates)].toSorted((a, b) => a - b);
}

function share(text: string): number {
  const value = number(text);
  if (value > 0 && value < 1) return value;
  throw new InvalidArgumentError("It must lie between 0 and 1.");
}

export function define(command: Command, io: Io): void {
  const whole = wholeFrom(1);
  command
    .option("--methods <list>", "adapters to compare, such as lora,dora:alpha=16,rslora:r=4; defaults to all of them")
    .option("--budget <count>", "most trainable parameters of a method; defaults to a twentieth of the model's", whole)
    .option("--budget-bytes <size>", "in its place, most bytes of its saved file, such as 80k", byteSize)
    .option("--model <folder>", "the base model; defaults to the bundled stories260K")
    .option("--data <file>", "text, or .jsonl with one object with a text on each line; defaults to the bundled tinyshakespeare")
    .option("--targets <names>", "modules to adapt: names with commas between them, a pattern, or all-linear; defaults to PEFT's for the model type", listed)
    .option("--steps <count>", "training steps of each run", whole, 200)
    .option("--seeds <count>", "runs of each method at its best rate", whole, 3)
    .option("--rates <list>", "learning rates to try from the first seed", rateList, [1e-3, 3e-3, 1e-2])
    .option("--batch-size <count>", "rows of a batch", whole, 8)
    .option("--window <count>", "tokens of a row, in training and evaluation", wholeFrom(2), 128)
    .option("--held-out <share>", "share of the text, from its end, that never trains: its first half chooses the rate, its second is measured", share, 0.1)
    .option("--jobs <count>", "processes at once, of one thread each", whole, availableParallelism())
    .option("--out <folder>", "folder for the results; one that holds the same comparison is gone on with", join("out", "compare"))
    .addOption(jsonOption())
    .action((options: Options) => compareMethods(options, commandOf(command), io));
  command.addHelpText(
    "after",
    "\nEvery method sees the same text, steps and seeds; its size is the largest that fits the budget. Each run is one file in the\n" +
      "folder: after Ctrl-C, code 130, the same command goes on. In the end the folder holds table.md, result.json, pareto.svg and\n" +
      "index.html, one page with everything in it.",
  );
}

/** The command line as it would be typed again. */
function commandOf(command: Command): string {
  const quoted = (text: string): string => (/^[\w.,:=/@+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const given = command.options.flatMap((option) => {
    const name = option.attributeName();
    if (command.getOptionValueSource(name) !== "cli" || option.isBoolean()) return [];
    return [`${option.long} ${quoted(String(command.getOptionValue(name)))}`];
  });
  return ["strut compare", ...given].join(" ");
}

/** Names are a list even if there is one; what is no name is a pattern, or all-linear. */
const targetsOf = (targets: readonly string[]): string | string[] => (targets.length === 1 && !/^[\w.]+$/.test(targets[0]!) ? targets[0]! : [...targets]);

async function compareMethods(options: Options, again: string, io: Io): Promise<void> {
  const { budget, budgetBytes, out, json } = options;
  if (budget !== undefined && budgetBytes !== undefined)
    throw new StrutError("usage", "both --budget and --budget-bytes are given, but there is one budget", { path: "budget", hint: "Keep one of them." });
  const limit = budget ?? budgetBytes;
  const choices = await chooseMethods(options.methods);
  const recipe = recipeSchema.parse({
    model: options.model ?? (await bundledPath("data/lm/stories260K")),
    data: { text: options.data ?? (await bundledPath("data/text/tinyshakespeare.txt")), heldOut: options.heldOut, window: options.window },
    ...(options.targets ? { targets: targetsOf(options.targets) } : {}),
    training: { steps: options.steps, batchSize: options.batchSize, weightDecay: 0, warmup: 0.05, clip: 1 },
  });
  const signal = io.interrupt();
  const of = budgetBytes === undefined ? "parameters" : "bytes";
  const progress = new CompareProgress(io, of);
  const comparison = await compare({
    program: packagePath("dist/node/cli/main.js"),
    folder: out,
    version: (await readPackage()).version,
    recipe,
    choices,
    ...(limit === undefined ? {} : { budget: { of, limit } }),
    seeds: options.seeds,
    rates: options.rates,
    jobs: options.jobs,
    signal,
    ...(json ? {} : { onEvent: progress.show }),
  })
    .catch((error: unknown) => {
      if (!signal.aborted) throw error;
      progress.end();
      if (!json) print(io, `Stopped; what is finished is kept. To go on: ${again}`);
      throw new Exit(130);
    })
    .finally(() => progress.end());
  await writeAtomically(join(out, "result.json"), `${JSON.stringify({ command: again, ...comparison }, null, 2)}\n`);
  await writeAtomically(join(out, "table.md"), markdownReport(comparison, again));
  const plot = plotOf(comparison);
  if (plot === "") await rm(join(out, "pareto.svg"), { force: true });
  else await writeAtomically(join(out, "pareto.svg"), plot);
  await writeAtomically(join(out, "index.html"), htmlReport(comparison, again));
  if (json) return printJson(io, comparison);
  print(io, `\n${textReport(comparison, again)}\nWritten to ${out}: index.html, table.md, result.json${plot === "" ? "" : ", pareto.svg"}`);
}

/** Shows a comparison as it goes on: one line in place on a terminal, a line for each run that ended elsewhere. */
class CompareProgress {
  readonly #io: Io;
  /** Of what is stored. */
  readonly #unit: string;
  readonly #status: StatusLine;
  readonly #running = new Map<string, string>();
  readonly #began = performance.now();
  /** Runs that ended in this process. */
  #ended = 0;

  constructor(io: Io, unit: string) {
    this.#io = io;
    this.#unit = unit;
    this.#status = new StatusLine(io);
  }

  readonly show = (event: CompareEvent): void => {
    if (event.event === "planned") {
      const { plan } = event;
      if ("refused" in plan) return this.#line(`${plan.label}: ${plan.refused}`);
      const size = plan.size ? `${plan.size.name} = ${plan.size.value}` : "fixed size";
      return this.#line(`${plan.label}: ${size}, stores ${grouped(plan.stored)} ${this.#unit}${plan.note ? ` (${plan.note})` : ""}`);
    }
    const { count, total } = event.event === "done" ? event : { count: event.done, total: event.total };
    if (event.event === "progress") {
      const { step, steps, loss } = event.progress;
      this.#running.set(event.job.file, `${nameOf(event.job.file)} ${step}/${steps} ${loss.toFixed(3)}`);
    } else {
      const { job } = event.done;
      this.#running.delete(job.file);
      if (event.kept) return;
      this.#ended++;
      const said = "failed" in event.done ? event.done.failed : `loss ${event.done.measured.loss.toFixed(4)}, ${secondsText(event.done.measured.seconds)}`;
      if ("failed" in event.done || !isLively(this.#io)) this.#line(`${count}/${total}  ${nameOf(job.file)}: ${said}`);
    }
    const seconds = (performance.now() - this.#began) / 1000;
    const left = this.#ended > 0 ? `${secondsText((seconds / this.#ended) * (total - count))} left` : "";
    this.#status.show([`${count}/${total} runs`, left, ...this.#running.values()].filter((part) => part !== "").join(" | "), "cyan");
  };

  #line(text: string): void {
    this.#status.clear();
    print(this.#io, text);
  }

  end(): void {
    this.#status.clear();
  }
}

/** `lora, rate 0.003, seed 1`, of the file that holds it. */
const nameOf = (file: string): string => {
  const [, label, rate, seed] = /^jobs[\\/](.*)[\\/]rate-(.*)-seed-(\d+)\.json$/.exec(file) ?? [];
  return label === undefined ? "the base model" : `${decodeURIComponent(label)}, rate ${significant(Number(rate))}, seed ${seed}`;
};
