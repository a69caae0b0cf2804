import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Regime, Site, State, Training, View } from "../nn/contracts.ts";
import { dense } from "../operators/index.ts";
import {
  abs,
  add,
  copyOf,
  customGradient,
  gemmInto,
  globalMasks,
  hostNumbers,
  keep,
  matmul,
  mul,
  noGrad,
  reshape,
  scale,
  scope,
  sum,
  tensor,
  transpose,
  zeros,
  type Parameter,
  type Tensor,
} from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { adapter } from "./adapter.ts";
import { cubic } from "./sensitivity.ts";

const share = z.number().min(0).max(1);
const options = z.object({
  weightRank: z.int().positive().default(8).describe("rank of the change U·V; defaults to 8"),
  maskRank: z.int().nonnegative().optional().describe("rank of the learned part A·B of the score; defaults to weightRank"),
  weightBeta: z.number().default(1).describe("factor on U·V; defaults to 1"),
  maskAlpha1: z.number().default(1).describe("factor on A·B in the score; defaults to 1"),
  maskAlpha2: z.number().default(1).describe("factor on the scores of rows and columns; defaults to 1"),
  initialSparsity: share.default(0).describe("share of zeros at the start; defaults to 0"),
  sparsity: share.default(0.9).describe("share of zeros at the end, in each matrix by itself; defaults to 0.9"),
  initialWarmup: share.default(0.1).describe("share of the steps before pruning begins; defaults to 0.1"),
  finalWarmup: share.default(0.3).describe("share of the steps at the final sparsity; defaults to 0.3"),
  initScale: z.number().positive().default(1).describe("standard deviation of U and A at the start; defaults to 1"),
  magnitudeGradient: z
    .boolean()
    .default(true)
    .describe("let the scores' gradient reach U and V through |W + β·U·V|, as the official code does; defaults to true"),
  maskEvery: z.int().positive().default(1).describe("steps after which sparsity and mask are settled anew; defaults to 1"),
});
type Options = z.output<typeof options>;
/** U·V changes W, A·B, R and C score it; the mask, a bit an entry, is settled by the run, or was loaded. */
type Params = Record<"U" | "V" | "A" | "B" | "R" | "C" | "v", Tensor> & { mask?: Tensor };

/** Sparsity after so many of all steps. */
export const sparsityAt = (step: number, steps: number, o: Options): number =>
  cubic(step, o.initialWarmup * steps, steps - o.finalWarmup * steps, o.initialSparsity, o.sparsity);

/** Ŵ = W + β·U·V, in memory of its own. */
function changed({ U, V }: Params, { weight }: Site, o: Options): Tensor {
  const W = copyOf(weight.toDense());
  gemmInto(W, U, V, { alpha: o.weightBeta, beta: 1 });
  return W;
}

/** Bits, row by row and the lowest first: 0 at the ⌊v·size⌋ smallest scores |Ŵ| + α₁·A·B + α₂·(R1ᵀ + 1Cᵀ), earlier ones first where they tie, else 1. */
const maskNow = (p: Params, site: Site, o: Options): Uint8Array =>
  noGrad(() =>
    scope(() => {
      const S = abs(changed(p, site, o));
      if (p.A.shape[1]! > 0) gemmInto(S, p.A, p.B, { alpha: o.maskAlpha1, beta: 1 });
      const lines = add(reshape(p.R, [site.out, 1]), reshape(p.C, [1, site.in]));
      const v = Number((hostView(p.v) as Float32Array)[0]);
      const [gone] = globalMasks([add(S, scale(lines, o.maskAlpha2))], Math.floor(v * S.size), { largest: false });
      const [bits, flags] = [new Uint8Array(Math.ceil(S.size / 8)), hostView(gone!)];
      for (let i = 0; i < S.size; i++) bits[i >> 3]! |= Number(flags[i] === 0) << (i & 7);
      return bits;
    }),
  );

/** X ⊙ M, in place. */
function cut(X: Tensor, mask: Uint8Array): Tensor {
  const values = hostView(X) as Float32Array | Float64Array;
  for (let i = 0; i < values.length; i++) values[i]! *= (mask[i >> 3]! >> (i & 7)) & 1;
  return X;
}

