import { StrutError } from "../errors.ts";
import type { RandomizedSvdOptions } from "../linalg/index.ts";
import { cast, concat, hostNumbers, indexSelect, matmul, mul, noGrad, reshape, scale, scope, slice, sumSquares, tensor, type Tensor } from "../tensor/index.ts";
import { lowRank } from "./low-rank.ts";
import type { LinearOperator } from "./operator.ts";

export interface LowRankOptions extends RandomizedSvdOptions {
  /** "randomized" finds the leading part alone, for large matrices; defaults to "exact". Sums of low-rank operators are always exact. */
  svd?: "exact" | "randomized";
}

export interface LowRankResult {
  operator: ReturnType<typeof lowRank>;
  /** ‖W − BA‖_F / ‖W‖_F; 0 for W = 0. */
  error: number;
  /** √Σσ² of what was left out: ‖W − BA‖_F. "randomized" takes it from ‖W‖² − Σσ², to about 3e-4·‖W‖ in f32. */
  discarded: number;
  /** ‖W‖_F */
  norm: number;
}

type LowRank = ReturnType<typeof lowRank>;

/** The low-rank operators that a sum is made of, or undefined if something else is in it. */
function lowRankTerms(operator: LinearOperator): LowRank[] | undefined {
  if (operator.kind === "low-rank") return [operator as LowRank];
  if (operator.kind !== "sum") return undefined;
  const terms = Object.values(operator.inner!).map(lowRankTerms);
  return terms.includes(undefined) ? undefined : (terms as LowRank[][]).flat();
}

/**
 * B, A and scale of an operator that is made of them, as they stand but for what a diagonal core sets to 0; undefined of any other.
 *
 * @example
 * const factors = ownFactors(lowRank(zeros([64, 8]), ones([8, 32]), 2))!; // factors.scale is 2
 */
export function ownFactors({ kind, parts, options }: LinearOperator): { B: Tensor; A: Tensor; scale: number } | undefined {
  const scaling = Number(options?.["scale"]);
  const { B, core, A } = parts as { B: Tensor; core?: Tensor; A: Tensor };
  if (kind === "low-rank") return { B, A, scale: scaling };
  if (kind !== "cored-low-rank" || core?.shape.length !== 1) return undefined;
  const kept = Array.from(hostNumbers(core) as Float64Array, (value, i) => (value === 0 ? -1 : i)).filter((i) => i >= 0);
  const index = tensor(kept, [kept.length], "i32");
  return noGrad(() => ({ B: mul(indexSelect(B, 1, index), indexSelect(core, 0, index)), A: indexSelect(A, 0, index), scale: scaling }));
}

// loaded when it is needed: whoever imports operators seldom decomposes
const linalg = (): Promise<typeof import("../linalg/index.ts")> => import("../linalg/index.ts");

const values = async (x: Tensor): Promise<number[]> => Array.from((await x.data()) as Float64Array);

interface Triples {
  U: Tensor;
  S: number[];
  Vh: Tensor;
  /** ‖W‖_F², if S is not all of it. */
  total?: number;
}

/** SVD of B·A through its factors: B = U₁S₁V₁ᵀ, A = U₂S₂V₂ᵀ, and the SVD of the small S₁V₁ᵀU₂S₂. */
async function throughFactors(terms: readonly LowRank[]): Promise<Triples> {
  const B = concat(
    terms.map((term) => scale(cast(term.B, "f64"), term.scale)),
    1,
  );
  const A = concat(
    terms.map((term) => cast(term.A, "f64")),
    0,
  );
  if (B.shape[1] === 0) return { U: B, S: [], Vh: A };
  const { svd } = await linalg();
  const [left, right] = [await svd(B), await svd(A)];
  const [rows, cols] = [left.S.size, right.S.size];
  const core = mul(mul(matmul(left.Vh, right.U), reshape(left.S, [rows, 1])), reshape(right.S, [1, cols]));
  const inner = await svd(core);
  return { U: matmul(left.U, inner.U), S: await values(inner.S), Vh: matmul(inner.Vh, right.Vh) };
}

async function ofDense(W: Tensor, rank: number, { svd: method = "exact", ...options }: LowRankOptions): Promise<Triples> {
  const { svd, randomizedSvd } = await linalg();
  if (method === "exact" || rank === 0) {
    const { U, S, Vh } = await svd(W);
    return { U, S: await values(S), Vh };
  }
  const { U, S, Vh } = await randomizedSvd(W, rank, options);
  return { U, S: await values(S), Vh, total: sumSquares([W]) };
}

/**
 * The nearest operator of a rank: B = U·√S, A = √S·Vh of the leading singular triples. The error is what the spectrum beyond
 * the rank amounts to. A low-rank operator, or a sum of such, is converted through its factors, never as a dense matrix.
 *
 * @example
 * const { operator, error } = await toLowRank(dense(tensor([2, 0, 0, 1], [2, 2])), 1);
 */
export async function toLowRank(operator: LinearOperator, rank: number, options: LowRankOptions = {}): Promise<LowRankResult> {
  const most = Math.min(operator.out, operator.in);
  if (!(Number.isInteger(rank) && rank >= 0 && rank <= most))
    throw new StrutError("range", `toLowRank: rank ${rank} is not between 0 and ${most}, the smaller side of ${operator.out}×${operator.in}`);
  return noGrad(() =>
    scope(async () => {
      const terms = lowRankTerms(operator);
      const matrix = terms ? terms[0]!.B : operator.toDense();
      const { U, S, Vh, total } = await (terms ? throughFactors(terms) : ofDense(matrix, rank, options));
      const kept = Math.min(rank, S.length);
      const whole = total === undefined ? Math.hypot(...S) : Math.sqrt(total);
      const discarded = total === undefined ? Math.hypot(...S.slice(kept)) : Math.sqrt(Math.max(0, total - S.reduce((sum, x) => sum + x * x, 0)));
      const root = tensor(S.slice(0, kept).map(Math.sqrt), [kept], U.dtype);
      const B = cast(mul(slice(U, 1, 0, kept), root), matrix.dtype);
      const A = cast(mul(slice(Vh, 0, 0, kept), reshape(root, [kept, 1])), matrix.dtype);
      return { operator: lowRank(B, A), error: whole === 0 ? 0 : discarded / whole, discarded, norm: whole };
    }),
  );
}
