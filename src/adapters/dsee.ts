import { z } from "zod";
import { StrutError } from "../errors.ts";
import { qr } from "../linalg/index.ts";
import type { Regime, Site, Training } from "../nn/contracts.ts";
import { dense, flatSparse, lowRank, sumOf, type LinearOperator } from "../operators/index.ts";
import {
  abs,
  add,
  affine,
  cast,
  concat,
  copyOf,
  div,
  globalMasks,
  hostNumbers,
  matmul,
  mul,
  noGrad,
  ones,
  packBits,
  scale,
  scope,
  slice,
  sub,
  tensor,
  transpose,
  unpackBits,
  zeros,
  type Real,
  type Rng,
  type Tensor,
} from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { adapter, addAt } from "./adapter.ts";
import { dropInput, loraOptions } from "./lora.ts";
import { largestPlaces } from "./sensitivity.ts";

const scoresBy = ["ABS", "AB", "WABS", "WAB", "W", "NABS", "NAB", "random"] as const;

const options = z.object({
  r: z.int().nonnegative().default(4).describe("rank of the low-rank part; 0 for the sparse part alone; defaults to 4"),
  alpha: z.number().default(32).describe("the update is scaled by alpha / r, or by 1 at r 0; defaults to 32"),
  dropout: loraOptions.shape.dropout,
  numSparse: z.int().nonnegative().default(64).describe("free entries of each matrix; defaults to 64"),
  sparseMethod: z
    .enum(["grebsmo", "rp", "omp"])
    .default("grebsmo")
    .describe("where they are: what a greedy decomposition of W leaves over, at random, or W's largest; defaults to grebsmo"),
  outerIters: z
    .int()
    .positive()
    .default(10)
    .describe("rounds of that decomposition, each of which adds rankStep to its rank; defaults to 10, the code has 100"),
  rankStep: z.int().positive().default(5).describe("rank that a round adds; defaults to 5"),
  threshold: z.number().nonnegative().default(0.01).describe("entries of W below this are not left over; defaults to 0.01"),
  adapted: z
    .array(z.string())
    .optional()
    .describe("names of the modules that get an update; other targets are only pruned; defaults to all targets, and to all linear layers for the targets"),
  adPruningRatio: z
    .number()
    .min(0)
    .lt(1)
    .default(0)
    .describe("share of the base's entries, over all adapted modules, that become zero in the second stage; defaults to 0"),
  pruningRatio: z.number().min(0).lt(1).default(0).describe("the same of the modules that are only pruned, which are a pool of their own; defaults to 0"),
  pruneMode: z
    .enum(scoresBy)
    .default("WABS")
    .describe("what an entry must be large in to stay: W, A and B, S, by their letters; N for the reciprocal; defaults to WABS"),
  pruneAt: z.number().min(0).lt(1).default(0.5).describe("share of the steps before the second stage; defaults to 0.5"),
});
type Options = z.output<typeof options>;
/** mask: a bit for each entry of the base, 0 where it is pruned, if there is a second stage. */
type Params = { A: Tensor; B: Tensor; values: Tensor; index: Tensor; mask?: Tensor };

const scaleOf = (o: Options): number => (o.r === 0 ? 1 : o.alpha / o.r);

/** S of W ≈ U·V + S by greedy bilateral steps (GreBsmo): ranks grow until `outerIters` rounds are done. */
async function leftOver(W: Tensor, o: Options, rng: Rng): Promise<Tensor> {
  const [out, inner] = W.shape as [number, number];
  let V = rng.normal([1, inner], 1, W.dtype as Real);
  let S = zeros([out, inner], W.dtype as Real);
  for (let round = 0; round < o.outerIters; round++) {
    S = zeros([out, inner], W.dtype as Real);
    let U = V;
    for (let i = 0; i < 2; i++) {
      U = (await qr(matmul(sub(W, S), transpose(V)))).Q;
      V = matmul(transpose(U), sub(W, S));
      const rest = sub(W, matmul(U, V));
      const values = hostNumbers(rest) as Float32Array;
      S = tensor(
        Array.from(values, (x) => (Math.abs(x) < o.threshold ? 0 : x)),
        [out, inner],
        W.dtype as Real,
      );
    }
    if (V.shape[0]! + o.rankStep > Math.min(out, inner)) break;
    const E = sub(sub(W, matmul(U, V)), S);
    V = concat([V, copyOf(slice((await qr(E)).R, 0, 0, o.rankStep))], 0);
  }
  return S;
}

async function support(site: Site, o: Options, rng: Rng): Promise<number[]> {
  const W = copyOf(site.weight.toDense());
  const n = Math.min(o.numSparse, W.size);
  if (n === 0) return [];
  const source = o.sparseMethod === "omp" ? W : o.sparseMethod === "rp" ? rng.normal(W.shape, 1) : await leftOver(W, o, rng);
  return largestPlaces(hostNumbers(abs(source)) as Float32Array, n);
}

