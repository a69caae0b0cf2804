import type { Tensor } from "../tensor/index.ts";

/** What an operator stores and what applying it costs. */
export interface Cost {
  /** stored numbers */
  params: number;
  /** stored bytes, indices counted */
  bytes: number;
  /** multiplications and additions for one row of x */
  flops: number;
}

/** A matrix W (out×in) known by its structure; y = x·Wᵀ. */
export interface LinearOperator {
  readonly kind: string;
  readonly out: number;
  readonly in: number;
  /** Named leaves: what is saved and counted. */
  readonly parts: Readonly<Record<string, Tensor>>;
  /** […, in] → […, out]; differentiable in x and in the parts. */
  apply(x: Tensor): Tensor;
  /** apply plus a bias, where that is cheaper than two steps. */
  withBias?(x: Tensor, bias: Tensor): Tensor;
  /** y + W·x where that is cheaper than two steps. */
  addTo?(y: Tensor, x: Tensor): Tensor;
  /** Rows of W for an embedding: ids […] → […, in]. */
  rows?(ids: Tensor): Tensor;
  /** W itself, out×in; differentiable in the parts. */
  toDense(): Tensor;
  cost(): Cost;
}

export const isOperator = (value: unknown): value is LinearOperator => typeof value === "object" && value !== null && "toDense" in value && "apply" in value;

/** Parts of an operator inside another, under names of their own. */
export const prefixed = (prefix: string, parts: LinearOperator["parts"]): LinearOperator["parts"] =>
  Object.fromEntries(Object.entries(parts).map(([name, tensor]) => [prefix + name, tensor]));
