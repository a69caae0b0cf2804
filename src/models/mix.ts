import { StrutError } from "../errors.ts";
import { concat, hostNumbers, indexSelect, inverseOrder, tensor, type Tensor } from "../tensor/index.ts";
import type { Model } from "./model.ts";

/** A module's output for a batch whose rows run with adapters of their own: each adapter sees its rows, in one piece. */
export function mixed(model: Model, mix: readonly (string | null)[], x: Tensor, apply: (model: Model, x: Tensor) => Tensor): Tensor {
  const each = x.shape[0]! / mix.length;
  const rows = (name: string | null): number[] => mix.flatMap((own, row) => (own === name ? Array.from({ length: each }, (_, i) => row * each + i) : []));
  const names = [...new Set(mix)];
  const order = names.flatMap(rows);
  const parts = names.map((name) => {
    const own = rows(name);
    return apply({ ...model, active: name === null ? [] : [name] }, names.length === 1 ? x : rowsOf(x, own));
  });
  if (names.length === 1) return parts[0]!;
  return rowsOf(concat(parts), inverseOrder(order));
}

/** Slices of the first axis; of ids too. */
function rowsOf(x: Tensor, rows: ArrayLike<number>): Tensor {
  if (x.dtype !== "i32") return indexSelect(x, 0, tensor(rows, [rows.length], "i32"));
  const [ids, width] = [hostNumbers(x), x.size / x.shape[0]!];
  const chosen = Array.from(rows, (row) => Array.from({ length: width }, (_, i) => Number(ids[row * width + i]))).flat();
  return tensor(chosen, [rows.length, ...x.shape.slice(1)], "i32");
}

/** Refuses rows that no adapter of the model can take: unknown names, a wrong number of rows, norms that train with an adapter. */
export function checkMix(model: Model, mix: readonly (string | null)[], rows: number): void {
  if (mix.length !== rows) throw new StrutError("adapter", `mix names adapters for ${mix.length} rows, the batch has ${rows}`, { path: "mix" });
  for (const name of new Set(mix)) {
    if (name === null) continue;
    const set = model.adapters.get(name);
    if (!set)
      throw new StrutError("adapter", `mix names the adapter ${name}, which the model does not have`, {
        hint: `It has ${[...model.adapters.keys()].join(", ") || "none"}.`,
      });
    const norm = [...model.layers.values()].find(({ spec, attached }) => spec.kind === "norm" && attached.some(({ adapter }) => adapter === name));
    if (norm)
      throw new StrutError("adapter", `adapter ${name} has trained the norm ${norm.spec.path}, which all rows of a batch share`, {
        hint: "Run its rows in a batch of their own, with the adapter active.",
      });
  }
}
