import { StrutError } from "../errors.ts";
import { embedding, hostNumbers, indexCopy, linear, reshape, tensor, type Tensor } from "../tensor/index.ts";
import { costOf, lookUp, prefixed, type LinearOperator } from "./operator.ts";

/** W with some of its rows taken from a small table: table[i] stands at row index[i]. The base is never written. */
export const replacedRows = (base: LinearOperator, index: readonly number[], table: Tensor): LinearOperator =>
  replacedRowsAt(base, tensor(index, [index.length], "i32"), table);

/** replacedRows with the index as the tensor (i32) that is saved. */
export function replacedRowsAt(base: LinearOperator, places: Tensor, table: Tensor): LinearOperator {
  const index = Array.from(hostNumbers(places) as Int32Array);
  for (const at of index) if (!(at >= 0 && at < base.out)) throw new StrutError("range", `row ${at} does not lie in 0…${base.out - 1}`);
  const slots = new Map(index.map((at, slot) => [at, slot]));
  const parts = { ...prefixed({ base }), rows: table, index: places };
  return {
    kind: "replaced-rows",
    out: base.out,
    in: base.in,
    parts,
    inner: { base },
    apply: (x) => indexCopy(base.apply(x), -1, index, linear(x, table)),
    rows(ids) {
      const wanted = Array.from(hostNumbers(ids) as Int32Array);
      const positions = wanted.flatMap((id, position) => (slots.has(id) ? [position] : []));
      const fresh = embedding(
        table,
        tensor(
          positions.map((position) => slots.get(wanted[position]!)!),
          [positions.length],
          "i32",
        ),
      );
      const all = reshape(lookUp(base, ids), [wanted.length, base.in]);
      return reshape(indexCopy(all, 0, positions, fresh), [...ids.shape, base.in]);
    },
    toDense: () => indexCopy(base.toDense(), 0, index, table),
    cost: () => {
      const cost = base.cost();
      return costOf(parts, cost.flops + 2 * table.size, cost.params - costOf(base.parts, 0).params);
    },
  };
}
