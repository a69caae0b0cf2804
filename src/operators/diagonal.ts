import { embedding, mul, reshape, type Real, type Tensor } from "../tensor/index.ts";
import { applyTransposed, costOf, fits, lookUp, oneHot, prefixed, type LinearOperator } from "./operator.ts";

/** The cost of the inner operator and of one more vector. */
function withVector(inner: LinearOperator, parts: LinearOperator["parts"], d: Tensor): ReturnType<LinearOperator["cost"]> {
  const cost = inner.cost();
  return costOf(parts, cost.flops + d.size, cost.params - costOf(inner.parts, 0).params);
}

/** diag(d)·W: every row i of W times d[i]. */
export function scaledRows(d: Tensor, inner: LinearOperator): LinearOperator {
  fits(d.size === inner.out, "scaled-rows", `one factor for each of ${inner.out} rows`, d);
  const column = (): Tensor => reshape(d, [d.size, 1]);
  const parts = { d, ...prefixed({ inner }) };
  return {
    kind: "scaled-rows",
    out: inner.out,
    in: inner.in,
    parts,
    inner: { inner },
    apply: (x) => mul(inner.apply(x), d),
    applyTransposed: (x) => applyTransposed(inner, mul(x, d)),
    rows: (ids) => mul(lookUp(inner, ids), embedding(column(), ids)),
    toDense: () => mul(inner.toDense(), column()),
    cost: () => withVector(inner, parts, d),
  };
}

/** W·diag(d): every column j of W times d[j]. */
export function scaledColumns(inner: LinearOperator, d: Tensor): LinearOperator {
  fits(d.size === inner.in, "scaled-columns", `one factor for each of ${inner.in} columns`, d);
  const parts = { d, ...prefixed({ inner }) };
  return {
    kind: "scaled-columns",
    out: inner.out,
    in: inner.in,
    parts,
    inner: { inner },
    apply: (x) => inner.apply(mul(x, d)),
    applyTransposed: (x) => mul(applyTransposed(inner, x), d),
    rows: (ids) => mul(lookUp(inner, ids), d),
    toDense: () => mul(inner.toDense(), d),
    cost: () => withVector(inner, parts, d),
  };
}

/**
 * diag(d), n×n.
 *
 * @example
 * const y = diagonal(tensor([1, 2])).apply(tensor([3, 4], [1, 2]));
 */
export function diagonal(d: Tensor): LinearOperator {
  const parts = { d };
  const toDense = (): Tensor => mul(oneHot([...Array(d.size).keys()], d.dtype as Real), reshape(d, [d.size, 1]));
  return {
    kind: "diagonal",
    out: d.size,
    in: d.size,
    parts,
    apply: (x) => mul(x, d),
    applyTransposed: (x) => mul(x, d),
    toDense,
    cost: () => costOf(parts, d.size),
  };
}