/**
 * M ⊙ Ŵ. The gradient goes straight through M to the scores, |Ŵ| among them unless that is frozen: with g that of M ⊙ Ŵ, the scores
 * have g ⊙ Ŵ and Ŵ has g ⊙ (M + |Ŵ|), or g ⊙ M. Backward computes Ŵ again: a step keeps one matrix a site.
 */
function sparse(p: Params, site: Site, o: Options): Tensor {
  const mask = p.mask ? (hostNumbers(p.mask) as Uint8Array) : maskNow(p, site, o);
  const { U, V, A, B, R, C } = p;
  return customGradient(
    [U, V, A, B, R, C],
    () => cut(changed(p, site, o), mask),
    (g) => {
      const W = changed(p, site, o);
      const scores = mul(g, W);
      const kept = cut(copyOf(g), mask);
      const own = o.magnitudeGradient ? add(kept, mul(g, abs(W))) : kept;
      return [
        scale(matmul(own, transpose(V)), o.weightBeta),
        scale(matmul(transpose(U), own), o.weightBeta),
        scale(matmul(scores, transpose(B)), o.maskAlpha1),
        scale(matmul(transpose(A), scores), o.maskAlpha1),
        scale(sum(scores, { axes: [1] }), o.maskAlpha2),
        scale(sum(scores, { axes: [0] }), o.maskAlpha2),
      ];
    },
  );
}

/** The masks of all sites for a sparsity; those of a run are in its checkpoints where they outlive a step. */
function settle(views: readonly View<Params>[], v: number, o: Options, kept: State | undefined): void {
  for (const { site, params } of views) {
    (hostView(params.v) as Float32Array)[0] = v;
    const found = maskNow(params, site, o);
    params.mask ??= keep(zeros([found.length], "u8"));
    (hostView(params.mask) as Uint8Array).set(found);
    if (kept) kept[site.path] = params.mask;
  }
}

function regime(o: Options): Regime<Params> {
  if (o.initialWarmup + o.finalWarmup > 1)
    throw new StrutError("option", `pst: initialWarmup ${o.initialWarmup} and finalWarmup ${o.finalWarmup} are more than the whole run together`, {
      path: "finalWarmup",
      hint: "Choose shares of the steps whose sum is at most 1.",
    });
  const kept: State | undefined = o.maskEvery > 1 ? {} : undefined;
  let run: Training<Params> | undefined;
  /** The step at which the mask of a step was settled. */
  const settled = (step: number, steps: number): number => (step === steps ? step : step - (step % o.maskEvery));
  return {
    // decay of the scores would leave magnitude alone to decide
    groups: ({ views }) => [{ parameters: views.flatMap(({ params: { A, B, R, C } }) => [A, B, R, C] as Parameter[]), weightDecay: 0 }],
    beforeForward(t) {
      // behind a step the masks are there already; at the start of a run, and of one that is resumed, they are not
      if (run === t) return;
      run = t;
      if (settled(t.step, t.steps) === t.step) settle(t.views, sparsityAt(t.step, t.steps, o), o, kept);
      else for (const { site, params } of t.views) params.mask = kept![site.path] as Tensor;
    },
    afterStep({ step, steps, views }) {
      if (settled(step + 1, steps) === step + 1) settle(views, sparsityAt(step + 1, steps, o), o, kept);
    },
    mayBeBest: ({ step, steps }) => sparsityAt(settled(step, steps), steps, o) === o.sparsity,
    ...(kept ? { state: kept } : {}),
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
    const maskRank = o.maskRank ?? o.weightRank;
    return {
      U: rng.fork("U").normal([out, o.weightRank], o.initScale, dtype),
      V: zeros([o.weightRank, inner], dtype),
      A: rng.fork("A").normal([out, maskRank], o.initScale, dtype),
      B: zeros([maskRank, inner], dtype),
      R: zeros([out], dtype),
      C: zeros([inner], dtype),
      v: zeros([1], dtype),
    };
  },
  weight: (p: Params, site, o) => dense(sparse(p, site, o)),
  regime,
  finish: (p, site, o) => ({ params: p.mask ? p : { ...p, mask: tensor(maskNow(p, site, o), [Math.ceil((site.out * site.in) / 8)], "u8") } }),
  layout: {
    tensors: {
      linear: { U: "weight_U", V: "weight_V", A: "mask_scores_A", B: "mask_scores_B", R: "mask_scores_R", C: "mask_scores_C", v: "sparsity", mask: "mask" },
    },
    frozen: ["v"],
  },
});