/** s·(B·A + S). */
function updateOf({ A, B, values, index }: Params, site: Site, o: Options): LinearOperator {
  const s = scaleOf(o);
  return sumOf(lowRank(B, A, s), flatSparse(scale(values, s), index, [site.out, site.in]));
}

/** What decides which entries of the base stay, by mode: larger stays. */
function scores({ A, B, values, index }: Params, site: Site, o: Options, rng: Rng): Tensor {
  if (o.pruneMode === "random") return abs(rng.fork(site.path).uniform([site.out, site.in], 1));
  const s = scaleOf(o);
  const [W, AB] = [site.weight.toDense(), matmul(B, A)];
  const S = flatSparse(values, index, [site.out, site.in]).toDense();
  const of: Record<Exclude<Options["pruneMode"], "random">, () => Tensor> = {
    ABS: () => scale(add(AB, S), s),
    AB: () => scale(AB, s),
    WABS: () => add(add(W, AB), scale(S, s)), // the code's precedence: s on S alone
    WAB: () => add(W, scale(AB, s)),
    W: () => W,
    NABS: () => add(AB, S),
    NAB: () => AB,
  };
  const sizes = abs(of[o.pruneMode]());
  return o.pruneMode.startsWith("N") ? div(ones(sizes.shape, sizes.dtype as Real), sizes) : sizes;
}

const isAdapted = (site: Site, o: Options): boolean => o.adapted?.includes(site.role) ?? true;

/** Zeroes the share of each pool's base entries with the smallest scores. */
function prune({ views, rng }: Training<Params>, o: Options): void {
  noGrad(() =>
    scope(() => {
      for (const [adapted, ratio] of [
        [true, o.adPruningRatio],
        [false, o.pruningRatio],
      ] as const) {
        const pool = views.filter(({ site, params }) => params.mask && isAdapted(site, o) === adapted);
        const all = pool.map(({ params, site }) => scores(params, site, o, rng));
        const gone = Math.round(ratio * all.reduce((sum, { size }) => sum + size, 0));
        const masks = globalMasks(all, gone, { largest: false });
        for (const [i, { params }] of pool.entries())
          (hostView(params.mask!) as Uint8Array).set(hostView(packBits(cast(affine(masks[i]!, -1, 1), "i32"), 1)) as Uint8Array);
      }
    }),
  );
}

/** W ⊙ its mask. */
function prunedWeight(mask: Tensor, { weight, out, in: inner }: Site): LinearOperator {
  const W = weight.toDense();
  return dense(mul(W, cast(unpackBits(mask, [out, inner], 1), W.dtype)));
}

/**
 * DSEE: ΔW = s·(B·A + S) with S free at few fixed entries; halfway the base itself may be pruned, by scores that the update takes part in.
 * Chen et al. 2023, arXiv:2111.00160. The base's mask leaves the update whole, as in the code. `removeHeads` cuts whole heads between two runs.
 *
 * @example
 * const tuned = await adapt(model, dsee, { r: 2, numSparse: 16, sparseMethod: "omp" });
 */
export const dsee = adapter({
  id: "dsee",
  title: "DSEE",
  paper: "arXiv:2111.00160",
  kinds: ["linear"],
  options,
  begins: "factors",
  defaults: (o) => (o.adapted ? { targets: "all-linear" } : {}),
  async init(site, given, { rng, dtype }): Promise<Params> {
    const adapted = isAdapted(site, given);
    const o = adapted ? given : { ...given, r: 0, numSparse: 0 };
    const index = await support(site, o, rng.fork("support"));
    const size = site.out * site.in;
    return {
      A: rng.fork("A").normal([o.r, site.in], 0.02, dtype),
      B: zeros([site.out, o.r], dtype),
      values: zeros([index.length], dtype),
      index: tensor(index, [index.length], "i32"),
      ...((adapted ? o.adPruningRatio : o.pruningRatio) > 0 ? { mask: packBits(ones([size], "i32"), 1) } : {}),
    };
  },
  weight: ({ mask }: Params, site) => (mask ? prunedWeight(mask, site) : site.weight),
  update: (p: Params, site, o) => updateOf(p, site, o),
  forward: (x, y, p, site, o, live) => addAt(site, updateOf(p, site, o), y, dropInput(x, o, site, live)),
  regime(o): Regime<Params> {
    if (o.pruningRatio > 0 && !o.adapted)
      throw new StrutError("option", "dsee: pruningRatio is of modules that are only pruned, and without `adapted` there are none", {
        path: "pruningRatio",
        hint: "Name the adapted modules, such as adapted: [q_proj, v_proj], or use adPruningRatio.",
      });
    return {
      beforeForward(t) {
        if (t.step === Math.floor(o.pruneAt * t.steps)) prune(t, o);
      },
    };
  },
  layout: {
    tensors: { linear: { A: "lora_A.weight", B: "lora_B.weight", values: "dsee_values", index: "dsee_indices", mask: "dsee_mask" } },
    frozen: ["mask"],
  },
});
