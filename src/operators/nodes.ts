import { add, matmul, transpose } from "../tensor/index.ts";
import { StrutError } from "../errors.ts";
import { applyTransposed, costOf, lookUp, prefixed, type LinearOperator } from "./operator.ts";

const shapeOf = ({ kind, out, in: inner }: LinearOperator): string => `${kind} ${out}×${inner}`;

/** A + B of two operators of one shape. */
export function sumOf(first: LinearOperator, second: LinearOperator): LinearOperator {
  if (first.out !== second.out || first.in !== second.in)
    throw new StrutError("shape", `sumOf: ${shapeOf(first)} and ${shapeOf(second)} cannot be added; both need the same shape`);
  const inner = { 0: first, 1: second };
  const parts = prefixed(inner);
  return {
    kind: "sum",
    out: first.out,
    in: first.in,
    parts,
    inner,
    apply: (x) => (second.addTo ? second.addTo(first.apply(x), x) : add(first.apply(x), second.apply(x))),
    applyTransposed: (x) => add(applyTransposed(first, x), applyTransposed(second, x)),
    rows: (ids) => add(lookUp(first, ids), lookUp(second, ids)),
    toDense: () => add(first.toDense(), second.toDense()),
    cost: () => summed(parts, first, second, first.out),
  };
}

/** The leaves of both, once each, and the work of both. */
function summed(parts: LinearOperator["parts"], first: LinearOperator, second: LinearOperator, more: number): ReturnType<LinearOperator["cost"]> {
  const [a, b] = [first.cost(), second.cost()];
  const own = (operator: LinearOperator, params: number): number => params - costOf(operator.parts, 0).params;
  return costOf(parts, a.flops + b.flops + more, own(first, a.params) + own(second, b.params));
}

/**
 * The product A·B, out of A × in of B; the second is applied first.
 *
 * @example
 * const y = productOf(dense(ones([4, 2])), dense(ones([2, 3]))).apply(ones([1, 3]));
 */
export function productOf(first: LinearOperator, second: LinearOperator): LinearOperator {
  if (first.in !== second.out) throw new StrutError("shape", `productOf: ${shapeOf(first)} times ${shapeOf(second)}: the inner extents must agree`);
  const inner = { 0: first, 1: second };
  const parts = prefixed(inner);
  return {
    kind: "product",
    out: first.out,
    in: second.in,
    parts,
    inner,
    apply: (x) => first.apply(second.apply(x)),
    applyTransposed: (x) => applyTransposed(second, applyTransposed(first, x)),
    rows: (ids) => applyTransposed(second, lookUp(first, ids)),
    toDense: () => matmul(first.toDense(), second.toDense()),
    cost: () => summed(parts, first, second, 0),
  };
}

/** Wᵀ, in×out. */
export function transposeOf(operator: LinearOperator): LinearOperator {
  const inner = { of: operator };
  return {
    kind: "transpose",
    out: operator.in,
    in: operator.out,
    parts: prefixed(inner),
    inner,
    apply: (x) => applyTransposed(operator, x),
    applyTransposed: (x) => operator.apply(x),
    toDense: () => transpose(operator.toDense()),
    cost: () => operator.cost(),
  };
}
