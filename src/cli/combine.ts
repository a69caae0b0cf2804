import { type Command, InvalidArgumentError, Option } from "commander";
import { combinations, combine, loadAdapter, saveAdapter, type CombineOptions, type Combination } from "../adapters/index.ts";
import { adapters as methodsOfCatalog } from "../catalog.ts";
import { checkFolder } from "../formats/huggingface.ts";
import { loadModel } from "../models/index.ts";
import { facts } from "../report/table.ts";
import { start } from "../tensor/index.ts";
import { print, printJson, type Io } from "./io.ts";
import { jsonOption, number, outOption, overwriteOption, refuseFilled } from "./options.ts";

interface Options extends Pick<CombineOptions, "density" | "majoritySign" | "rank" | "clamp" | "seed"> {
  out: string;
  weights: number[];
  type?: Combination;
  overwrite?: boolean;
  json?: boolean;
}

function numbers(text: string): number[] {
  const values = text.split(",").map(Number);
  if (values.every(Number.isFinite)) return values;
  throw new InvalidArgumentError("It must be numbers with commas between, such as 0.7,0.3.");
}

export function define(command: Command, io: Io): void {
  command
    .argument("<base>", "folder of the base model")
    .argument("<adapters...>", "folders of the adapters")
    .requiredOption("--weights <numbers>", "one weight for each adapter, such as 0.7,0.3", numbers)
    .addOption(new Option("--type <type>", "how, by PEFT's name; defaults to cat, the exact weighted sum").choices(combinations))
    .option("--density <share>", "share of the entries that ties, dare and magnitude_prune keep", number)
    .addOption(new Option("--majority-sign <how>", "how ties elects a sign; defaults to total").choices(["total", "frequency"]))
    .option("--rank <rank>", "rank of an svd combination; defaults to the largest of the adapters", number)
    .option("--clamp <quantile>", "clips the factors of an svd combination", number)
    .option("--seed <seed>", "of what dare drops; defaults to 0", number)
    .addOption(outOption("folder for the LoRA, which PEFT reads"))
    .addOption(overwriteOption())
    .addOption(jsonOption())
    .action((base: string, folders: string[], options: Options) => combineFolders(base, folders, options, io));
}

async function combineFolders(base: string, folders: readonly string[], { out, weights, overwrite = false, json, ...options }: Options, io: Io): Promise<void> {
  await refuseFilled(out, overwrite);
  await checkFolder(base);
  await start();
  const signal = io.interrupt();
  const methods = await methodsOfCatalog();
  let model = await loadModel(base);
  for (const [i, folder] of folders.entries()) model = await loadAdapter(model, folder, { methods, name: `adapter-${i}`, trainable: false });
  const names = folders.map((_, i) => `adapter-${i}`);
  const combined = await combine(model, names, weights, { ...options, as: "combined" });
  signal.throwIfAborted();
  await saveAdapter(combined, out, { overwrite });
  if (json) return printJson(io, { out, adapters: folders, weights });
  print(
    io,
    facts([
      ["combined", folders.map((folder, i) => `${weights[i]} × ${folder}`).join("\n")],
      ["by", options.type ?? "cat"],
      ["written", out],
    ]),
  );
}
