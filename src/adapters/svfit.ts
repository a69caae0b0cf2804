import { z } from "zod";
import { StrutError } from "../errors.ts";
import { svd } from "../linalg/index.ts";
import { coredLowRank } from "../operators/index.ts";
import {
  copyOf,
  hostNumbers,
  matmul,
  maximum,
  mul,
  putAdd,
  reshape,
  scale,
  slice,
  sub,
  tensor,
  transpose,
  zeros,
  type Parameter,
  type Tensor,
} from "../tensor/index.ts";
import { adapter, atEvery } from "./adapter.ts";

const options = z.object({
  r: z.int().positive().optional().describe("leading singular values that train; defaults to the fewest that hold `energy`"),
  energy: z.number().gt(0).max(1).default(0.99).describe("share that the r singular values must hold, where r is not given; defaults to 0.99"),
  criterion: z.enum(["energy", "sum"]).default("energy").describe("what `energy` is a share of: Σσ² or Σσ; defaults to energy"),
  scale: z.number().default(1).describe("factor on the change; defaults to 1"),
  relative: z.boolean().default(false).describe("train δ of z = σ·(1 + δ), so that steps are relative and decay pulls to σ; defaults to false"),
  pattern: z
    .enum(["plain", "banded", "random", "top"])
    .default("plain")
    .describe(
      "what trains between singular directions: the diagonal, a band, or the diagonal and places that are random, or where left and right vectors of a square matrix are most alike (SVFT); defaults to plain",
    ),
  offDiagonals: z.int().positive().default(1).describe("diagonals beside the main one in a band; as many numbers at other places; defaults to 1"),
  nonNegative: z.boolean().default(false).describe("count a singular value below 0 as 0, so that no direction turns; defaults to false"),
  saveSubspace: z.boolean().default(true).describe("store the singular vectors; else they are computed again on loading; defaults to true"),
});
type Options = z.output<typeof options>;
type Params = { z: Tensor; sigma: Tensor; U: Tensor; V: Tensor; between?: Tensor; index?: Tensor };

/** The fewest leading values that hold a share of Σσ² or Σσ. */
export function leadingCount(sigma: ArrayLike<number>, share: number, criterion: Options["criterion"]): number {
  const sizes = Array.from(sigma, (s) => (criterion === "energy" ? s * s : s));
  const total = sizes.reduce((sum, x) => sum + x, 0);
  let held = 0;
  const at = sizes.findIndex((x) => (held += x) >= share * total * (1 - 1e-12));
  return total === 0 ? 1 : at + 1;
}

/** Flat places beside the diagonal of the r×r core that train. */
function places(r: number, { pattern, offDiagonals }: Options, permuted: (n: number) => ArrayLike<number>, likeness: () => ArrayLike<number>): number[] {
  if (pattern === "plain") return [];
  const off = Array.from({ length: r * r }, (_, at) => at).filter((at) => at % (r + 1) !== 0);
  const band = off.filter((at) => Math.abs(Math.floor(at / r) - (at % r)) <= offDiagonals);
  if (pattern === "banded") return band;
  if (pattern === "top") {
    const alike = likeness();
    return off
      .sort((a, b) => Math.abs(alike[b]!) - Math.abs(alike[a]!) || a - b)
      .slice(0, band.length)
      .sort((a, b) => a - b);
  }
  const order = permuted(off.length);
  return Array.from({ length: band.length }, (_, i) => off[order[i]!]!).sort((a, b) => a - b);
}

/**
 * SVFit: ΔW = s·U_r·diag(z − σ_r)·V_rᵀ with W = U·diag(σ)·Vᵀ; only the r numbers z train, from σ_r, without weight decay.
 * Sun et al. 2024, arXiv:2409.05926; with `pattern` SVFT's core Σ + M (arXiv:2405.19597), M from zero, so that training starts at the base.
 *
 * @example
 * const tuned = await adapt(model, svfit, { r: 16 });
 */
export const svfit = adapter({
  id: "svfit",
  title: "SVFit",
  paper: "arXiv:2409.05926",
  kinds: ["linear", "conv2d", "embedding"],
  options,
  async init(site, o, context): Promise<Params> {
    const W = site.weight.toDense();
    const { U, S, Vh } = await svd(W);
    const r = o.r ?? leadingCount((await S.data()) as Float32Array, o.energy, o.criterion);
    const sigma = copyOf(slice(S, 0, 0, r));
    if (o.pattern === "top" && site.out !== site.in)
      throw new StrutError(
        "option",
        `svfit: the pattern top compares left with right singular vectors, and ${site.path} is ${site.out}×${site.in}, not square`,
        {
          path: "pattern",
          hint: "Choose banded or random, or targets that are square.",
        },
      );
    // uᵢᵀvⱼ
    const likeness = (): ArrayLike<number> => hostNumbers(matmul(transpose(slice(U, 1, 0, r)), transpose(slice(Vh, 0, 0, r)))) as Float32Array;
    const index = places(r, o, (n) => context.rng.permutation(n), likeness);
    return {
      z: o.relative ? zeros([r], W.dtype) : copyOf(sigma),
      sigma,
      U: copyOf(slice(U, 1, 0, r)),
      V: copyOf(transpose(slice(Vh, 0, 0, r))),
      ...(index.length > 0 ? { between: zeros([index.length], W.dtype), index: tensor(index, [index.length], "i32") } : {}),
    };
  },
  update({ z: own, sigma, U, V, between, index }: Params, _site, o) {
    const free = o.relative ? mul(sigma, own) : sub(own, sigma);
    // z ≥ 0 is z − σ ≥ −σ
    const change = o.nonNegative ? maximum(free, scale(sigma, -1)) : free;
    if (!between) return coredLowRank(U, change, transpose(V), o.scale);
    const r = change.size;
    const diagonal = Int32Array.from({ length: r }, (_, i) => i * (r + 1));
    const core = putAdd(putAdd(zeros([r * r], change.dtype), tensor(diagonal, [r], "i32"), change), index!, between);
    return coredLowRank(U, reshape(core, [r, r]), transpose(V), o.scale);
  },
  // decay of z itself would pull the singular values, and so the model, to 0; that of δ pulls to the base
  regime: ({ relative }) => (relative ? {} : { groups: ({ views }) => [{ parameters: views.map(({ params }) => params.z as Parameter), weightDecay: 0 }] }),
  finish: ({ U, V, ...trained }, _site, o) => ({ params: (o.saveSubspace ? { ...trained, U, V } : trained) as Params }),
  layout: {
    tensors: atEvery({ z: "svfit_z", sigma: "svfit_sigma", U: "svfit_U", V: "svfit_V", between: "svfit_M", index: "svfit_index" }),
    frozen: ["sigma", "U", "V"],
    derived: true,
  },
});
