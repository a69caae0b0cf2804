import type { Command } from "commander";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { evaluate, generate, loadModel, type Evaluation, type Model } from "../models/index.ts";
import { prepare, type Prepared } from "../recipe/prepare.ts";
import { largestDifference } from "../recipe/probe.ts";
import { readRecipe } from "../recipe/read.ts";
import { clearRun, outputs, runRecipe } from "../recipe/run.ts";
import { bytesText, grouped, secondsText, significant } from "../report/numbers.ts";
import { facts, table } from "../report/table.ts";
import { engine } from "../tensor/index.ts";
import { Exit } from "./exit.ts";
import { backendText, coloured, print, printJson, StatusLine, type Io } from "./io.ts";
import { jsonOption, number, refuseFilled } from "./options.ts";
import { bundledPath, readPackage } from "./package.ts";
import { coverageFacts, TrainingProgress } from "./progress.ts";

interface Options {
  out: string;
  seed?: number;
  steps?: number;
  json?: boolean;
}

const PROMPT = "ROMEO:\n";

export function define(command: Command, io: Io): void {
  command
    .option("--out <folder>", "folder for the adapter, the merged model and the run's events; a demo that it holds is replaced", join("out", "demo"))
    .option("--seed <number>", "where all random numbers start; defaults to the recipe's", number)
    .option("--steps <number>", "training steps; defaults to the recipe's", number)
    .addOption(jsonOption())
    .action((options: Options) => demo(options, io));
  command.addHelpText("after", "\nRuns examples/shakespeare.yaml: LoRA on the bundled stories260K and tinyshakespeare.");
}

/** A folder that holds nothing but an earlier run may be written anew. */
async function makeRoom(out: string): Promise<void> {
  const names = await readdir(out).catch(() => [] as string[]);
  const known: readonly string[] = Object.values(outputs);
  const isRun = known.some((name) => names.includes(name)) && names.every((name) => known.includes(name));
  if (!isRun) await refuseFilled(out, false, "Choose another folder with --out.");
  await clearRun(out);
}

async function demo({ out, seed, steps, json }: Options, io: Io): Promise<void> {
  const began = performance.now();
  const recipe = await readRecipe(await bundledPath("examples/shakespeare.yaml"));
  await makeRoom(out);
  const say = (text: string): void => (json ? undefined : print(io, text));
  const heading = (text: string): void => say(`\n${coloured(io, "bold", text)}`);
  const prepared = await prepare({
    ...recipe,
    training: { ...recipe.training, ...(seed === undefined ? {} : { seed }), ...(steps === undefined ? {} : { steps }) },
  });
  const { base, heldOut, parameters: counts } = prepared;
  say(`strut ${(await readPackage()).version} on ${backendText(engine())}`);
  heading("Model");
  say(`${recipe.model}: ${String((base.config["architectures"] as string[])[0])}, ${grouped(counts.total)} parameters, loaded`);

  heading(`Before, on the last tenth of ${recipe.data.text}`);
  const before = await measured(base, prepared, io, { json });
  say(scoreText(before));
  const textBefore = await sample(base, prepared);
  say(quoted(textBefore, io));

  heading(`Training ${recipe.method} on the rest`);
  say(`${facts(coverageFacts(prepared.coverage!, base.sites))}\n`);
  const signal = io.interrupt();
  const progress = new TrainingProgress(io);
  const trainingBegan = performance.now();
  const result = await runRecipe(prepared, { out, signal, ...(json ? {} : { onEvent: progress.show }) }).finally(() => progress.end());
  const trainingSeconds = (performance.now() - trainingBegan) / 1000;
  if (result.stopped) {
    say(`Stopped after step ${result.step}.`);
    throw new Exit(130);
  }
  const [adapter, folder] = [result.adapter!, result.folder!];

  heading("After, with the adapter merged and the folder read back");
  const merged = await loadModel(folder);
  const { difference, positions } = await largestDifference(result.model, merged);
  const after = await measured(merged, prepared, io, { json, signal });
  const lower = 1 - after.loss / before.loss;
  say(`${scoreText(after)}: ${(100 * lower).toFixed(1)} % lower`);
  say(`max |Δlogit| between adapted and merged model: ${significant(difference, 3)}, at ${positions} positions`);
  const textAfter = await sample(merged, prepared);
  say(quoted(textAfter, io));

  const [baseBytes, adapterBytes, mergedBytes] = await Promise.all(
    [join(recipe.model, "model.safetensors"), join(adapter, "adapter_model.safetensors"), join(folder, "model.safetensors")].map(
      async (path) => (await stat(path)).size,
    ),
  );
  const seconds = (performance.now() - began) / 1000;
  if (json)
    return printJson(io, {
      before: scores(before),
      after: scores(after),
      lower,
      max_logit_difference: difference,
      held_out_tokens: heldOut!.length,
      sample_before: textBefore,
      sample_after: textAfter,
      parameters: counts,
      bytes: { base: baseBytes, adapter: adapterBytes, merged: mergedBytes },
      seconds: { training: trainingSeconds, total: seconds },
      adapter,
      merged: folder,
    });
  say(
    `\n${resultTable([
      { name: "base", score: before, parameters: counts.total, bytes: baseBytes!, seconds: undefined },
      {
        name: recipe.method,
        score: { ...after, ...result.heldOut },
        parameters: counts.trained,
        bytes: adapterBytes!,
        seconds: trainingSeconds,
      },
      { name: "merged", score: after, parameters: counts.total, bytes: mergedBytes!, seconds: undefined },
    ])}`,
  );
  say(
    `\nPEFT adapter         ${adapter}\nHugging Face folder  ${folder}\n${coloured(io, "dim", `${secondsText(seconds)} in all. Again: npm start. Next: npx strut generate ${folder} --prompt "JULIET:" --temperature 0.8`)}`,
  );
}

