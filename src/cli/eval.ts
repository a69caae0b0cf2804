import type { Command } from "commander";
import { StrutError } from "../errors.ts";
import { evaluateText, evaluationOptions } from "../models/index.ts";
import { openModel, openText } from "../recipe/open.ts";
import { grouped, secondsText, significant } from "../report/numbers.ts";
import { facts } from "../report/table.ts";
import { start } from "../tensor/index.ts";
import { backendText, print, printJson, StatusLine, type Io } from "./io.ts";
import { givenOptions, jsonOption, schemaOptions } from "./options.ts";

const names = ["window"] as const;

interface Options {
  adapter?: string;
  data: string;
  json?: boolean;
}

export function define(command: Command, io: Io): void {
  command
    .argument("<model>", "folder of a model: config.json, safetensors, tokenizer.json")
    .option("--adapter <folder>", "a PEFT adapter to put on the model")
    .requiredOption("--data <file>", "the text, read as one string without special tokens")
    .action((folder: string, options: Options) => evaluateFile(folder, options, io));
  schemaOptions(command, evaluationOptions, names);
  command.addOption(jsonOption());
  command.addHelpText(
    "after",
    "\nThe text is cut into windows that do not overlap; the first token of each is not scored.\nloss is the mean of −log p over all scored tokens, in nats.",
  );
}

async function evaluateFile(folder: string, options: Options, io: Io): Promise<void> {
  const text = await openText(options.data);
  const engine = await start();
  const { model, tokenizer } = await openModel(folder, options);
  const status = new StatusLine(io);
  const { loss, perplexity, tokens, seconds } = await evaluateText(model, tokenizer, text, {
    ...givenOptions({ ...options }, names),
    ...(options.json
      ? {}
      : { onProgress: ({ tokens: done, total, loss: mean }) => status.show(`${Math.floor((100 * done) / total)} %  loss ${mean.toFixed(4)}`) }),
  }).finally(() => status.clear());
  if (!Number.isFinite(loss))
    throw new StrutError("nan", `the loss on ${options.data} is ${loss}`, {
      path: options.data,
      hint: "The model's weights or the adapter's may have diverged in training.",
    });
  const speed = tokens / seconds;
  if (options.json) return printJson(io, { loss, perplexity, tokens, tokens_per_second: speed });
  print(
    io,
    facts([
      ["model", options.adapter === undefined ? folder : `${folder} with ${options.adapter}`],
      ["loss", `${loss.toFixed(6)} nats a token`],
      ["perplexity", significant(perplexity, 6)],
      ["tokens", `${grouped(tokens)} scored`],
      ["time", `${secondsText(seconds)}, ${grouped(speed)} tokens/s`],
      ["backend", backendText(engine)],
    ]),
  );
}
