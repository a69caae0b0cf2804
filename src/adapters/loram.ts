import { StrutError } from "../errors.ts";
import { openSafetensorsFile } from "../formats/safetensors-folder.ts";
import { writeSafetensors } from "../formats/safetensors-write.ts";
import { paths } from "../formats/system.ts";
import type { CalibrationBatches } from "../models/calibration.ts";
import { languageDimensions, layerAt, makeLayer, makeModel, type Layer, type Model } from "../models/model.ts";
import { toWrite } from "../models/save.ts";
import { readTensor } from "../models/stored.ts";
import { collectStatistics } from "../models/statistics.ts";
import { copyOf, hostNumbers, indexCopy, indexSelect, noGrad, Parameter, Rng, scope, tensor, zeros, type Real, type Tensor } from "../tensor/index.ts";
import { required } from "./adapt.ts";
import { withAdapters } from "./attach.ts";
import { largestPlaces } from "./sensitivity.ts";

/** Rows or columns of each pruned matrix that are left, in their order; by path. A matrix is cut at its outputs, or at its inputs. */
export type Kept = ReadonlyMap<string, { readonly side: "out" | "in"; readonly index: Int32Array }>;

export interface PruneOptions {
  /** Share of neurons and of key/value heads that go. */
  ratio: number;
  /** "random", or by first-order Taylor importance |W ⊙ ∂L/∂W| on the calibration batches; defaults to taylor. */
  select?: "taylor" | "random";
  calibration?: CalibrationBatches;
  /** First and last blocks that stay whole; defaults to [1, 1]. */
  untouched?: readonly [number, number];
  /** Of a random choice; defaults to 0. */
  seed?: number;
}

const attentionOut = ["q_proj", "k_proj", "v_proj"] as const;

/** Sums over the rows (or columns) of a matrix of scores. */
function lineSums(x: Tensor, side: "out" | "in"): Float64Array {
  const values = hostNumbers(x) as Float64Array;
  const [rows, cols] = x.shape as [number, number];
  const sums = new Float64Array(side === "out" ? rows : cols);
  values.forEach((value, at) => (sums[side === "out" ? Math.floor(at / cols) : at % cols]! += value));
  return sums;
}

const lines = (groups: readonly number[], size: number): Int32Array =>
  Int32Array.from(groups.flatMap((group) => Array.from({ length: size }, (_, i) => group * size + i)));

/**
 * What a structured pruning of a LLaMA keeps: neurons of each MLP (rows of gate and up, columns of down) and key/value heads with their
 * query groups (rows of q, k, v, columns of o), the least important cut. LoRAM, stage P.
 *
 * @example
 * const kept = await chooseKept(base, { ratio: 0.5, select: "random" });
 */
