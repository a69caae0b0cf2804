import type { Command } from "commander";
import { readdir, stat } from "node:fs/promises";
import { StrutError } from "../errors.ts";
import { fileError } from "../formats/files.ts";
import { readConfig } from "../formats/huggingface.ts";
import { openPeftDirectory } from "../formats/peft-directory.ts";
import type { TensorEntry } from "../formats/safetensors.ts";
import { openWeights } from "../formats/safetensors-folder.ts";
import { checkVocabulary, loadTokenizer } from "../formats/tokenizer.ts";
import { architectureOf, areLanguage, type LanguageDimensions } from "../models/index.ts";
import { layersOf } from "../models/pruned-config.ts";
import { bytesText, grouped } from "../report/numbers.ts";
import { facts } from "../report/table.ts";
import { start } from "../tensor/index.ts";
import { print, printJson, type Io } from "./io.ts";
import { jsonOption } from "./options.ts";
import { readPackage } from "./package.ts";

/** What is known of something: JSON keys, and the lines a person reads. */
interface Known {
  readonly json: Record<string, unknown>;
  readonly lines: readonly (readonly [string, string | undefined])[];
}

export function define(command: Command, io: Io): void {
  command
    .argument("[path]", "folder of a model or an adapter, or a safetensors file; without it, the engine is shown")
    .addOption(jsonOption())
    .action(async (path: string | undefined, { json }: { json?: boolean }) => {
      const known = path === undefined ? await aboutEngine() : await aboutPath(path);
      if (json) printJson(io, known.json);
      else print(io, facts(known.lines));
    });
}

async function aboutEngine(): Promise<Known> {
  const {
    backend: { name, variant, threads },
    notes,
  } = await start();
  const { version } = await readPackage();
  const f64 = name === "reference" ? "plain TypeScript, as everything here" : "GEMM natively; other f64 operations on the reference backend";
  return {
    json: { version, node: process.versions.node, platform: process.platform, arch: process.arch, backend: name, variant, threads, f64, notes },
    lines: [
      ["strut", version],
      ["backend", name],
      ["variant", variant],
      ["threads", String(threads)],
      ["f64", f64],
      ["passed over", notes.length > 0 ? notes.join("\n") : undefined],
      ["Node", `${process.versions.node} on ${process.platform}-${process.arch}`],
    ],
  };
}

async function aboutPath(path: string): Promise<Known> {
  const status = await stat(path).catch((cause: unknown) => {
    throw fileError(cause, path, "read");
  });
  if (!status.isDirectory()) return aboutWeights(path);
  const names = await readdir(path);
  return names.includes("adapter_config.json") || (!names.includes("config.json") && names.length > 0 && !names.some((name) => name.endsWith(".safetensors")))
    ? aboutAdapter(path)
    : aboutModel(path);
}

interface Contents {
  readonly tensors: number;
  readonly parameters: number;
  readonly bytes: number;
  readonly dtypes: Record<string, number>;
}

/** Counts and sizes of stored tensors; dtypes by how many tensors have them. */
function contents(entries: Iterable<TensorEntry>): Contents {
  const dtypes: Record<string, number> = {};
  let [tensors, parameters, bytes] = [0, 0, 0];
  for (const { dtype, shape, begin, end } of entries) {
    tensors++;
    parameters += shape.reduce((product, n) => product * n, 1);
    bytes += end - begin;
    dtypes[dtype] = (dtypes[dtype] ?? 0) + 1;
  }
  return { tensors, parameters, bytes, dtypes };
}

const contentLines = ({ tensors, parameters, bytes, dtypes }: Contents): [string, string][] => [
  ["parameters", `${grouped(parameters)} in ${tensors} tensors`],
  ["size", bytesText(bytes)],
  [
    "dtype",
    Object.entries(dtypes)
      .map(([dtype, count]) => (count === tensors ? dtype : `${dtype} (${count})`))
      .join(", "),
  ],
];

async function aboutWeights(path: string): Promise<Known> {
  const weights = await openWeights(path);
  try {
    const held = contents(weights.entries.values());
    const metadata = Object.entries(weights.metadata);
    return {
      json: { kind: "safetensors", ...held, metadata: weights.metadata },
      lines: [
        ["file", path],
        ...contentLines(held),
        ["metadata", metadata.length > 0 ? metadata.map(([key, value]) => `${key}: ${value.slice(0, 100)}`).join("\n") : undefined],
      ],
    };
  } finally {
    await weights.close();
  }
}

