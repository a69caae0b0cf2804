import { StrutError } from "../errors.ts";
import { engine, kernels } from "../tensor/engine.ts";
import { scope } from "../tensor/scope.ts";
import { copyOf, empty, hostView, type Tensor } from "../tensor/tensor.ts";
import { block, doubles, multiplyInto } from "./blocks.ts";

const LEAF = 32;
const EPSILON = 2 ** -52;

/** Eigenvalues in the order of the rows of `vectors`, and the row numbers by ascending eigenvalue. */
interface Spectrum {
  values: Float64Array;
  order: Int32Array;
}

/** Memory of all merges of one problem. */
interface Space {
  n: number;
  off: Float64Array;
  vectors: Tensor;
  gathered: Tensor;
  merging: Tensor;
  values: Tensor;
  d: Tensor;
  z: Tensor;
  place: Tensor;
}

const ascending = (values: Float64Array): Int32Array => Int32Array.from(values.keys()).sort((i, j) => values[i]! - values[j]!);

function checkConverged(values: Float64Array): void {
  if (values.some(Number.isNaN))
    throw new StrutError("convergence", "eigh: the QL iteration found no eigenvalues within 60 steps", {
      hint: "Please report the matrix: this should not happen.",
    });
}

/** Eigenvalues of a symmetric tridiagonal matrix, ascending; destroys its vectors. */
export function tridiagonalValues(diagonal: Tensor, offDiagonal: Tensor): Float64Array {
  const n = diagonal.size;
  kernels().tridiagonal_ql(diagonal, offDiagonal, null, n, Math.max(n, 1), 0);
  const values = doubles(diagonal).slice().sort();
  checkConverged(values);
  return values;
}

/**
 * Eigenvalues of a symmetric tridiagonal matrix and its eigenvectors as rows, by divide and conquer: QL on blocks of 32,
 * pairs of them joined by a rank-one change. Cuppen 1981; vectors as in Gu & Eisenstat 1995 (doi:10.1137/S0895479892242232).
 */
export function tridiagonalEigh(diagonal: Tensor, offDiagonal: Tensor): Spectrum & { vectors: Tensor } {
  const n = diagonal.size;
  const vectors = empty([n, n], "f64");
  return scope(() => {
    const [gathered, merging] = [empty([n, n], "f64"), empty([n, n], "f64")];
    const [values, d, z, place] = [empty([n], "f64"), empty([n], "f64"), empty([n], "f64"), empty([n], "i32")];
    const blocks = copyOf(diagonal);
    const [shortened, off] = [doubles(blocks), doubles(offDiagonal)];
    for (let at = LEAF; at < n; at += LEAF) for (const i of [at - 1, at]) shortened[i]! -= Math.abs(off[at - 1]!);
    doubles(vectors).fill(0);
    kernels().tridiagonal_ql(blocks, offDiagonal, vectors, n, LEAF, n);
    checkConverged(shortened);
    const space: Space = { n, off: off.slice(), vectors, gathered, merging, values, d, z, place };
    const solve = (from: number, to: number): Spectrum => {
      if (to - from <= LEAF) {
        const own = shortened.slice(from, to);
        return { values: own, order: ascending(own) };
      }
      const half = from + Math.ceil((to - from) / LEAF / 2) * LEAF;
      return merge(space, from, half, to, solve(from, half), solve(half, to));
    };
    return { ...solve(0, n), vectors };
  });
}