const scores = ({ loss, perplexity, tokens }: Evaluation): Record<string, number> => ({ loss, perplexity, tokens });

const scoreText = ({ loss, perplexity, tokens }: Evaluation): string =>
  `loss ${loss.toFixed(4)} nats a token, perplexity ${perplexity.toFixed(2)}, over ${grouped(tokens)} tokens`;

async function measured(
  model: Model,
  { heldOut, window }: Prepared,
  io: Io,
  { json, signal }: { json: boolean | undefined; signal?: AbortSignal },
): Promise<Evaluation> {
  const status = new StatusLine(io);
  const onProgress = ({ tokens, total }: { tokens: number; total: number }): void => status.show(`evaluating: ${Math.floor((100 * tokens) / total)} %`);
  return evaluate(model, heldOut!, { window, ...(json ? {} : { onProgress }), ...(signal ? { signal } : {}) }).finally(() => status.clear());
}

async function sample(model: Model, { tokenizer, recipe }: Prepared): Promise<string> {
  const { text = "" } = await generate(model, tokenizer.encode(PROMPT), {
    tokenizer,
    maxNewTokens: 90,
    temperature: 0.7,
    topP: 0.9,
    seed: recipe.training.seed,
  });
  return PROMPT + text;
}

const quoted = (text: string, io: Io): string =>
  text
    .trimEnd()
    .split("\n")
    .map((line) => coloured(io, "dim", `  │ ${line}`))
    .join("\n");

interface Row {
  readonly name: string;
  readonly score: Evaluation;
  readonly parameters: number;
  readonly bytes: number;
  readonly seconds: number | undefined;
}

const resultTable = (rows: readonly Row[]): string =>
  table(
    [
      { title: "model" },
      { title: "loss (nats)", align: "right", best: "least" },
      { title: "perplexity", align: "right", best: "least" },
      { title: "parameters", align: "right" },
      { title: "on disk", align: "right" },
      { title: "training (s)", align: "right" },
    ],
    rows.map(({ name, score: { loss, perplexity }, parameters, bytes, seconds }) => [
      name,
      { text: loss.toFixed(4), value: loss },
      { text: perplexity.toFixed(2), value: perplexity },
      grouped(parameters),
      bytesText(bytes),
      seconds === undefined ? "" : seconds.toFixed(1),
    ]),
  );
