import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { engine, start, stop } from "strut/tensor";
import { attention } from "./attention.ts";
import { decompositions } from "./decompositions.ts";
import { gemm } from "./gemm.ts";
import { growth, growthCase } from "./growth.ts";
import type { Options } from "./measure.ts";
import { mkorSteps } from "./mkor.ts";
import { gpt2Small, llamas, type Mode } from "./models.ts";
import { comparePeer } from "./peer.ts";
import { sparse } from "./sparse.ts";
import { startUp } from "./start.ts";
import { trainStep } from "./steps.ts";

const usage = `usage: npm run bench -- gemm | svd | sparse | attention | mkor | gpt2-step | llama-step [--config 9m|60m] | step --width N --depth N --tokens N | growth
                        [--mode forward|lora|full|galore] [--update-in-backward] [--threads N] [--runs N] [--warmup N] [--json] [--check]
                        [--peer "COMMAND" [--rounds N]]   run ours and the peer in alternation and print ratios
       growth [--rounds N] writes a table and a picture into --out (bench/results)
       start [--runs N]    the time until strut has started`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: "string", default: "2" },
    runs: { type: "string" },
    warmup: { type: "string" },
    mode: { type: "string", default: "lora" },
    config: { type: "string", default: "9m" },
    width: { type: "string", default: "256" },
    depth: { type: "string", default: "4" },
    tokens: { type: "string", default: "128" },
    "update-in-backward": { type: "boolean", default: false },
    json: { type: "boolean", default: false },
    check: { type: "boolean", default: false },
    out: { type: "string", default: "bench/results" },
    peer: { type: "string" },
    rounds: { type: "string", default: "3" },
  },
});

const modes: readonly Mode[] = ["forward", "lora", "full", "galore"];
const mode = modes.find((name) => name === values.mode);
const llama = Object.entries(llamas).find(([name]) => name === values.config)?.[1];
const self = fileURLToPath(import.meta.url);
const [subcommand = ""] = positionals;

const benches: Record<string, ((options: Options) => Promise<void>) | undefined> =
  mode && llama
    ? {
        gemm,
        svd: decompositions,
        sparse,
        attention,
        mkor: mkorSteps,
        "gpt2-step": (options) => trainStep(options, gpt2Small, mode),
        "llama-step": (options) => trainStep(options, llama, mode),
        step: (options) => trainStep(options, growthCase(Number(values.width), Number(values.depth), Number(values.tokens)), mode),
      }
    : {};

const run = benches[subcommand];
if (subcommand === "start") startUp(Number(values.runs ?? 21));
else if (subcommand === "growth") await growth(self, values.out, Number(values.rounds));
else if (!run) {
  console.error(usage);
  process.exit(2);
} else if (values.peer !== undefined) {
  const skip = new Set(["--peer", "--rounds"]);
  const own = process.argv.slice(2).filter((argument, i, all) => !skip.has(argument) && !skip.has(all[i - 1] ?? ""));
  await comparePeer([process.execPath, self, ...own, "--json"].map((part) => `'${part}'`).join(" "), values.peer, Number(values.rounds));
} else {
  const number = (text: string | undefined): number | undefined => (text === undefined ? undefined : Number(text));
  const options: Options = {
    threads: Number(values.threads),
    runs: number(values.runs),
    warmup: number(values.warmup),
    json: values.json,
    check: values.check,
    updateInBackward: values["update-in-backward"],
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
  await run(options);
  stop();
}
