import { concat, matmul, permute, reshape, slice, transpose, zeros, linear, add, type Tensor } from "../tensor/index.ts";
import { costOf, fits, rowsOf, type LinearOperator } from "./operator.ts";

/**
 * Equal blocks along the diagonal: blocks [count, o, i] make W (count·o)×(count·i).
 *
 * @example
 * const y = blockDiagonal(ones([2, 3, 2])).apply(ones([1, 4]));
 */
export function blockDiagonal(blocks: Tensor): LinearOperator {
  fits(blocks.shape.length === 3, "block-diagonal", "blocks [count, out, in]", blocks);
  const [count, o, i] = blocks.shape as [number, number, number];
  const parts = { blocks };
  const through = (x: Tensor, by: Tensor, from: number, to: number): Tensor => {
    const split = permute(reshape(x, [rowsOf(x), count, from]), [1, 0, 2]);
    return reshape(permute(matmul(split, by), [1, 0, 2]), [...x.shape.slice(0, -1), count * to]);
  };
  const toDense = (): Tensor => {
    const row = (b: number): Tensor =>
      concat([zeros([o, b * i], blocks.dtype), reshape(slice(blocks, 0, b, b + 1), [o, i]), zeros([o, (count - 1 - b) * i], blocks.dtype)], 1);
    return count === 0 ? zeros([0, 0], blocks.dtype) : concat(Array.from({ length: count }, (_, b) => row(b)));
  };
  return {
    kind: "block-diagonal",
    out: count * o,
    in: count * i,
    parts,
    apply: (x) => through(x, transpose(blocks), i, o),
    applyTransposed: (x) => through(x, blocks, o, i),
    toDense,
    cost: () => costOf(parts, 2 * blocks.size),
  };
}

/**
 * A sum of Kronecker products: W = Σ_k A[k] ⊗ B[k] with A [terms, p, q] and B [terms, r, s], W (p·r)×(q·s).
 *
 * @example
 * const y = kronecker(ones([1, 2, 3]), ones([1, 4, 5])).apply(ones([1, 15]));
 */
export function kronecker(A: Tensor, B: Tensor): LinearOperator {
  fits(A.shape.length === 3 && B.shape.length === 3 && A.shape[0] === B.shape[0], "kronecker", "A [terms, p, q] and B [terms, r, s]", A, B);
  const [terms, p, q] = A.shape as [number, number, number];
  const [, r, s] = B.shape as [number, number, number];
  const parts = { A, B };
  const at = (x: Tensor, k: number): Tensor => reshape(slice(x, 0, k, k + 1), x.shape.slice(1));
  const sum = (shape: readonly number[], term: (k: number) => Tensor): Tensor =>
    Array.from({ length: terms }, (_, k) => term(k)).reduce<Tensor | null>((total, one) => (total ? add(total, one) : one), null) ?? zeros(shape, A.dtype);
  /** Σ a·X·bᵀ for each row X of x. */
  const through = (x: Tensor, turn: (m: Tensor) => Tensor, [fromA, fromB, toA, toB]: readonly [number, number, number, number]): Tensor => {
    const shape = [...x.shape.slice(0, -1), toA * toB];
    const X = reshape(x, [rowsOf(x), fromA, fromB]);
    return sum(shape, (k) => reshape(transpose(linear(transpose(linear(X, turn(at(B, k)))), turn(at(A, k)))), shape));
  };
  return {
    kind: "kronecker",
    out: p * r,
    in: q * s,
    parts,
    apply: (x) => through(x, (m) => m, [q, s, p, r]),
    applyTransposed: (x) => through(x, (m) => transpose(m), [p, r, q, s]),
    toDense: () =>
      sum([p * r, q * s], (k) =>
        reshape(permute(reshape(matmul(reshape(at(A, k), [p * q, 1]), reshape(at(B, k), [1, r * s])), [p, q, r, s]), [0, 2, 1, 3]), [p * r, q * s]),
      ),
    cost: () => costOf(parts, 2 * terms * (q * r * s + p * q * r)),
  };
}
