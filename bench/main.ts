import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { engine, start, stop } from "strut/tensor";
import { gemm } from "./gemm.ts";
import type { Options } from "./measure.ts";
import { comparePeer } from "./peer.ts";
import { sparse } from "./sparse.ts";
import { trainStep } from "./steps.ts";

const usage = `usage: npm run bench -- gemm | sparse | gpt2-step [--mode forward|lora|full] [--threads N] [--runs N] [--warmup N] [--json] [--check]
                        [--peer "COMMAND" [--rounds N]]   run ours and the peer in alternation and print ratios`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string", default: "2" },
    runs: { type: "string" },
    warmup: { type: "string" },
    mode: { type: "string", default: "lora" },
    json: { type: "boolean", default: false },
    check: { type: "boolean", default: false },
    peer: { type: "string" },
    rounds: { type: "string", default: "3" },
  },
});
const [subcommand] = positionals;
const modes = ["forward", "lora", "full"] as const;
const mode = modes.find((name) => name === values.mode);
if ((subcommand !== "gemm" && subcommand !== "sparse" && subcommand !== "gpt2-step") || !mode) {
  console.error(usage);
  process.exit(2);
}
if (values.peer !== undefined) {
  const skip = new Set(["--peer", "--rounds"]);
  const own = process.argv.slice(2).filter((argument, i, all) => !skip.has(argument) && !skip.has(all[i - 1] ?? ""));
  await comparePeer(
    [process.execPath, fileURLToPath(import.meta.url), ...own, "--json"].map((part) => `'${part}'`).join(" "),
    values.peer,
    Number(values.rounds),
  );
} else {
  const number = (text: string | undefined): number | undefined => (text === undefined ? undefined : Number(text));
  const options: Options = {
    threads: Number(values.threads),
    runs: number(values.runs),
    warmup: number(values.warmup),
    json: values.json,
    check: values.check,
  };
  const { backend } = await start({ threads: options.threads });
  console.log(
    JSON.stringify({
      name: "config",
      sub: subcommand,
      backend: backend.name,
      variant: backend.variant,
      threads: engine().backend.threads,
      node: process.version,
    }),
  );
  await (subcommand === "gemm" ? gemm(options) : subcommand === "sparse" ? sparse(options) : trainStep(options, mode));
  stop();
}
