import type { Command } from "commander";
import { merge } from "../adapters/index.ts";
import { checkFolder } from "../formats/huggingface.ts";
import { loadModel, saveModel, type SaveOptions } from "../models/index.ts";
import { largestDifference } from "../recipe/probe.ts";
import { openAdapter } from "../recipe/open.ts";
import { significant } from "../report/numbers.ts";
import { facts } from "../report/table.ts";
import { start } from "../tensor/index.ts";
import { backendText, print, printJson, type Io } from "./io.ts";
import { dtypeOption, jsonOption, outOption, overwriteOption, refuseFilled } from "./options.ts";

interface Options {
  out: string;
  dtype?: SaveOptions["dtype"];
  overwrite?: boolean;
  json?: boolean;
}

export function define(command: Command, io: Io): void {
  command
    .argument("<base>", "folder of the base model")
    .argument("<adapter>", "folder of the PEFT adapter")
    .addOption(outOption("folder for the merged model"))
    .addOption(dtypeOption())
    .addOption(overwriteOption())
    .addOption(jsonOption())
    .action((base: string, adapter: string, options: Options) => mergeFolders(base, adapter, options, io));
}

async function mergeFolders(base: string, adapter: string, { out, dtype, overwrite = false, json }: Options, io: Io): Promise<void> {
  await refuseFilled(out, overwrite);
  await checkFolder(base);
  const engine = await start();
  const signal = io.interrupt();
  const adapted = await openAdapter(await loadModel(base), adapter);
  signal.throwIfAborted();
  await saveModel(merge(adapted), out, { overwrite, ...(dtype === undefined ? {} : { dtype }) });
  // through the disk, so that rounding to a smaller dtype counts too
  const { difference, positions } = await largestDifference(adapted, await loadModel(out));
  if (json) return printJson(io, { out, max_logit_difference: difference, positions });
  print(
    io,
    facts([
      ["merged", `${base} + ${adapter}`],
      ["written", out],
      ["max |Δlogit|", `${significant(difference, 3)} between adapted and merged, at ${positions} positions`],
      ["backend", backendText(engine)],
    ]),
  );
}