/** What the tokenizer of a folder is like; a folder need not have one. */
async function aboutTokenizer(folder: string, vocabularySize: number): Promise<{ json: unknown; text: string }> {
  if (!(await readdir(folder)).includes("tokenizer.json")) return { json: null, text: "none (no tokenizer.json)" };
  try {
    const tokenizer = await loadTokenizer(folder);
    checkVocabulary(tokenizer, vocabularySize);
    return {
      json: { tokens: tokenizer.vocabularySize, bos: tokenizer.bos ?? null, eos: tokenizer.eos ?? null },
      text: `${grouped(tokenizer.vocabularySize)} tokens`,
    };
  } catch (error) {
    if (!(error instanceof StrutError)) throw error;
    return { json: { error: error.message }, text: error.message };
  }
}

const headsOf = ({ heads, headSize, kvHeads }: LanguageDimensions): string =>
  `${heads} heads of ${headSize}${kvHeads === heads ? "" : `, ${kvHeads} for keys and values`}`;

async function aboutModel(folder: string): Promise<Known> {
  const config = await readConfig(folder);
  const architecture = architectureOf(config);
  const dimensions = architecture.parse(config);
  const { depth, width } = dimensions;
  const language = areLanguage(dimensions) ? dimensions : undefined;
  const specs = layersOf(architecture, dimensions, config);
  const sites = specs.filter(({ kind }) => kind !== "norm");
  const weights = await openWeights(folder);
  try {
    const held = contents(weights.entries.values());
    const name = String((config["architectures"] as unknown[] | undefined)?.[0] ?? architecture.modelType);
    const tokenizer = language && (await aboutTokenizer(folder, language.vocabularySize));
    const linear = [...new Set(sites.filter(({ kind }) => kind === "linear").map(({ path }) => path.split(".").at(-1)!))];
    return {
      json: {
        kind: "model",
        architecture: name,
        modelType: architecture.modelType,
        ...held,
        files: weights.files.length,
        layers: depth,
        width,
        ...(language && {
          heads: language.heads,
          kvHeads: language.kvHeads,
          headSize: language.headSize,
          context: language.context,
          vocabulary: language.vocabularySize,
          tied: language.tied,
        }),
        sites: sites.map(({ path, kind, shape }) => ({ path, kind, shape })),
        ...(tokenizer && { tokenizer: tokenizer.json }),
      },
      lines: [
        ["model", folder],
        ["architecture", `${name} (${architecture.modelType})`],
        ...contentLines(held),
        ["files", weights.files.length > 1 ? `${weights.files.length} shards` : undefined],
        ["layers", `${depth} ${language ? `of width ${width}; ${headsOf(language)}` : `blocks; ${width} features at the end`}`],
        ["sites", `${sites.length} matrices; linear: ${linear.join(", ")}`],
        ["context", language && `${grouped(language.context)} tokens`],
        ["vocabulary", language && `${grouped(language.vocabularySize)}${language.tied ? ", head tied to the embedding" : ""}`],
        ["tokenizer", tokenizer?.text],
      ],
    };
  } finally {
    await weights.close();
  }
}

async function aboutAdapter(folder: string): Promise<Known> {
  const { config, weights, close } = await openPeftDirectory(folder);
  try {
    const held = contents(weights.entries.values());
    const {
      r,
      lora_alpha: alpha,
      use_dora: dora,
      use_rslora: rslora,
    } = config as { r?: number; lora_alpha?: number; use_dora?: boolean; use_rslora?: boolean };
    const targets = config.target_modules;
    const variant = [dora ? "DoRA" : "", rslora ? "rsLoRA" : ""].filter(Boolean).join(", ");
    return {
      json: {
        kind: "adapter",
        type: config.peft_type,
        rank: r ?? null,
        alpha: alpha ?? null,
        dora: dora ?? false,
        rslora: rslora ?? false,
        targets,
        modulesToSave: config.modules_to_save,
        base: config.base_model_name_or_path,
        ...held,
      },
      lines: [
        ["adapter", folder],
        ["type", `${config.peft_type}${variant ? ` (${variant})` : ""}`],
        ["rank", r === undefined ? undefined : String(r)],
        ["alpha", alpha === undefined ? undefined : String(alpha)],
        ["targets", targets === null ? "the defaults of the model type" : typeof targets === "string" ? targets : [...targets].sort().join(", ")],
        ["saved whole", config.modules_to_save?.join(", ")],
        ["base", config.base_model_name_or_path ?? undefined],
        ...contentLines(held),
      ],
    };
  } finally {
    await close();
  }
}
