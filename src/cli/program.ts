import { Command, CommanderError, type OutputConfiguration } from "commander";
import { errorText } from "../report/errors.ts";
import { Exit } from "./exit.ts";
import type { Io } from "./io.ts";

/** Sets up a command's arguments and options; its action gives the exit code through `done`. */
export type Define = (command: Command, io: Io) => void;

const commands: Record<string, { summary: string; hidden?: true; load: () => Promise<{ define: Define }> }> = {
  demo: { summary: "Fine-tune the bundled model on Shakespeare, from loading to merging.", load: () => import("./demo.ts") },
  info: { summary: "Show the engine, or what a model, adapter or safetensors file holds.", load: () => import("./info.ts") },
  train: { summary: "Fine-tune a model by a recipe.", load: () => import("./train.ts") },
  compare: { summary: "Train several methods under one budget, and draw up a table of them.", load: () => import("./compare.ts") },
  "compare-job": { summary: "Run one job of strut compare.", hidden: true, load: () => import("./compare-job.ts") },
  eval: { summary: "Measure how well a model predicts a text.", load: () => import("./eval.ts") },
  generate: { summary: "Continue a text.", load: () => import("./generate.ts") },
  merge: { summary: "Fold an adapter into its base model.", load: () => import("./merge.ts") },
  combine: { summary: "Make one LoRA of several adapters.", load: () => import("./combine.ts") },
  "to-lora": { summary: "Convert any mergeable adapter to a LoRA of a rank.", load: () => import("./to-lora.ts") },
  convert: { summary: "Change dtype, sharding or adapter naming of a folder.", load: () => import("./convert.ts") },
  methods: { summary: "List the methods, or describe one.", load: () => import("./methods.ts") },
};

const environment = `
Environment:
  STRUT_BACKEND  native, wasm or reference; defaults to the fastest that works
  STRUT_CPU      avx512, avx2 or baseline, for the native backend
  STRUT_THREADS  compute threads
  STRUT_DEBUG    1 shows where an error happened
  NO_COLOR       plain text; so do pipes and CI`;

async function version(): Promise<string> {
  const { readPackage } = await import("./package.ts");
  return (await readPackage()).version;
}

/** Commander's own sentences in strut's form. */
const output = (io: Io): OutputConfiguration => ({
  writeOut: (text) => void io.stdout.write(text),
  writeErr: (text) => void io.stderr.write(text),
  getOutHelpWidth: () => io.stdout.columns ?? 100,
  getErrHelpWidth: () => io.stderr.columns ?? 100,
  getOutHasColors: () => false,
  getErrHasColors: () => false,
  outputError: (text, write) =>
    write(
      text
        .replace(/^error: /, "strut: ")
        .replace(/([^.?!)\n])\n/, "$1.\n")
        .replace(/\n\(?(Did you mean .*?)\)?\n/, "\n       $1\n"),
    ),
});

/**
 * Runs strut's command line and returns the exit code: 0; 1 if something is wrong with what was given; 2 if the command
 * line itself was; 130 if Ctrl-C ended it.
 */
export async function run(argv: readonly string[], io: Io): Promise<number> {
  const name = argv.find((word) => !word.startsWith("-")) ?? "";
  const program = new Command("strut")
    .description("Structured weights for TypeScript: fine-tune, merge and evaluate language models.")
    .exitOverride()
    .configureOutput(output(io))
    .configureHelp({ sortOptions: false })
    .showHelpAfterError("       Run `strut --help` to see the commands.")
    .helpCommand(false)
    .helpOption("-h, --help", "show this help")
    .addHelpText("after", environment);
  try {
    program.version(await version(), "-V, --version", "show the version");
    const asked = Object.hasOwn(commands, name) ? name : undefined;
    for (const [id, { summary, hidden = false, load }] of Object.entries(commands)) {
      const command = program.command(id, { hidden }).description(summary).helpOption("-h, --help", "show this help");
      command.showHelpAfterError(`       Run \`strut ${id} --help\` to see its arguments and options.`);
      if (id === asked) (await load()).define(command, io);
    }
    if (argv.length === 0) {
      program.outputHelp();
      return 0;
    }
    await program.parseAsync([...argv], { from: "user" });
    return 0;
  } catch (error) {
    if (error instanceof Exit) return error.code;
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    if (error instanceof DOMException && error.name === "AbortError") {
      io.stderr.write("strut: interrupted; nothing was left half-written.\n");
      return 130;
    }
    io.stderr.write(errorText(error, { debug: io.env["STRUT_DEBUG"] === "1" }));
    return 1;
  }
}
