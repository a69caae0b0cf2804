import { StrutError } from "../errors.ts";
import { openSafetensorsFile } from "../formats/safetensors-folder.ts";
import { writeSafetensors } from "../formats/safetensors-write.ts";
import { paths } from "../formats/system.ts";
import { layerAt, type CoupledGroup, type Model } from "../models/model.ts";
import { groupsOf, keptLines, type Kept } from "../models/pruning.ts";
import { toWrite } from "../models/save.ts";
import { readTensor } from "../models/stored.ts";
import type { Params } from "../nn/contracts.ts";
import { hostNumbers, indexCopy, noGrad, Parameter, Rng, scope, tensor, zeros, type Real, type Tensor } from "../tensor/index.ts";
import { required } from "./adapt.ts";
import { withAdapters } from "./attach.ts";

export interface RecoverOptions {
  /** The adapter; defaults to the active one. */
  name?: string;
  /** What columns of A that were cut get: zeros, so that the update is exactly what was trained, or N(0, 1/8²); defaults to zero. */
  fill?: "zero" | "normal";
  /** Of the normal fill; defaults to 0. */
  seed?: number;
}

/**
 * A LoRA that was trained on the pruned model, put into the shapes of the full one: rows of B at the kept outputs, columns of A at the
 * kept inputs, zeros elsewhere; what was not cut is left as it is. Zhang et al. 2025, arXiv:2502.13533 (LoRAM), stage R.
 *
 * @example
 * const kept = await chooseKept(base, { ratio: 0.5, variant: "rand" });
 * const large = recover(await adapt(pruneModel(base, kept), lora, { r: 2 }), base, kept);
 */
export function recover(pruned: Model, full: Model, kept: Kept, { name = pruned.active[0] ?? "default", fill = "zero", seed = 0 }: RecoverOptions = {}): Model {
  const set = required(pruned, name);
  const refuse = (what: string, hint: string): never => {
    throw new StrutError("adapter", `adapter ${name} ${what}, so it cannot be put back`, { hint });
  };
  if (set.taken.size > 0) refuse("began by taking a part of the pruned base away", "Train a LoRA that starts at zero.");
  const lines = keptLines(full, kept);
  for (const leaf of set.copies.keys())
    if (lines.has(leaf.slice(0, leaf.lastIndexOf(".")))) refuse(`trains ${leaf} itself, which was cut`, "Train no biases or whole modules of pruned layers.");
  const entries = new Map(
    [...set.entries].map(([path, held]): [string, Params] => {
      const at = lines.get(path);
      const params = Object.fromEntries(Object.entries(held).filter(([key]) => key !== "mask"));
      if (!at) return [path, params];
      const { A, B, ...others } = params;
      if (!A || !B || Object.keys(others).length > 0) return refuse(`at ${path} is more or other than factors A and B`, "Train a LoRA on the pruned model.");
      const { out, in: inner } = layerAt(full, path).site!;
      const restOfA = (shape: readonly number[]): Tensor =>
        fill === "zero" ? zeros(shape, A.dtype as Real) : new Rng(seed).fork(path).normal(shape, 1 / 8, A.dtype as Real);
      const whole = noGrad(() =>
        scope(() =>
          at.side === "out"
            ? indexCopy(zeros([out, B.shape[1]!], B.dtype as Real), 0, [...at.index], B)
            : indexCopy(restOfA([A.shape[0]!, inner]), 1, [...at.index], A),
        ),
      );
      const key = at.side === "out" ? "B" : "A";
      return [path, { A, B, [key]: new Parameter(whole, `${name}/${path}/${key}`) }];
    }),
  );
  return withAdapters(full, new Map([...full.adapters, [name, { ...set, entries }]]), [name]);
}

const FILE = "kept.safetensors";

/** `model.layers.3.mlp.kept` (neurons) or `model.layers.3.attn.kept_kv` (rows of k and v). */
const keyOf = ({ kind, members }: CoupledGroup): string => `${/^.*?\d+(?=\.)/.exec(members[0]!.path)![0]}.${kind === "neurons" ? "mlp.kept" : "attn.kept_kv"}`;

/** Rows that a unit has: those of a head in k and v, one of a neuron. */
const rowsOf = ({ members }: CoupledGroup): number => Math.min(...members.map(({ size }) => size));

/** Writes what was kept beside an adapter, into kept.safetensors: i64 `<layer>.mlp.kept` and `<layer>.attn.kept_kv`, rising. */
export async function saveKept(kept: Kept, full: Model, folder: string): Promise<void> {
  const tensors = groupsOf(full).flatMap((group) => {
    const [units, rows] = [kept[group.kind].get(group.depth), rowsOf(group)];
    if (!units) return [];
    const index = Array.from(units).flatMap((unit) => Array.from({ length: rows }, (_, i) => unit * rows + i));
    return [toWrite(keyOf(group), tensor(index, [index.length], "i64"))];
  });
  await writeSafetensors(paths.join(folder, FILE), tensors, { metadata: { format: "pt" } });
}

/**
 * Reads what `saveKept` wrote, for the full model. LoRAM's own files are refused: they are pickles, and hold what was removed.
 */
export async function loadKept(folder: string, full: Model): Promise<Kept> {
  if (/\.(pt|pth|bin|pkl)$/.test(folder))
    throw new StrutError("files", `${folder} is a pickle, which strut never runs; expected a folder with ${FILE}`, {
      path: folder,
      hint: `LoRAM's pickles list the removed places (pruned_idx): write the others as int64 tensors such as model.layers.3.mlp.kept and model.layers.3.attn.kept_kv into ${FILE}.`,
    });
  const path = paths.join(folder, FILE);
  const kept = { neurons: new Map<number, Int32Array>(), heads: new Map<number, Int32Array>() };
  const file = await openSafetensorsFile(path);
  try {
    const groups = new Map(groupsOf(full).map((group) => [keyOf(group), group]));
    for (const key of file.entries.keys()) {
      const group = groups.get(key);
      const refuse = (what: string): never => {
        throw new StrutError("files", `${path}: ${key} ${what}`, { path, hint: "Was it written for another model?" });
      };
      if (!group) return refuse("names nothing that this model could keep");
      const rows = rowsOf(group);
      const index = Array.from(hostNumbers(await readTensor(file, key, "f32", path)) as ArrayLike<number | bigint>, Number);
      const units = index.filter((_, i) => i % rows === 0).map((place) => place / rows);
      if (index.length % rows !== 0 || index.some((place, i) => place !== units[Math.floor(i / rows)]! * rows + (i % rows)))
        refuse(`is not made of whole heads of ${rows} rows`);
      kept[group.kind].set(group.depth, Int32Array.from(units));
    }
    keptLines(full, kept);
    return kept;
  } finally {
    await file.close();
  }
}
