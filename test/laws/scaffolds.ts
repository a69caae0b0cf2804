import { files, paths } from "../../src/formats/system.ts";
import { forward, loadModel, parameters, randomModel, saveModel, type Model } from "../../src/models/index.ts";
import { makeLayer, makeModel } from "../../src/models/model.ts";
import type { Batch, Run, Site, Task } from "../../src/nn/contracts.ts";
import { classification } from "../../src/training/index.ts";
import { equalBytes } from "../support/bytes.ts";
import { add, engine, noGrad, Parameter, Rng, scope, tensor, toBytes, zeros, type Engine, type Real, type Tensor } from "../../src/tensor/index.ts";

const { join } = paths;

/** A tiny model that methods are tried on. A new architecture adds one line to `scaffolds`. */
export interface Scaffold {
  readonly name: string;
  readonly dtype: Real;
  readonly config: Readonly<Record<string, unknown>>;
  /** Largest rank that every site allows. */
  readonly mostRank: number;
  readonly ids: readonly (readonly number[])[];
  /** Of images, in place of ids. */
  readonly images?: readonly [number, number, number, number];
}

const llama = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  vocab_size: 11,
  hidden_size: 8,
  intermediate_size: 12,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 16,
  attention_bias: true,
  mlp_bias: true,
};
const gpt2 = { architectures: ["GPT2LMHeadModel"], model_type: "gpt2", vocab_size: 11, n_embd: 8, n_head: 2, n_layer: 1, n_positions: 8 };
const resnet = { architectures: ["ResNet"], model_type: "resnet-cifar", blocks_per_stage: [1, 1], widths: [4, 6], num_labels: 5, num_channels: 3 };
const ids = [
  [3, 1, 4, 1, 5],
  [9, 2, 6, 5, 3],
];

export const scaffolds: readonly Scaffold[] = [
  { name: "llama f64", dtype: "f64", config: llama, mostRank: 4, ids },
  {
    name: "llama, tied, without biases, f32",
    dtype: "f32",
    config: { ...llama, num_hidden_layers: 1, attention_bias: false, mlp_bias: false, tie_word_embeddings: true },
    mostRank: 4,
    ids,
  },
  { name: "gpt2 f64", dtype: "f64", config: gpt2, mostRank: 8, ids },
  { name: "gpt2, untied, f32", dtype: "f32", config: { ...gpt2, tie_word_embeddings: false }, mostRank: 8, ids },
  {
    name: "llama with 1×n and n×1 sites, f64",
    dtype: "f64",
    config: { ...llama, num_hidden_layers: 1, intermediate_size: 1, num_key_value_heads: 1 },
    mostRank: 1,
    ids,
  },
  { name: "resnet, f64", dtype: "f64", config: resnet, mostRank: 3, ids: [], images: [2, 3, 8, 8] },
  { name: "gpt2 of width 1, f32", dtype: "f32", config: { ...gpt2, n_embd: 1, n_head: 1 }, mostRank: 1, ids },
];

/** A folder that is gone afterwards. */
export async function inFolder<T>(body: (folder: string) => Promise<T>): Promise<T> {
  const temporary = globalThis.process?.getBuiltinModule?.("node:os").tmpdir() ?? "/tmp";
  const folder = join(temporary, `strut-laws-${crypto.randomUUID()}`);
  await files.mkdir(folder, { recursive: true });
  try {
    return await body(folder);
  } finally {
    await files.rm(folder, { recursive: true });
  }
}

const made = new WeakMap<Engine, Map<Scaffold, Promise<Base>>>();

export interface Base {
  readonly model: Model;
  /** The leaves as they were. */
  readonly bytes: ReadonlyMap<string, Uint8Array>;
}

const leafBytes = (model: Model): Map<string, Uint8Array> => new Map([...parameters(model)].map(([name, leaf]) => [name, toBytes(leaf)]));

/** Names of leaves that no longer hold what they did. */
export const changedLeaves = ({ model, bytes }: Base): string[] =>
  [...leafBytes(model)].filter(([name, now]) => !equalBytes(bytes.get(name)!, now)).map(([name]) => name);

/** The scaffold's model on the running engine: random weights, norms and biases too. */
export function baseOf(scaffold: Scaffold): Promise<Base> {
  const models = made.get(engine()) ?? new Map<Scaffold, Promise<Base>>();
  made.set(engine(), models);
  if (!models.has(scaffold)) models.set(scaffold, build(scaffold));
  return models.get(scaffold)!;
}

async function build({ config, dtype }: Scaffold): Promise<Base> {
  const rng = new Rng(1);
  const model = await inFolder(async (folder) => {
    await saveModel(
      randomModel(config, (name, shape) => rng.fork(name).normal(shape, 0.5)),
      join(folder, "model"),
    );
    return loadModel(join(folder, "model"), { dtype });
  });
  for (const [name, leaf] of parameters(model))
    if (leaf.shape.length === 1) leaf.assign(noGrad(() => scope(() => add(leaf, rng.fork(`vary/${name}`).normal(leaf.shape, 0.2, dtype)))));
  const { folder: _, ...kept } = model;
  return { model: kept, bytes: leafBytes(kept) };
}

/** The model with every matrix zero. */
export function zeroed(model: Model): Model {
  const leaves = new Map<Parameter, Parameter>();
  const zero = (leaf: Parameter): Parameter => {
    if (!leaves.has(leaf)) leaves.set(leaf, new Parameter(zeros(leaf.shape, leaf.dtype), leaf.name, false));
    return leaves.get(leaf)!;
  };
  return makeModel({
    ...model,
    layers: new Map([...model.layers].map(([path, layer]) => [path, layer.site ? makeLayer(layer.spec, zero(layer.weight), layer.bias) : layer])),
  });
}

/** What the model answers to the scaffold's input. */
export const outputOf = (model: Model, scaffold: Scaffold, run: Run = {}): Tensor => forward(model, inputOf(scaffold), run);

/** The scaffold's input: token ids, or images. */
export const inputOf = ({ ids, images, dtype }: Scaffold): Tensor =>
  images ? new Rng(2).normal(images, 1, dtype) : tensor(ids.flat(), [ids.length, ids[0]!.length], "i32");

/** Two batches to train on, and what their loss is. */
export function courseOf(scaffold: Scaffold): { batches: Batch[]; task?: Task } {
  const { ids, images } = scaffold;
  if (!images) return { batches: [ids, ids.map((row) => [...row].reverse())].map((rows) => ({ ids: rows })) };
  const labels = [
    [1, 4],
    [0, 2],
  ].map((classes) => tensor(classes, [2], "i32"));
  return { task: classification, batches: labels.map((label) => ({ ids: [], inputs: { x: inputOf(scaffold), labels: label } })) };
}

/** An input of a site that is all one number, or drawn for a gradient check. */
export const siteInput = <T extends Tensor>(site: Site, rows: number, make: (shape: readonly number[]) => T): T => {
  if (!site.conv) return make([rows, site.in]);
  const { kernel, groups } = site.conv;
  return make([rows, (site.in / (kernel[0] * kernel[1])) * groups, 3, 3]);
};
