import { StrutError } from "../errors.ts";
import { largestPlaces } from "../models/largest.ts";
import { layerAt, type Model } from "../models/model.ts";
import { groupsOf, keptLines, pruneModel, unitScores, type Lines } from "../models/pruning.ts";
import type { Params } from "../nn/contracts.ts";
import { flatSparse } from "../operators/index.ts";
import {
  abs,
  add,
  cast,
  hostNumbers,
  indexSelect,
  matmul,
  noGrad,
  packBits,
  Parameter,
  scope,
  tensor,
  unpackBits,
  zeros,
  type Real,
  type Tensor,
} from "../tensor/index.ts";
import { required } from "./adapt.ts";
import { newLive, withAdapters } from "./attach.ts";

export interface RemoveHeadsOptions {
  /** What a head must be large in to stay, summed over its rows of query and value: the update |BA + S|, or |W| and that; defaults to ABS. */
  score?: "ABS" | "WABS";
  /** The adapter; defaults to the active one. */
  name?: string;
}

/**
 * The model and its adapter without the `count` lowest heads of every block (with grouped queries key/value heads and the queries that
 * read them), to be trained on: DSEE's structured second stage. Rows of q, k and v and columns of o go, and the same of B, A and S.
 * Chen et al. 2023, arXiv:2111.00160. Works for DSEE and LoRA; config.json says what was cut, so the base can be saved and loaded.
 *
 * @example
 * const smaller = removeHeads(await adapt(model, dsee, { r: 2, numSparse: 16, sparseMethod: "omp" }), 1);
 */
export function removeHeads(model: Model, count: number, { score = "ABS", name = model.active[0] ?? "default" }: RemoveHeadsOptions = {}): Model {
  const set = required(model, name);
  for (const [path, { A, B }] of set.entries)
    if (!A || !B || set.taken.has(path)) throw new StrutError("adapter", `adapter ${name} is no DSEE or LoRA at ${path}, so no heads can be removed with it`);
  const groups = groupsOf(model).filter(({ kind }) => kind === "heads");
  const few = groups.find(({ units }) => !(Number.isInteger(count) && count >= 0 && count < units));
  if (few) throw new StrutError("option", `${count} of ${few.units} heads cannot be removed`, { path: "count", hint: `Remove 0 to ${few.units - 1}.` });
  const heads = new Map<number, Int32Array>();
  noGrad(() =>
    scope(() => {
      for (const group of groups) {
        const scores = unitScores(
          group,
          (path) => sizesOf(model, path, set.entries.get(path), score),
          (role) => role === "query" || role === "value",
        );
        heads.set(group.depth, Int32Array.from(largestPlaces(scores, group.units - count)));
      }
    }),
  );
  const kept = { heads, neurons: new Map<number, Int32Array>() };
  const lines = keptLines(model, kept);
  const entries = new Map(
    [...set.entries].map(([path, params]) => {
      const at = lines.get(path);
      return [path, at ? gathered(params, layerAt(model, path).site!, at, `${name}/${path}`) : params] as const;
    }),
  );
  const small = pruneModel(model, kept);
  return withAdapters(small, new Map([[name, { ...set, entries, live: newLive() }]]), [name]);
}

/** |BA + S|, and |W| beside it; 0 where nothing is adapted. */
function sizesOf(model: Model, path: string, params: Params | undefined, score: "ABS" | "WABS"): Tensor {
  const { weight, out, in: inner } = layerAt(model, path).site!;
  const { A, B, values, index } = params ?? {};
  const BA = A && B ? matmul(B, A) : zeros([out, inner], layerAt(model, path).weight.dtype as Real);
  const update = abs(values && index ? add(BA, flatSparse(values, index, [out, inner]).toDense()) : BA);
  return score === "WABS" ? add(update, abs(weight.toDense())) : update;
}

/** What an adapter keeps of a matrix of which only some lines are left. */
function gathered(params: Params, { out, in: inner }: { out: number; in: number }, { side, index: lines }: Lines, name: string): Params {
  const axis = side === "out" ? 0 : 1;
  const ids = tensor(lines, [lines.length], "i32");
  const cols = side === "out" ? inner : lines.length;
  const leaf = (key: string, value: Tensor, trainable = true): Parameter => new Parameter(value, `${name}/${key}`, trainable);
  return noGrad(() => {
    const { A, B, values, index, mask } = params as { A: Tensor; B: Tensor; values?: Tensor; index?: Tensor; mask?: Tensor };
    const result: Record<string, Tensor> = side === "out" ? { A, B: leaf("B", indexSelect(B, 0, ids)) } : { A: leaf("A", indexSelect(A, 1, ids)), B };
    if (values && index) {
      const newPlace = new Map([...lines].map((line, i) => [line, i]));
      const free = Array.from(hostNumbers(index) as Int32Array).flatMap((at, i) => {
        const [row, col] = [Math.floor(at / inner), at % inner];
        const line = newPlace.get(side === "out" ? row : col);
        return line === undefined ? [] : [{ i, at: side === "out" ? line * cols + col : row * cols + line }];
      });
      const chosen = (of: readonly number[]): Tensor => tensor(of, [of.length], "i32");
      result["values"] = leaf("values", indexSelect(values, 0, chosen(free.map(({ i }) => i))));
      result["index"] = chosen(free.map(({ at }) => at));
    }
    if (mask) {
      const bits = indexSelect(cast(unpackBits(mask, [out, inner], 1), "f32"), axis, ids);
      result["mask"] = leaf("mask", packBits(cast(bits, "i32"), 1), false);
    }
    return result;
  });
}
