import type { Command } from "commander";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { StrutError } from "../errors.ts";
import { fileError } from "../formats/files.ts";
import { convertAdapter, convertModel, type Converted, type StoredDType } from "../recipe/convert.ts";
import { bytesText } from "../report/numbers.ts";
import { facts } from "../report/table.ts";
import { print, printJson, type Io } from "./io.ts";
import { byteSize, dtypeOption, jsonOption, outOption, overwriteOption, refuseFilled } from "./options.ts";

interface Options {
  out: string;
  dtype?: StoredDType;
  maxShardSize?: number;
  adapterName?: string;
  overwrite?: boolean;
  json?: boolean;
}

export function define(command: Command, io: Io): void {
  command
    .argument("<in>", "folder of a model or an adapter, or a safetensors file")
    .addOption(outOption("folder for the result"))
    .addOption(dtypeOption())
    .option("--max-shard-size <size>", "largest file of a model, such as 5GB; defaults to the files it has, or 5GB", byteSize)
    .option("--adapter-name <name>", "name of the adapter: PEFT keeps one that is not called default in a subfolder of its name; defaults to default")
    .addOption(overwriteOption())
    .addOption(jsonOption())
    .action((from: string, options: Options) => convert(from, options, io));
  command.addHelpText(
    "after",
    "\nTensors go through memory one at a time. Tensors that are not floating-point keep their dtype; what does not change is written byte for byte.",
  );
}

async function convert(from: string, { out, dtype, maxShardSize, adapterName, overwrite = false, json }: Options, io: Io): Promise<void> {
  await refuseFilled(out, overwrite);
  const signal = io.interrupt();
  const common = { overwrite, signal, ...(dtype === undefined ? {} : { dtype }) };
  let result: Converted;
  if (await holds(from, "adapter_config.json")) {
    if (maxShardSize !== undefined)
      throw new StrutError("usage", `${from} is an adapter, whose weights are always one file`, { path: from, hint: "Leave out --max-shard-size." });
    result = await convertAdapter(from, out, { ...common, ...(adapterName === undefined ? {} : { name: adapterName }) });
  } else {
    if (adapterName !== undefined)
      throw new StrutError("usage", `${from} has no adapter_config.json, so it is no adapter to name`, {
        path: from,
        hint: "An adapter that is not called default lies in a subfolder: name that one.",
      });
    result = await convertModel(from, out, { ...common, ...(maxShardSize === undefined ? {} : { maxShardBytes: maxShardSize }) });
  }
  const { folder, files, tensors, converted, bytes } = result;
  if (json) return printJson(io, { out: folder, files, tensors, converted, bytes });
  print(
    io,
    facts([
      ["read", from],
      ["written", folder],
      ["files", files.join(", ")],
      ["tensors", `${tensors}, ${converted === 0 ? "none" : converted} converted${dtype === undefined ? "" : ` to ${dtype}`}`],
      ["size", bytesText(bytes)],
    ]),
  );
}

async function holds(folder: string, name: string): Promise<boolean> {
  await stat(folder).catch((cause: unknown) => {
    throw fileError(cause, folder, "read");
  });
  return stat(join(folder, name)).then(
    () => true,
    () => false,
  );
}
