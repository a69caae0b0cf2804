import { randomizedSvd, svd } from "../linalg/index.ts";
import { orthonormalizeRows } from "../linalg/orthonormal.ts";
import type { State } from "../nn/contracts.ts";
import { cast, gemmInto, empty, reshape, slice, sumSquares, transpose, zeros, type Rng, type Tensor } from "../tensor/index.ts";
import { copyOf, hostView } from "../tensor/tensor.ts";

/** Which side of an m×n gradient shrinks to the rank: "std" the shorter one (the columns of a square), "reverse_std" the longer, "full" both. */
export type ProjectionType = "std" | "reverse_std" | "left" | "right" | "full";
/** Where a basis comes from: the gradient's singular vectors, exact or by random directions ("auto" by size); or orthonormal rows, or rows of the identity, at random. */
export type BasisSource = "auto" | "exact" | "randomized" | "random" | "randperm";

/** Orthonormal columns `left` m×r, orthonormal rows `right` r×n, or both. */
export interface Projector extends State {
  [side: string]: Tensor;
}

/** Up to this smaller side an exact decomposition costs no more than a step. */
const EXACT_SIDE = 256;

/** The matrix that a gradient is: a convolution's kernel has its out channels as rows. */
export const asMatrix = (g: Tensor): Tensor => reshape(g, [g.shape[0]!, g.size / g.shape[0]!]);

export function sidesOf(type: ProjectionType, [m, n]: readonly [number, number]): { left: boolean; right: boolean } {
  if (type === "full") return { left: true, right: true };
  const right = type === "std" ? m >= n : type === "reverse_std" ? m < n : type === "right";
  return { left: !right, right };
}

/** A number of directions, or how many of a side's (of the smaller one where both are projected). */
export type Rank = number | ((side: number) => number);

function rankOf(rank: Rank, { left, right }: { left: boolean; right: boolean }, [m, n]: readonly [number, number]): number {
  const wanted = typeof rank === "number" ? rank : rank(left && right ? Math.min(m, n) : left ? m : n);
  return Math.min(wanted, m, n);
}

/** Shape of a projected m×n gradient; the rank is cut to the smaller side. */
export function projectedShape(type: ProjectionType, [m, n]: readonly [number, number], rank: Rank): [number, number] {
  const sides = sidesOf(type, [m, n]);
  const r = rankOf(rank, sides, [m, n]);
  return [sides.left ? r : m, sides.right ? r : n];
}

function randomRows(rank: number, width: number, rng: Rng, dtype: Tensor["dtype"]): Tensor {
  const rows = rng.normal([rank, width], 1, "f64");
  orthonormalizeRows(rows);
  return cast(rows, dtype);
}

/** Rows of the identity, at random. */
function randomUnits(rank: number, width: number, rng: Rng, dtype: Tensor["dtype"]): Tensor {
  const rows = zeros([rank, width], dtype);
  rng.permutation(width).forEach((column, row) => row < rank && (hostView(rows)[row * width + column] = 1));
  return rows;
}

/** A projector for a gradient, or undefined where the gradient has no directions: it is 0 or not finite. */
export async function projectorFor(g: Tensor, type: ProjectionType, rank: Rank, source: BasisSource, rng: Rng): Promise<Projector | undefined> {
  const [m, n] = g.shape as [number, number];
  const { left, right } = sidesOf(type, [m, n]);
  const r = rankOf(rank, { left, right }, [m, n]);
  if (source === "random" || source === "randperm") {
    const rows = source === "random" ? randomRows : randomUnits;
    return {
      ...(left ? { left: copyOf(transpose(rows(r, m, rng, g.dtype))) } : {}),
      ...(right ? { right: rows(r, n, rng, g.dtype) } : {}),
    };
  }
  const squares = sumSquares([g]);
  if (squares === 0 || !Number.isFinite(squares)) return undefined;
  const exact = source === "exact" || (source === "auto" && (Math.min(m, n) <= EXACT_SIDE || 2 * r > Math.min(m, n)));
  const { U, Vh } = exact ? await svd(g) : await randomizedSvd(g, r, { oversampling: 8, iterations: 1, rng });
  return { ...(left ? { left: copyOf(slice(U, 1, 0, r)) } : {}), ...(right ? { right: copyOf(slice(Vh, 0, 0, r)) } : {}) };
}

const product = (a: Tensor, b: Tensor, alpha = 1, out = empty([a.shape[0]!, b.shape[1]!], a.dtype)): Tensor => {
  gemmInto(out, a, b, { alpha });
  return out;
};

/** R = leftᵀ·G·rightᵀ, of whichever sides there are. */
export function project(g: Tensor, { left, right }: Projector): Tensor {
  const once = left ? product(transpose(left), g) : g;
  return right ? product(once, transpose(right)) : once;
}

/** scale·left·R·right; in the memory of `out` if it is given, which is contiguous. */
export function projectBack(r: Tensor, { left, right }: Projector, scale = 1, out?: Tensor): Tensor {
  if (!right) return product(left!, r, scale, out);
  return product(left ? product(left, r) : r, right, scale, out);
}
