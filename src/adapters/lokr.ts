import { z } from "zod";
import type { Site } from "../nn/contracts.ts";
import { kronecker, type LinearOperator } from "../operators/index.ts";
import { matmul, reshape, scale, zeros, type Tensor } from "../tensor/index.ts";
import { adapter, addAt, type InitContext } from "./adapter.ts";
import { dropped, hasCore, kaiming, productOptions, tuckerMatrix } from "./loha.ts";

const options = productOptions.extend({
  decomposeBoth: z.boolean().default(false).describe("the small factor is of low rank too, where that is smaller; defaults to false"),
  decomposeFactor: z.int().default(-1).describe("extent of the small factor, where it divides; -1 for the most even split; defaults to -1"),
  rankDropoutScale: z.boolean().default(false).describe("divide by the kept share in rank dropout; defaults to false"),
  initWeights: z
    .union([z.boolean(), z.literal("lycoris")])
    .default(true)
    .describe("true: the small factor is zero; lycoris: the large one; false: none; defaults to true"),
});
type Options = z.output<typeof options>;
type Params = Readonly<Partial<Record<"w1" | "w1a" | "w1b" | "w2" | "w2a" | "w2b" | "t2", Tensor>>>;

/** A dimension as a product: factor × rest where it divides (in that order, as PEFT has it), else the most even split of at most that much. */
export function factorization(dimension: number, factor = -1): [number, number] {
  if (factor > 0 && dimension % factor === 0) return [factor, dimension / factor];
  const most = factor === -1 ? dimension : factor;
  let [m, n] = [1, dimension];
  while (m < n) {
    let next = m + 1;
    while (dimension % next !== 0) next++;
    if (next + dimension / next > m + n || next > most) break;
    [m, n] = [next, dimension / next];
  }
  return m > n ? [n, m] : [m, n];
}

function init(site: Site, o: Options, { rng, dtype }: InitContext): Params {
  const kernel = site.conv?.kernel ?? [];
  const area = kernel.reduce((product, n) => product * n, 1);
  const [[outSmall, outLarge], [inSmall, inLarge]] = [factorization(site.out, o.decomposeFactor), factorization(site.in / area, o.decomposeFactor)];
  const draw = (name: string, shape: readonly number[], blank = false): Tensor => (blank ? zeros(shape, dtype) : kaiming(rng.fork(name), shape, dtype));
  const smallIsBlank = o.initWeights === true;
  const largeIsBlank = o.initWeights === "lycoris";
  const small: Params =
    o.decomposeBoth && o.r < Math.max(outSmall, inSmall) / 2
      ? { w1a: draw("w1a", [outSmall, o.r], smallIsBlank), w1b: draw("w1b", [o.r, inSmall]) }
      : { w1: draw("w1", [outSmall, inSmall], smallIsBlank) };
  if (o.r >= Math.max(outLarge, inLarge) / 2) return { ...small, w2: draw("w2", [outLarge, inLarge, ...kernel], largeIsBlank) };
  if (hasCore(site, o))
    return {
      ...small,
      t2: draw("t2", [o.r, o.r, ...kernel]),
      w2a: draw("w2a", [o.r, outLarge]),
      w2b: draw("w2b", [o.r, inLarge], largeIsBlank),
    };
  return { ...small, w2a: draw("w2a", [outLarge, o.r]), w2b: draw("w2b", [o.r, inLarge * area], largeIsBlank) };
}

function updateOf({ w1, w1a, w1b, w2, w2a, w2b, t2 }: Params, o: Options): LinearOperator {
  const small = w1 ?? matmul(w1a!, w1b!);
  // a kernel's columns are the last of the patch, so they stay within the large factor
  const large = w2 ? reshape(w2, [w2.shape[0]!, -1]) : t2 ? tuckerMatrix(t2, w2a!, w2b!) : matmul(w2a!, w2b!);
  return kronecker(reshape(scale(small, o.alpha / o.r), [1, ...small.shape]), reshape(large, [1, ...large.shape]));
}

const names = { w1: "lokr_w1", w1a: "lokr_w1_a", w1b: "lokr_w1_b", w2: "lokr_w2", t2: "lokr_t2", w2a: "lokr_w2_a", w2b: "lokr_w2_b" } as const;

/**
 * LoKr: ΔW = (α/r)·w1 ⊗ w2, each factor whole or of rank r, whichever is smaller. Yeh et al. 2023 (LyCORIS), arXiv:2309.14859; shapes as in PEFT.
 *
 * @example
 * const tuned = await adapt(model, lokr, { r: 4, alpha: 8, decomposeFactor: 8 });
 */
export const lokr = adapter({
  id: "lokr",
  title: "LoKr",
  paper: "arXiv:2309.14859",
  kinds: ["linear", "conv2d"],
  options,
  init,
  update: (p: Params, _site, o) => updateOf(p, o),
  forward(x, y, p, site, o, live) {
    const update = dropped(updateOf(p, o), o.rankDropoutScale, site, live, o);
    return update ? addAt(site, update, y, x) : y;
  },
  layout: { type: "LOKR", tensors: { linear: names, conv2d: names } },
});
