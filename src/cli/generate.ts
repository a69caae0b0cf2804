import type { Command } from "commander";
import { generate, generationOptions } from "../models/index.ts";
import { openModel } from "../recipe/open.ts";
import { start } from "../tensor/index.ts";
import { coloured, printJson, type Io } from "./io.ts";
import { givenOptions, jsonOption, schemaOptions } from "./options.ts";

const names = ["maxNewTokens", "temperature", "topK", "topP", "repetitionPenalty", "seed", "stopStrings"] as const;

interface Options {
  adapter?: string;
  prompt: string;
  json?: boolean;
}

export function define(command: Command, io: Io): void {
  command
    .argument("<model>", "folder of a model: config.json, safetensors, tokenizer.json")
    .requiredOption("--prompt <text>", "the text to continue")
    .option("--adapter <folder>", "a PEFT adapter to put on the model")
    .action((folder: string, options: Options) => continueText(folder, options, io));
  schemaOptions(command, generationOptions, names, { stopStrings: "--stop <text...>" });
  command.addOption(jsonOption());
}

async function continueText(folder: string, options: Options, io: Io): Promise<void> {
  await start();
  const { model, tokenizer } = await openModel(folder, options);
  const began = performance.now();
  let shown = false;
  /** The prompt comes with the first token, so that an error before it stands alone. */
  const show = (piece: string): void => {
    io.stdout.write(shown ? piece : coloured(io, "dim", options.prompt) + piece);
    shown = true;
  };
  const {
    ids,
    text = "",
    reason,
  } = await generate(model, tokenizer.encode(options.prompt), {
    ...givenOptions({ ...options }, names, { stopStrings: "stop" }),
    tokenizer,
    signal: io.interrupt(),
    ...(options.json ? {} : { onToken: ({ text: piece = "" }) => show(piece) }),
  });
  if (!options.json) return show("\n");
  printJson(io, { prompt: options.prompt, text, ids, reason, tokens_per_second: ids.length / ((performance.now() - began) / 1000) });
}
