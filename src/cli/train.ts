import type { Command } from "commander";
import type { z } from "zod";
import { parameters, type Model } from "../models/index.ts";
import { prepare, type Prepared } from "../recipe/prepare.ts";
import { parseRecipe, readRecipe } from "../recipe/read.ts";
import { clearRun, outputs, runRecipe, type RunResult } from "../recipe/run.ts";
import { recipeSchema, type Recipe } from "../recipe/schema.ts";
import type { MemoryEvent, TrainingEvent } from "../training/index.ts";
import { bytesText, grouped } from "../report/numbers.ts";
import { facts } from "../report/table.ts";
import { engine } from "../tensor/index.ts";
import { backendText, print, printJson, type Io } from "./io.ts";
import { jsonOption, outOption, refuseFilled } from "./options.ts";
import { coverageFacts, heldOutText, TrainingProgress } from "./progress.ts";
import { Exit } from "./exit.ts";

interface Options {
  recipe?: string;
  fromScratch?: string;
  tokenizer?: string;
  data?: string;
  memory?: boolean;
  out: string;
  resume?: boolean;
  overwrite?: boolean;
  json?: boolean;
}

export function define(command: Command, io: Io): void {
  command
    .option("--recipe <file>", "what to train and how, in YAML; not needed with --from-scratch and --data")
    .option("--from-scratch <config>", "train a model of this config.json from random weights, in place of the recipe's model")
    .option("--tokenizer <folder>", "the tokenizer to use, in place of the recipe's")
    .option("--data <text>", "text file to train on, in place of the recipe's")
    .addOption(outOption("folder for events.jsonl, checkpoints and the result"))
    .option("--memory", "print the bytes of weights, gradients, states and activations, and the peak of the process")
    .option("--resume", "go on from the newest checkpoint in the folder; start if there is none")
    .option("--overwrite", "start anew in a folder that holds a run, whose files are removed")
    .addOption(jsonOption())
    .action((options: Options) => trainRecipe(options, command, io));
  command.addHelpText(
    "after",
    () =>
      `\nA recipe holds, in camelCase or snake_case, with paths relative to itself:\n${facts(described(recipeSchema))}\n\nCtrl-C saves a checkpoint and ends with code 130; run the same with --resume to go on.`,
  );
}

/** Keys of a schema with their descriptions, those of objects inside below theirs. */
function described(schema: z.ZodObject, indent = "  "): [string, string][] {
  return Object.entries(schema.shape).flatMap(([name, field]): [string, string][] => {
    const inner = objectInside(field as z.ZodType);
    return [[`${indent}${name}`, (field as z.ZodType).description ?? ""], ...(inner ? described(inner, `${indent}  `) : [])];
  });
}

function objectInside(field: z.ZodType): z.ZodObject | undefined {
  const { innerType, shape } = field.def as { innerType?: z.ZodType; shape?: unknown };
  return shape ? (field as z.ZodObject) : innerType && objectInside(innerType);
}

/** The recipe with what the command line has in its place; without a recipe, one of that alone. */
async function recipeOf({ recipe: path, fromScratch, tokenizer, data }: Options, command: Command): Promise<Recipe> {
  if (path === undefined) {
    if (fromScratch === undefined || data === undefined) command.error("error: needs '--recipe <file>', or '--from-scratch <config>' with '--data <text>'");
    return parseRecipe(JSON.stringify({ model: fromScratch, fromScratch: true, tokenizer, data: { text: data } }), "command line");
  }
  const recipe = await readRecipe(path);
  return {
    ...recipe,
    ...(fromScratch === undefined ? {} : { model: fromScratch, fromScratch: true, method: recipe.fromScratch ? recipe.method : "full" }),
    ...(tokenizer === undefined ? {} : { tokenizer }),
    ...(data === undefined ? {} : { data: { ...recipe.data, text: data } }),
  };
}

