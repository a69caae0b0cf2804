import type { Command } from "commander";
import type { z } from "zod";
import { prepare, type Prepared } from "../recipe/prepare.ts";
import { readRecipe } from "../recipe/read.ts";
import { clearRun, outputs, runRecipe, type RunResult } from "../recipe/run.ts";
import { recipeSchema } from "../recipe/schema.ts";
import { grouped } from "../report/numbers.ts";
import { facts } from "../report/table.ts";
import { engine } from "../tensor/index.ts";
import { backendText, print, printJson, type Io } from "./io.ts";
import { jsonOption, outOption, refuseFilled } from "./options.ts";
import { coverageFacts, TrainingProgress } from "./progress.ts";
import { Exit } from "./exit.ts";

interface Options {
  recipe: string;
  out: string;
  resume?: boolean;
  overwrite?: boolean;
  json?: boolean;
}

export function define(command: Command, io: Io): void {
  command
    .requiredOption("--recipe <file>", "what to train and how, in YAML")
    .addOption(outOption("folder for events.jsonl, checkpoints and the result"))
    .option("--resume", "go on from the newest checkpoint in the folder; start if there is none")
    .option("--overwrite", "start anew in a folder that holds a run, whose files are removed")
    .addOption(jsonOption())
    .action((options: Options) => trainRecipe(options, io));
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

async function trainRecipe({ recipe: path, out, resume = false, overwrite = false, json }: Options, io: Io): Promise<void> {
  const recipe = await readRecipe(path);
  if (!resume) await refuseFilled(out, overwrite, "Choose a new folder, add --resume to go on with the run in it, or --overwrite to start anew.");
  const prepared = await prepare(recipe);
  if (!resume && overwrite) await clearRun(out);
  if (!json) print(io, `${describedRun(prepared)}\n`);
  const progress = new TrainingProgress(io);
  const began = performance.now();
  // from here on Ctrl-C saves; before, nothing was written that would need it
  const result = await runRecipe(prepared, { out, resume, signal: io.interrupt(), onEvent: json ? (event) => printJson(io, event) : progress.show }).finally(
    () => progress.end(),
  );
  const { adapter, folder, checkpoint, reason, step, loss, heldOut } = result;
  if (json) printJson(io, { event: "result", step, reason, loss, heldOut, adapter, folder, checkpoint });
  else print(io, `\n${describedResult(result, out, (performance.now() - began) / 1000)}`);
  if (!result.stopped) return;
  if (!json) print(io, `\nStopped. To go on: strut train --recipe ${path} --out ${out} --resume`);
  throw new Exit(130);
}

const describedRun = ({ recipe, model, coverage, parameters: { trained, total }, batches, heldOut, window }: Prepared): string =>
  facts([
    ["model", recipe.model],
    ["method", recipe.method],
    ...(coverage ? coverageFacts(coverage, model.sites) : []),
    ["trains", `${grouped(trained)} parameters (the model has ${grouped(total)})`],
    [
      "text",
      `${recipe.data.text}: ${grouped(batches.epochLength ?? 0)} batches of ${recipe.training.batchSize} × ${window} tokens${heldOut ? `, ${grouped(heldOut.length)} tokens held out` : ""}`,
    ],
    ["backend", backendText(engine())],
  ]);

const describedResult = ({ step, reason, loss, best, heldOut, adapter, folder, checkpoint }: RunResult, out: string, seconds: number): string =>
  facts([
    ["ended", `${reason} after step ${step}, ${seconds.toFixed(1)} s`],
    ["training loss", `${loss.toFixed(4)} in the last step`],
    ["held-out loss", heldOut && `${heldOut.loss.toFixed(4)}, perplexity ${heldOut.perplexity.toFixed(2)}, at step ${heldOut.step}`],
    ["best held out", best && best.step !== heldOut?.step ? `${best.loss.toFixed(4)} at step ${best.step}` : undefined],
    ["adapter", adapter],
    ["model", folder],
    ["checkpoint", checkpoint],
    ["events", `${out}/${outputs.events}`],
  ]);
