import { bytesOf, embedding, mul, reshape, type Tensor } from "../tensor/index.ts";
import { prefixed, type LinearOperator } from "./operator.ts";

/** diag(d)·W: every row i of W times d[i]. */
export function scaledRows(d: Tensor, inner: LinearOperator): LinearOperator {
  const column = (): Tensor => reshape(d, [d.size, 1]);
  return {
    kind: "scaled-rows",
    out: inner.out,
    in: inner.in,
    parts: { d, ...prefixed("inner.", inner.parts) },
    apply: (x) => mul(inner.apply(x), d),
    ...(inner.rows ? { rows: (ids: Tensor) => mul(inner.rows!(ids), embedding(column(), ids)) } : {}),
    toDense: () => mul(inner.toDense(), column()),
    cost: () => {
      const cost = inner.cost();
      return { params: cost.params + d.size, bytes: cost.bytes + d.size * bytesOf(d.dtype), flops: cost.flops + d.size };
    },
  };
}