export async function chooseKept(model: Model, { ratio, select = "taylor", calibration, untouched = [1, 1], seed = 0 }: PruneOptions): Promise<Kept> {
  if (!(ratio >= 0 && ratio < 1)) throw new StrutError("option", `ratio is ${ratio}; it must lie in [0, 1)`, { path: "ratio" });
  if (model.architecture.modelType !== "llama")
    throw new StrutError("model", `a ${model.architecture.modelType} model cannot be pruned this way`, { hint: "Use a llama model." });
  const { heads, kvHeads, headSize, depth } = languageDimensions(model);
  const blocks = Array.from({ length: depth }, (_, i) => i).slice(untouched[0], Math.max(untouched[0], depth - untouched[1]));
  const names = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", ...[...attentionOut, "o_proj"].map((name) => `self_attn.${name}`)];
  const at = (block: number, name: string): string => `model.layers.${block}.${name}`;
  if (select === "taylor" && !calibration)
    throw new StrutError("data", "the importance of neurons and heads needs calibration batches", {
      path: "calibration",
      hint: 'Give them, or select: "random".',
    });
  const { sites } =
    select === "taylor"
      ? await collectStatistics(model, calibration!, { wants: ["weightTimesGradient"], sites: blocks.flatMap((block) => names.map((name) => at(block, name))) })
      : { sites: new Map() as Awaited<ReturnType<typeof collectStatistics>>["sites"] };
  const kept = new Map<string, { side: "out" | "in"; index: Int32Array }>();
  for (const block of blocks) {
    const rng = new Rng(seed).fork(`loram/${block}`);
    const inner = layerAt(model, at(block, "mlp.gate_proj")).site!.out;
    const score = (name: string, side: "out" | "in", size: number, groups: number): Float64Array => {
      const sums = lineSums(sites.get(at(block, name))!.weightTimesGradient!, side);
      return Float64Array.from({ length: groups }, (_, g) => sums.subarray(g * size, (g + 1) * size).reduce((a, b) => a + b, 0));
    };
    const total = (parts: readonly Float64Array[]): Float64Array => parts[0]!.map((_, i) => parts.reduce((sum, part) => sum + part[i]!, 0));
    const group = heads / kvHeads;
    const scores =
      select === "random"
        ? { mlp: rng.fork("mlp").permutation(inner), kv: rng.fork("kv").permutation(kvHeads) }
        : {
            mlp: total([score("mlp.gate_proj", "out", 1, inner), score("mlp.up_proj", "out", 1, inner), score("mlp.down_proj", "in", 1, inner)]),
            kv: total([
              score("self_attn.q_proj", "out", group * headSize, kvHeads),
              score("self_attn.k_proj", "out", headSize, kvHeads),
              score("self_attn.v_proj", "out", headSize, kvHeads),
              score("self_attn.o_proj", "in", group * headSize, kvHeads),
            ]),
          };
    const neurons = Int32Array.from(largestPlaces(scores.mlp, inner - Math.ceil(ratio * inner)));
    const kv = largestPlaces(scores.kv, kvHeads - Math.floor(ratio * kvHeads));
    for (const name of ["mlp.gate_proj", "mlp.up_proj"]) kept.set(at(block, name), { side: "out", index: neurons });
    kept.set(at(block, "mlp.down_proj"), { side: "in", index: neurons });
    kept.set(at(block, "self_attn.q_proj"), { side: "out", index: lines(kv, group * headSize) });
    for (const name of ["k_proj", "v_proj"]) kept.set(at(block, `self_attn.${name}`), { side: "out", index: lines(kv, headSize) });
    kept.set(at(block, "self_attn.o_proj"), { side: "in", index: lines(kv, group * headSize) });
  }
  return kept;
}

const ids = (index: Int32Array): Tensor => tensor(index, [index.length], "i32");

function cut(layer: Layer, { side, index }: { side: "out" | "in"; index: Int32Array }): Layer {
  return noGrad(() => {
    const weight = indexSelect(layer.weight, side === "out" ? 0 : 1, ids(index));
    const bias = layer.bias && (side === "out" ? indexSelect(layer.bias, 0, ids(index)) : copyOf(layer.bias));
    const leaf = (value: Tensor, kind: string): Parameter => new Parameter(value, `${layer.spec.path}.${kind}`, false);
    return makeLayer({ ...layer.spec, shape: weight.shape }, leaf(weight, "weight"), bias && leaf(bias, "bias"));
  });
}

/**
 * The model with only what is kept: smaller matrices, so less memory to train a LoRA on. Its own weights may be aligned (trained on) first.
 *
 * @example
 * const small = pruneModel(base, await chooseKept(base, { ratio: 0.5, select: "random" }));
 */
export function pruneModel(model: Model, kept: Kept): Model {
  const layers = new Map([...model.layers].map(([path, layer]) => [path, kept.has(path) ? cut(layer, kept.get(path)!) : layer]));
  return makeModel({ ...model, layers, adapters: new Map(), active: [] });
}

