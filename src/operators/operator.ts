import { StrutError } from "../errors.ts";
import { bytesOf, embedding, isReal, linear, tensor, transpose, type Real, type Tensor } from "../tensor/index.ts";

/** What an operator stores and what applying it costs. */
export interface Cost {
  /** stored numbers, indices not counted */
  params: number;
  /** stored bytes, indices counted */
  bytes: number;
  /** multiplications and additions for one row of x */
  flops: number;
}

/** What beside its tensors an operator is built from; JSON. */
export type OperatorOptions = Readonly<Record<string, number | boolean | string | readonly number[]>>;

/** A matrix W (out×in) known by its structure; y = x·Wᵀ. */
export interface LinearOperator {
  readonly kind: string;
  readonly out: number;
  readonly in: number;
  /** Named leaves: what is saved and counted. */
  readonly parts: Readonly<Record<string, Tensor>>;
  /** The operators that this one is made of; their parts stand in `parts` under "name." */
  readonly inner?: Readonly<Record<string, LinearOperator>>;
  /** What its kind needs beside parts to build it again. */
  readonly options?: OperatorOptions;
  /** […, in] → […, out]; differentiable in x and in the parts. */
  apply(x: Tensor): Tensor;
  /** x·W, […, out] → […, in]; differentiable as apply. Without it `applyTransposed(operator, x)` goes through toDense. */
  applyTransposed?(x: Tensor): Tensor;
  /** apply plus a bias, where that is cheaper than two steps. */
  withBias?(x: Tensor, bias: Tensor): Tensor;
  /** y + W·x where that is cheaper than two steps. */
  addTo?(y: Tensor, x: Tensor): Tensor;
  /** Rows of W for an embedding: ids […] → […, in]. Without it `lookUp(operator, ids)` goes through toDense. */
  rows?(ids: Tensor): Tensor;
  /** W itself, out×in; differentiable in the parts. */
  toDense(): Tensor;
  cost(): Cost;
}

export const isOperator = (value: unknown): value is LinearOperator => typeof value === "object" && value !== null && "toDense" in value && "apply" in value;

/**
 * x·W, […, out] → […, in].
 *
 * @example
 * const back = applyTransposed(dense(ones([3, 2])), ones([1, 3]));
 */
export const applyTransposed = (operator: LinearOperator, x: Tensor): Tensor =>
  operator.applyTransposed ? operator.applyTransposed(x) : linear(x, transpose(operator.toDense()));

/**
 * Rows of W by id, […] → […, in]: an embedding's look-up.
 *
 * @example
 * const vectors = lookUp(dense(ones([3, 2])), tensor([2, 0], [2], "i32"));
 */
export const lookUp = (operator: LinearOperator, ids: Tensor): Tensor => operator.rows?.(ids) ?? embedding(operator.toDense(), ids);

/** Parts of operators inside another, under names of their own. */
export const prefixed = (inner: Readonly<Record<string, LinearOperator>>): LinearOperator["parts"] =>
  Object.fromEntries(Object.entries(inner).flatMap(([prefix, { parts }]) => Object.entries(parts).map(([name, tensor]) => [`${prefix}.${name}`, tensor])));

/** The cost of storing parts, a tensor under two names once, and of `flops` a row. `codes` are stored numbers that are integers. */
export function costOf(parts: LinearOperator["parts"], flops: number, codes = 0): Cost {
  const leaves = [...new Set(Object.values(parts))];
  return {
    params: leaves.reduce((total, leaf) => total + (isReal(leaf.dtype) ? leaf.size : 0), codes),
    bytes: leaves.reduce((total, leaf) => total + leaf.size * bytesOf(leaf.dtype), 0),
    flops,
  };
}

/** Refuses leaves whose shapes do not fit each other. */
export function fits(condition: boolean, kind: string, expected: string, ...found: readonly Tensor[]): void {
  if (!condition) throw new StrutError("shape", `${kind}: expected ${expected}, found ${found.map(({ dtype, shape }) => `${dtype}[${shape}]`).join(", ")}`);
}

/** How many rows x […, n] has as a matrix. */
export const rowsOf = (x: Tensor): number => x.shape.slice(0, -1).reduce((product, n) => product * n, 1);

/** The n×n matrix with a 1 in column index[i] of each row i. */
export function oneHot(index: ArrayLike<number>, dtype: Real): Tensor {
  const n = index.length;
  const values = new Float32Array(n * n);
  for (let i = 0; i < n; i++) values[i * n + index[i]!] = 1;
  return tensor(values, [n, n], dtype);
}
