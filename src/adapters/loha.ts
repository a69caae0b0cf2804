import { z } from "zod";
import type { Live, Site } from "../nn/contracts.ts";
import { dense, type LinearOperator } from "../operators/index.ts";
import {
  div,
  full,
  greater,
  matmul,
  maximum,
  mean,
  mul,
  permute,
  reshape,
  scale,
  transpose,
  zeros,
  type Real,
  type Rng,
  type Tensor,
} from "../tensor/index.ts";
import { adapter, addAt, type InitContext } from "./adapter.ts";

/** What LoHa and LoKr have in common, by PEFT's names. */
export const productOptions = z.object({
  r: z.int().positive().default(8).describe("rank of each factor; defaults to 8"),
  alpha: z.number().default(8).describe("the update is scaled by alpha / r; defaults to 8"),
  rankDropout: z.number().min(0).lt(1).default(0).describe("probability of dropping a whole output of the update in training; defaults to 0"),
  moduleDropout: z.number().min(0).lt(1).default(0).describe("probability of leaving the update out in training; defaults to 0"),
  useEffectiveConv2d: z.boolean().default(false).describe("give the kernel of a convolution a Tucker core of its own; defaults to false"),
});
const options = productOptions.extend({ initWeights: z.boolean().default(true).describe("start at the base; else at random; defaults to true") });
type Options = z.output<typeof options>;
type Params = Readonly<Record<"w1a" | "w1b" | "w2a" | "w2b", Tensor>> & Readonly<Partial<Record<"t1" | "t2", Tensor>>>;

/** torch's kaiming_uniform with a = √5: ± 1/√fan_in, the extent of all axes but the first. */
export const kaiming = (rng: Rng, shape: readonly number[], dtype: Real): Tensor =>
  rng.uniform(shape, 1 / Math.sqrt(shape.slice(1).reduce((product, n) => product * n, 1)), dtype);

/** Whether a site's kernel gets a core: a convolution larger than 1×1, if asked for. */
export const hasCore = ({ conv }: Site, o: { useEffectiveConv2d: boolean }): boolean =>
  o.useEffectiveConv2d && conv !== undefined && conv.kernel.some((extent) => extent > 1);

/** Σ t[i, j, k, l]·a[i, p]·b[j, q], as the matrix p × (q·k·l). */
export function tuckerMatrix(t: Tensor, a: Tensor, b: Tensor): Tensor {
  const [i, j, h, w] = t.shape as [number, number, number, number];
  const [p, q] = [a.shape[1]!, b.shape[1]!];
  const rows = matmul(transpose(a), reshape(t, [i, j * h * w]));
  const inner = matmul(transpose(b), reshape(permute(reshape(rows, [p, j, h * w]), [1, 0, 2]), [j, p * h * w]));
  return reshape(permute(reshape(inner, [q, p, h * w]), [1, 0, 2]), [p, q * h * w]);
}

/** The update in training: whole outputs dropped, or nothing at all. */
export function dropped(
  update: LinearOperator,
  rescale: boolean,
  site: Site,
  live: Live,
  o: { rankDropout: number; moduleDropout: number },
): LinearOperator | undefined {
  if (!live.training) return update;
  const rng = live.rng.fork(site.path);
  if (o.moduleDropout > 0 && rng.fork("module").random() < o.moduleDropout) return undefined;
  if (o.rankDropout === 0) return update;
  const W = update.toDense();
  const keep = greater(rng.fork("rank").uniform([site.out, 1], 1, W.dtype as Real), full([1], 2 * o.rankDropout - 1, W.dtype));
  // nothing kept: 0 / 0 in PEFT, here an update of zero
  return dense(mul(W, rescale ? div(keep, maximum(mean(keep), full([1], 1 / site.out, W.dtype))) : keep));
}

const product = (a: Tensor, b: Tensor, t: Tensor | undefined): Tensor => (t ? tuckerMatrix(t, a, b) : matmul(a, b));

function init(site: Site, o: Options, { rng, dtype }: InitContext): Params {
  const draw = (name: string, shape: readonly number[]): Tensor => kaiming(rng.fork(name), shape, dtype);
  const last = (shape: readonly number[]): Tensor => (o.initWeights ? zeros(shape, dtype) : draw("w2b", shape));
  if (!hasCore(site, o))
    return { w1a: draw("w1a", [site.out, o.r]), w1b: draw("w1b", [o.r, site.in]), w2a: draw("w2a", [site.out, o.r]), w2b: last([o.r, site.in]) };
  const { kernel } = site.conv!;
  const inner = site.in / (kernel[0] * kernel[1]);
  const core = (name: string): Tensor => draw(name, [o.r, o.r, ...kernel]);
  return {
    t1: core("t1"),
    w1a: draw("w1a", [o.r, site.out]),
    w1b: draw("w1b", [o.r, inner]),
    t2: core("t2"),
    w2a: draw("w2a", [o.r, site.out]),
    w2b: last([o.r, inner]),
  };
}

const updateOf = ({ w1a, w1b, w2a, w2b, t1, t2 }: Params, o: Options): LinearOperator =>
  dense(scale(mul(product(w1a, w1b, t1), product(w2a, w2b, t2)), o.alpha / w1b.shape[0]!));

const names = { t1: "hada_t1", w1a: "hada_w1_a", w1b: "hada_w1_b", t2: "hada_t2", w2a: "hada_w2_a", w2b: "hada_w2_b" } as const;

/**
 * LoHa: ΔW = (α/r)·(w1a·w1b) ⊙ (w2a·w2b), of rank up to r². Hyeon-Woo et al. 2021, arXiv:2108.06098, as in LyCORIS and PEFT.
 *
 * @example
 * const tuned = await adapt(model, loha, { r: 4, alpha: 8 });
 */
export const loha = adapter({
  id: "loha",
  title: "LoHa",
  paper: "arXiv:2108.06098",
  kinds: ["linear", "conv2d"],
  options,
  init,
  update: (p: Params, _site, o) => updateOf(p, o),
  forward(x, y, p, site, o, live) {
    const update = dropped(updateOf(p, o), true, site, live, o);
    return update ? addAt(site, update, y, x) : y;
  },
  layout: {
    type: "LOHA",
    tensors: { linear: names, conv2d: names },
    siteOptions: (_path, { w1b }, { r }) => (w1b && w1b.shape[0] !== r ? { r: w1b.shape[0] } : undefined),
  },
});