export interface RecoverOptions {
  /** The adapter of the pruned model; defaults to the active one. */
  name?: string;
  /** What fills the columns of A that were cut: zeros, or N(0, 1/8²); defaults to zero. */
  fill?: "zero" | "normal";
  /** Of the normal fill; defaults to 0. */
  seed?: number;
}

/**
 * A LoRA that was trained on the pruned model, scattered to the shapes of the full one: rows of B at kept outputs, columns of A at kept
 * inputs, zeros elsewhere. Zhang et al. 2025, arXiv:2502.13533 (LoRAM), stage R.
 *
 * @example
 * const kept = await chooseKept(base, { ratio: 0.5, select: "random" });
 * const large = recover(await adapt(pruneModel(base, kept), lora, { r: 2 }), base, kept);
 */
export function recover(pruned: Model, full: Model, kept: Kept, { name = pruned.active[0] ?? "default", fill = "zero", seed = 0 }: RecoverOptions = {}): Model {
  const set = required(pruned, name);
  const entries = new Map(
    [...set.entries].map(([path, params]) => {
      const at = kept.get(path);
      if (!at) return [path, params] as const;
      const { A, B } = params as { A?: Tensor; B?: Tensor };
      if (!A || !B)
        throw new StrutError("adapter", `adapter ${name} at ${path} has no factors A and B to put back`, { hint: "Train a LoRA on the pruned model." });
      const site = layerAt(full, path).site!;
      const whole = noGrad(() =>
        scope(() => {
          if (at.side === "out") return { B: scattered(B, 0, at.index, zeros([site.out, B.shape[1]!], B.dtype as Real)) };
          const shape = [A.shape[0]!, site.in];
          const rest = fill === "zero" ? zeros(shape, A.dtype as Real) : new Rng(seed).fork(path).normal(shape, 1 / 8, A.dtype as Real);
          return { A: scattered(A, 1, at.index, rest) };
        }),
      );
      return [
        path,
        { ...params, ...Object.fromEntries(Object.entries(whole).map(([key, value]) => [key, new Parameter(value, `${name}/${path}/${key}`)])) },
      ] as const;
    }),
  );
  return withAdapters(full, new Map([...full.adapters, [name, { ...set, entries }]]), [name]);
}

const scattered = (x: Tensor, axis: 0 | 1, index: Int32Array, onto: Tensor): Tensor => indexCopy(onto, axis, [...index], x);

/** Writes what was kept beside an adapter: `<path>.kept_rows` or `<path>.kept_columns`, i32, in kept.safetensors. */
export async function saveKept(kept: Kept, folder: string): Promise<void> {
  const tensors = [...kept].map(([path, { side, index }]) => toWrite(`${path}.${side === "out" ? "kept_rows" : "kept_columns"}`, ids(index)));
  await writeSafetensors(paths.join(folder, "kept.safetensors"), tensors, { metadata: { format: "pt" } });
}

/** Reads what `saveKept` wrote. */
export async function loadKept(folder: string): Promise<Kept> {
  const path = paths.join(folder, "kept.safetensors");
  const file = await openSafetensorsFile(path);
  try {
    const kept = new Map<string, { side: "out" | "in"; index: Int32Array }>();
    for (const key of file.entries.keys()) {
      const [, module, side] = /^(.+)\.kept_(rows|columns)$/.exec(key) ?? [];
      if (!module) throw new StrutError("files", `${path} holds ${key}, which says nothing about kept rows or columns`, { path });
      const index = Int32Array.from(hostNumbers(await readTensor(file, key, "f32", path)) as Int32Array);
      if (index.some((place, i) => place < 0 || (i > 0 && place <= index[i - 1]!)))
        throw new StrutError("files", `${path}: the places in ${key} do not rise`, { path });
      kept.set(module, { side: side === "rows" ? "out" : "in", index });
    }
    return kept;
  } finally {
    await file.close();
  }
}
