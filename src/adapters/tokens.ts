import { StrutError } from "../errors.ts";
import type { Model } from "../models/model.ts";
import { embedding, noGrad, Parameter, tensor } from "../tensor/index.ts";
import type { Targeting } from "./attach.ts";

/**
 * Rows of embeddings that train by themselves (PEFT's trainable tokens). Adds the rows to `copies` as `path.token_rows`, for
 * a tied head too, and returns the ids of each module.
 */
export function tokenRows(
  model: Model,
  name: string,
  indices: Targeting["trainableTokenIndices"],
  copies: Map<string, Parameter>,
): Map<string, readonly number[]> {
  const tokens = new Map<string, readonly number[]>();
  if (!indices) return tokens;
  const { embedding: input } = model.architecture;
  if (input === undefined) throw new StrutError("targets", `a ${model.architecture.modelType} model looks no tokens up`, { path: "trainable_token_indices" });
  const wanted = Array.isArray(indices) ? { [input.split(".").at(-1)!]: indices as readonly number[] } : (indices as Record<string, readonly number[]>);
  for (const [module, ids] of Object.entries(wanted)) {
    const layer = [...model.layers.values()].find(({ spec }) => spec.kind === "embedding" && (spec.path === module || spec.path.endsWith(`.${module}`)));
    if (!layer)
      throw new StrutError("targets", `trainable_token_indices names ${module}, which is no embedding of the model`, {
        path: "trainable_token_indices",
        hint: `Its input embedding is ${input}.`,
      });
    for (const id of ids)
      if (!(Number.isInteger(id) && id >= 0 && id < layer.spec.shape[0]!))
        throw new StrutError("range", `trainable_token_indices holds ${id}; ${layer.spec.path} has rows 0…${layer.spec.shape[0]! - 1}`, {
          path: "trainable_token_indices",
        });
    const rows = noGrad(() => new Parameter(embedding(layer.weight, tensor(ids, [ids.length], "i32")), `${name}/${layer.spec.path}.token_rows`));
    for (const { spec } of model.layers.values())
      if (spec.path === layer.spec.path || spec.tiedTo === layer.spec.path) {
        copies.set(`${spec.path}.token_rows`, rows);
        tokens.set(spec.path, ids);
      }
  }
  return tokens;
}
