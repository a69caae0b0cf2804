import type { Command } from "commander";
import { saveAdapter, toLora } from "../adapters/index.ts";
import { checkFolder } from "../formats/huggingface.ts";
import { loadModel } from "../models/index.ts";
import { openAdapter } from "../recipe/open.ts";
import { significant } from "../report/numbers.ts";
import { facts } from "../report/table.ts";
import { start } from "../tensor/index.ts";
import { print, printJson, type Io } from "./io.ts";
import { jsonOption, number, outOption, overwriteOption, refuseFilled } from "./options.ts";

interface Options {
  out: string;
  rank?: number;
  overwrite?: boolean;
  json?: boolean;
}

export function define(command: Command, io: Io): void {
  command
    .argument("<base>", "folder of the base model")
    .argument("<adapter>", "folder of an adapter of any method that can be merged")
    .option("--rank <rank>", "rank of the LoRA; at smaller matrices their smaller side; defaults to the rank that each update has", number)
    .addOption(outOption("folder for the LoRA, which PEFT reads"))
    .addOption(overwriteOption())
    .addOption(jsonOption())
    .action((base: string, adapter: string, options: Options) => convert(base, adapter, options, io));
}

async function convert(base: string, adapter: string, { out, rank, overwrite = false, json }: Options, io: Io): Promise<void> {
  await refuseFilled(out, overwrite);
  await checkFolder(base);
  await start();
  const signal = io.interrupt();
  const { model, error } = await toLora(await openAdapter(await loadModel(base), adapter), rank === undefined ? {} : { rank });
  signal.throwIfAborted();
  await saveAdapter(model, out, { overwrite });
  const worst = [...error.sites].reduce((most, site) => (site[1] > most[1] ? site : most));
  if (json) return printJson(io, { out, ...(rank === undefined ? {} : { rank }), error: error.total, sites: Object.fromEntries(error.sites) });
  print(
    io,
    facts([
      ["converted", `${adapter} to a LoRA of ${rank === undefined ? "the ranks that it has" : `rank ${rank}`}`],
      ["written", out],
      ["lost", `${significant(error.total, 3)} of the update (‖ΔW − BA‖ / ‖ΔW‖)`],
      ["most at", `${worst[0]}: ${significant(worst[1], 3)}`],
    ]),
  );
}