async function trainRecipe(options: Options, command: Command, io: Io): Promise<void> {
  const { out, resume = false, overwrite = false, json } = options;
  const recipe = await recipeOf(options, command);
  if (!resume) await refuseFilled(out, overwrite, "Choose a new folder, add --resume to go on with the run in it, or --overwrite to start anew.");
  const prepared = await prepare(recipe);
  if (!resume && overwrite) await clearRun(out);
  if (!json) print(io, `${describedRun(prepared)}\n`);
  const progress = new TrainingProgress(io);
  const began = performance.now();
  // from here on Ctrl-C saves; before, nothing was written that would need it
  let memory: MemoryEvent | undefined;
  const onEvent = (event: TrainingEvent): void => {
    if (event.event === "memory") memory = event;
    if (json) printJson(io, event);
    else progress.show(event);
  };
  const result = await runRecipe(prepared, { out, resume, signal: io.interrupt(), onEvent }).finally(() => progress.end());
  const { adapter, folder, pruned, checkpoint, reason, step, loss, heldOut } = result;
  if (json) printJson(io, { event: "result", step, reason, loss, heldOut, adapter, folder, pruned, checkpoint });
  else print(io, `\n${describedResult(result, out, (performance.now() - began) / 1000)}`);
  if (options.memory && memory) {
    const process = peakRss();
    if (json) printJson(io, { ...memory, event: "memory-peak", process });
    else print(io, `\n${describedMemory(memory, process)}`);
  }
  if (!result.stopped) return;
  if (!json) print(io, `\nStopped. To go on: strut train${sourceFlags(options)} --out ${out} --resume`);
  throw new Exit(130);
}

const sizes = (model: Model): number => [...parameters(model).values()].reduce((sum, { size }) => sum + size, 0);

const describedRun = ({ recipe, model, base, pruned, coverage, parameters: { trained, total }, batches, heldOut, window }: Prepared): string =>
  facts([
    ["model", recipe.fromScratch ? `${recipe.model}, from random weights` : recipe.model],
    ["method", recipe.method],
    [
      "trained on",
      pruned && `${grouped(sizes(pruned.model))} of the model's ${grouped(sizes(base))} parameters${pruned.sparse ? ", those that are zero included" : ""}`,
    ],
    ...(coverage ? coverageFacts(coverage, model.sites) : []),
    ["trains", `${grouped(trained)} parameters (the model has ${grouped(total)})`],
    [
      "text",
      `${recipe.data.text}: ${grouped(batches.epochLength ?? 0)} batches of ${recipe.training.batchSize} × ${window} tokens${heldOut ? `, ${grouped(heldOut.length)} tokens held out` : ""}`,
    ],
    ["backend", backendText(engine())],
  ]);

/** What was named on the command line to train from, to be named again. */
function sourceFlags({ recipe, fromScratch, tokenizer, data }: Options): string {
  const flags = { recipe, "from-scratch": fromScratch, tokenizer, data };
  return Object.entries(flags)
    .map(([flag, value]) => (value === undefined ? "" : ` --${flag} ${value}`))
    .join("");
}

/** Most memory this process had, in bytes. */
const peakRss = (): number => process.resourceUsage().maxRSS * 1024;

const describedMemory = ({ weights, gradients, states, activations, peak }: MemoryEvent, whole: number): string =>
  facts([
    ["weights", bytesText(weights)],
    ["gradients", bytesText(gradients)],
    ["optimizer states", bytesText(states)],
    ["activations", bytesText(activations)],
    ["peak of the step", bytesText(peak)],
    ["peak of the process", bytesText(whole)],
  ]);

const describedResult = ({ step, reason, loss, best, heldOut, adapter, folder, pruned, checkpoint }: RunResult, out: string, seconds: number): string =>
  facts([
    ["ended", `${reason} after step ${step}, ${seconds.toFixed(1)} s`],
    ["training loss", `${loss.toFixed(4)} in the last step`],
    ["held-out loss", heldOut && `${heldOutText(heldOut)}, at step ${heldOut.step}`],
    ["best held out", best && best.step !== heldOut?.step ? `${best.loss.toFixed(4)} at step ${best.step}` : undefined],
    ["adapter", adapter],
    ["model", folder],
    ["smaller base", pruned],
    ["checkpoint", checkpoint],
    ["events", `${out}/${outputs.events}`],
  ]);
