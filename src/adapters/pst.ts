import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Regime, Site } from "../nn/contracts.ts";
import { dense } from "../operators/index.ts";
import {
  abs,
  add,
  affine,
  customGradient,
  globalMasks,
  hostNumbers,
  matmul,
  mul,
  noGrad,
  reshape,
  scale,
  tensor,
  zeros,
  type Tensor,
} from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { adapter } from "./adapter.ts";
import { cubic } from "./sensitivity.ts";

const share = z.number().min(0).max(1);
const options = z.object({
  weightRank: z.int().positive().default(8).describe("rank of the change U·V; defaults to 8"),
  maskRank: z.int().nonnegative().default(8).describe("rank of the learned part A·B of the score; defaults to 8"),
  weightBeta: z.number().default(1).describe("factor on U·V; defaults to 1"),
  maskAlpha1: z.number().default(1).describe("factor on A·B in the score; defaults to 1"),
  maskAlpha2: z.number().default(1).describe("factor on the scores of rows and columns; defaults to 1"),
  initialSparsity: share.default(0).describe("share of zeros at the start; defaults to 0"),
  sparsity: share.default(0.9).describe("share of zeros at the end, in each matrix by itself; defaults to 0.9"),
  initialWarmup: share.default(0.1).describe("share of the steps before pruning begins; defaults to 0.1"),
  finalWarmup: share.default(0.3).describe("share of the steps at the final sparsity; defaults to 0.3"),
});
type Options = z.output<typeof options>;
type Params = Record<"U" | "V" | "A" | "B" | "R" | "C" | "v", Tensor> & { mask?: Tensor };

/** Sparsity after so many of all steps. */
export const sparsityAt = (step: number, steps: number, o: Options): number =>
  cubic(step, o.initialWarmup * steps, steps - o.finalWarmup * steps, o.initialSparsity, o.sparsity);

/** 0 at the ⌊v·size⌋ smallest scores, earlier ones first where they tie, else 1; the gradient goes straight through. */
const maskOf = (scores: Tensor, v: number): Tensor =>
  customGradient(
    [scores],
    (S) => affine(globalMasks([S], Math.floor(v * S.size), { largest: false })[0]!, -1, 1),
    (g) => [g],
  );

/** M ⊙ (W + β·U·V). */
function sparse(p: Params, { weight }: Site, o: Options): Tensor {
  const W = add(weight.toDense(), scale(matmul(p.U, p.V), o.weightBeta));
  if (p.mask) return mul(W, reshape(tensor(Array.from(hostNumbers(p.mask), Number), p.mask.shape, W.dtype as "f32"), W.shape));
  const v = Number((hostView(p.v) as Float32Array)[0]);
  const [out, inner] = W.shape as [number, number];
  const lines = add(reshape(p.R, [out, 1]), reshape(p.C, [1, inner]));
  const scores = add(add(abs(W), scale(matmul(p.A, p.B), o.maskAlpha1)), scale(lines, o.maskAlpha2));
  return mul(W, maskOf(scores, v));
}

/** From here on the scores decide, not the mask that was loaded. */
function setSparsity(views: readonly { params: Params }[], v: number): void {
  for (const { params } of views) {
    delete params.mask;
    (hostView(params.v) as Float32Array)[0] = v;
  }
}

function regime(o: Options): Regime<Params> {
  if (o.initialWarmup + o.finalWarmup > 1)
    throw new StrutError("option", `pst: initialWarmup ${o.initialWarmup} and finalWarmup ${o.finalWarmup} are more than the whole run together`, {
      path: "finalWarmup",
      hint: "Choose shares of the steps whose sum is at most 1.",
    });
  return {
    beforeForward: ({ step, steps, views }) => setSparsity(views, sparsityAt(step, steps, o)),
    afterStep: ({ step, steps, views }) => setSparsity(views, sparsityAt(step + 1, steps, o)),
  };
}

/**
 * PST: M ⊙ (W + β·U·V), where M keeps the largest scores |W + β·U·V| + α₁·A·B + α₂·(R1ᵀ + 1Cᵀ); sparsity grows by a cube over the run.
 * Li et al. 2022, arXiv:2205.11005. Merged it is an ordinary matrix with zeros.
 *
 * @example
 * const pruned = await adapt(model, pst, { weightRank: 4, maskRank: 4, sparsity: 0.8 });
 */
export const pst = adapter({
  id: "pst",
  title: "PST",
  paper: "arXiv:2205.11005",
  kinds: ["linear"],
  options,
  size: "weightRank",
  waives: [{ law: "gradients of its parameters match finite differences", because: 'pst.md: "∂M/∂S = identity (straight-through), so g_S = g_{M⊙Ŵ} ⊙ Ŵ"' }],
  init({ out, in: inner }, o, { rng, dtype }): Params {
    return {
      U: rng.fork("U").normal([out, o.weightRank], 1, dtype),
      V: zeros([o.weightRank, inner], dtype),
      A: rng.fork("A").normal([out, o.maskRank], 1, dtype),
      B: zeros([o.maskRank, inner], dtype),
      R: zeros([out], dtype),
      C: zeros([inner], dtype),
      v: zeros([1], dtype),
    };
  },
  weight: (p: Params, site, o) => dense(sparse(p, site, o)),
  regime,
  finish(p, site, o) {
    if (p.mask) return { params: p };
    const kept = Array.from(hostNumbers(noGrad(() => sparse(p, site, o))) as Float32Array, (x) => Number(x !== 0));
    return { params: { ...p, mask: tensor(kept, [kept.length], "u8") } };
  },
  layout: {
    tensors: {
      linear: { U: "weight_U", V: "weight_V", A: "mask_scores_A", B: "mask_scores_B", R: "mask_scores_R", C: "mask_scores_C", v: "sparsity", mask: "mask" },
    },
    frozen: ["v"],
  },
});