/** Joins rows and columns from … half−1 and half … to−1: diag(d) + z·zᵀ in the basis of both spectra. */
function merge(space: Space, from: number, half: number, to: number, left: Spectrum, right: Spectrum): Spectrum {
  const [size, cut, n] = [to - from, half - from, space.n];
  const values = Float64Array.of(...left.values, ...right.values);
  const vectors = doubles(space.vectors);
  const z = joint(vectors, n, from, half, to, Math.sign(space.off[half - 1]!));
  const sorted = sortedUnion(
    values,
    left.order,
    right.order.map((i) => i + cut),
  );
  const { kept, dropped, side } = deflate(values, z, 2 * Math.abs(space.off[half - 1]!), sorted, cut, (i, j, c, s) =>
    rotateRows(vectors, (from + i) * n + from, (from + j) * n + from, size, c, s),
  );

  // rows of the left half alone, of both, of the right half alone, and those that stay
  const groups = [1, 3, 2].map((which) => kept.filter((i) => side[i] === which));
  const rowsInOrder = [...groups.flat(), ...dropped];
  const gathered = doubles(space.gathered);
  const position = new Int32Array(size);
  rowsInOrder.forEach((i, at) => {
    position[i] = at;
    gathered.set(vectors.subarray((from + i) * n + from, (from + i) * n + to), (from + at) * n + from);
  });
  const [k, first, both] = [kept.length, groups[0]!.length, groups[1]!.length];
  const merged = new Float64Array(size);
  if (k > 0) {
    const scale = Math.sqrt(2 * Math.abs(space.off[half - 1]!));
    kept.forEach((i, at) => {
      doubles(space.d)[at] = values[i]!;
      doubles(space.z)[at] = scale * z[i]!;
      (hostView(space.place) as Int32Array)[at] = position[i]!;
    });
    kernels().secular(space.values, space.merging, space.d, space.z, space.place, k, k, engine().scratch);
    merged.set(doubles(space.values).subarray(0, k));
    const weights = block(space.merging, 0, k, 0, k);
    weights.strides = [k, 1];
    const [a, b, c] = [from + first, from + first + both, from + k];
    multiplyInto(block(space.vectors, from, c, from, half), block(weights, 0, k, 0, first + both), block(space.gathered, from, b, from, half));
    multiplyInto(block(space.vectors, from, c, half, to), block(weights, 0, k, first, k), block(space.gathered, a, c, half, to));
  }
  dropped.forEach((i, at) => {
    merged[k + at] = values[i]!;
    const row = (from + k + at) * n;
    vectors.set(gathered.subarray(row + from, row + to), row + from);
  });
  return { values: merged, order: ascending(merged) };
}

/** The last components of the left vectors and the first of the right ones, as a vector of length 1. */
function joint(vectors: Float64Array, n: number, from: number, half: number, to: number, sign: number): Float64Array {
  return Float64Array.from({ length: to - from }, (_, i) => {
    const row = (from + i) * n;
    return Math.SQRT1_2 * (from + i < half ? vectors[row + half - 1]! : sign * vectors[row + half]!);
  });
}

function sortedUnion(values: Float64Array, left: Int32Array, right: Int32Array): number[] {
  const out: number[] = [];
  let [i, j] = [0, 0];
  while (i < left.length || j < right.length)
    out.push(j === right.length || (i < left.length && values[left[i]!]! <= values[right[j]!]!) ? left[i++]! : right[j++]!);
  return out;
}

/**
 * Takes out what the change by rho·z·zᵀ leaves as it is: components that are too small to matter, and, after a rotation of
 * two vectors, one of each pair of values that are too close. `side` says where a vector is not zero: 1 left, 2 right, 3 both.
 */
function deflate(
  values: Float64Array,
  z: Float64Array,
  rho: number,
  sorted: readonly number[],
  cut: number,
  rotate: (i: number, j: number, c: number, s: number) => void,
): { kept: number[]; dropped: number[]; side: Uint8Array } {
  const side = Uint8Array.from(z, (_, i) => (i < cut ? 1 : 2));
  const tolerance = 8 * EPSILON * Math.max(rho, Math.abs(values[sorted[0]!]!), Math.abs(values[sorted.at(-1)!]!));
  const [kept, dropped]: [number[], number[]] = [[], []];
  let open = -1;
  for (const j of sorted) {
    if (rho * Math.abs(z[j]!) <= tolerance) {
      dropped.push(j);
      continue;
    }
    if (open >= 0) {
      const length = Math.hypot(z[open]!, z[j]!);
      const [c, s] = [z[j]! / length, -z[open]! / length];
      const gap = values[j]! - values[open]!;
      if (Math.abs(gap * c * s) <= tolerance) {
        z[j] = length;
        rotate(open, j, c, s);
        if (side[open] !== side[j]) side[open] = side[j] = 3;
        [values[open], values[j]] = [values[open]! * c * c + values[j]! * s * s, values[open]! * s * s + values[j]! * c * c];
        dropped.push(open);
      } else kept.push(open);
    }
    open = j;
  }
  if (open >= 0) kept.push(open);
  return { kept, dropped, side };
}

function rotateRows(x: Float64Array, i: number, j: number, n: number, c: number, s: number): void {
  for (let at = 0; at < n; at++) {
    const [a, b] = [x[i + at]!, x[j + at]!];
    x[i + at] = c * a + s * b;
    x[j + at] = c * b - s * a;
  }
}
