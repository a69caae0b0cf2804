import { StrutError } from "../errors.ts";
import { matmul } from "../tensor/ops/matmul.ts";
import { permute, reshape } from "../tensor/ops/shape.ts";
import { scope } from "../tensor/scope.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { block, turned } from "./blocks.ts";
import { narrowedTo, widened } from "./numbers.ts";
import { singularRows } from "./svd.ts";

export interface Tucker {
  /** r₁×…×r_d */
  core: Tensor;
  /** n_k×r_k with orthonormal columns, one a mode. */
  factors: Tensor[];
}

/** Axes with `mode` first. */
const modeFirst = (d: number, mode: number): number[] => [mode, ...Array.from({ length: d }, (_, i) => i).filter((i) => i !== mode)];

/** The mode-k unfolding: n_k × the rest. */
function unfold(x: Tensor, mode: number): Tensor {
  return reshape(permute(x, modeFirst(x.shape.length, mode)), [x.shape[mode]!, -1]);
}

/**
 * x ×ₖ m: every fibre of x along axis `mode` times the matrix m (rows×n_k). Differentiable.
 *
 * @example
 * const y = modeProduct(ones([2, 3, 4]), ones([5, 3]), 1); // 2×5×4
 */
export function modeProduct(x: Tensor, m: Tensor, mode: number): Tensor {
  const d = x.shape.length;
  if (!(mode >= 0 && mode < d) || m.shape.length !== 2 || m.shape[1] !== x.shape[mode])
    throw new StrutError(
      "shape",
      `modeProduct: a matrix of shape [${m.shape}] does not fit axis ${mode} of [${x.shape}]; its second extent must equal that axis`,
    );
  const order = modeFirst(d, mode);
  const product = reshape(matmul(m, unfold(x, mode)), [m.shape[0]!, ...order.slice(1).map((axis) => x.shape[axis]!)]);
  return permute(
    product,
    order.map((_, axis) => order.indexOf(axis)),
  );
}

/** The leading left singular vectors of the mode-k unfolding, n_k×rank. */
function leading(x: Tensor, mode: number, rank: number): Tensor {
  return scope(() => {
    const { left } = singularRows(unfold(x, mode), "tucker");
    return turned(narrowedTo(widened(block(left, 0, rank, 0, left.shape[1]!)), x.dtype));
  });
}

/**
 * x ≈ core ×₁ U₁ … ×_d U_d with U_k n_k×r_k: the truncated higher-order SVD (De Lathauwer et al. 2000), then `sweeps` rounds of
 * orthogonal iteration (HOOI), each of which can only lower the error; sweeps defaults to 0.
 *
 * @example
 * const { core, factors } = await tucker(new Rng(1).normal([4, 5, 6], 1), [2, 2, 3], { sweeps: 2 });
 */
export async function tucker(x: Tensor, ranks: readonly number[], { sweeps = 0 }: { sweeps?: number } = {}): Promise<Tucker> {
  const d = x.shape.length;
  ranks.forEach((rank, mode) => {
    const most = Math.min(x.shape[mode] ?? 0, x.size / x.shape[mode]!);
    if (!(Number.isInteger(rank) && rank >= 1 && rank <= most))
      throw new StrutError("range", `tucker: rank ${rank} of axis ${mode} is not between 1 and ${most} for shape [${x.shape}]`);
  });
  if (ranks.length !== d) throw new StrutError("shape", `tucker: ${ranks.length} ranks for ${d} axes; give one a axis`);
  return scope(() => {
    const factors = ranks.map((rank, mode) => leading(x, mode, rank));
    const projected = (skipped: number): Tensor => factors.reduce((y, factor, mode) => (mode === skipped ? y : modeProduct(y, turned(factor), mode)), x);
    for (let sweep = 0; sweep < sweeps; sweep++)
      ranks.forEach((rank, mode) => {
        const y = projected(mode);
        // ranks may have cut the other modes below this one's rank
        if (y.size / y.shape[mode]! >= rank) factors[mode] = leading(y, mode, rank);
      });
    return { core: projected(-1), factors };
  });
}

/** core ×₁ U₁ … ×_d U_d. */
export const tuckerReconstruct = ({ core, factors }: Tucker): Tensor => factors.reduce((y, factor, mode) => modeProduct(y, factor, mode), core);
