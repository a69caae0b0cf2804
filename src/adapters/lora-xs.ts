import { z } from "zod";
import { randomizedSvd, svd } from "../linalg/index.ts";
import { coredLowRank } from "../operators/index.ts";
import { copyOf, mul, reshape, Rng, slice, type Tensor } from "../tensor/index.ts";
import { adapter, addAt, type InitContext } from "./adapter.ts";
import { dropInput } from "./lora.ts";
import type { Live, Site } from "../nn/contracts.ts";

export const coreOptions = z.object({
  r: z.int().positive().default(8).describe("rank; r² numbers train at each site; defaults to 8"),
  alpha: z.number().default(16).describe("the update is scaled by alpha / r; defaults to 16"),
  dropout: z.number().min(0).lt(1).default(0).describe("probability of zeroing an input of the update in training; defaults to 0"),
  svd: z
    .enum(["exact", "randomized"])
    .default("exact")
    .describe("randomized has ten passes, as the authors do, and is faster on large matrices; defaults to exact"),
});
type Options = z.output<typeof coreOptions>;
export type CoreParams = { B: Tensor; A: Tensor; R: Tensor };

export const coreUpdate = ({ B, A, R }: CoreParams, o: Pick<Options, "alpha" | "r">): ReturnType<typeof coredLowRank> => coredLowRank(B, R, A, o.alpha / o.r);

export const coreForward = (x: Tensor, y: Tensor, p: CoreParams, site: Site, o: Pick<Options, "alpha" | "r" | "dropout">, live: Live): Tensor =>
  addAt(site, coreUpdate(p, o), y, dropInput(x, o, site, live));

/** How B, A and R of a site stand in a file: the authors' names. */
export const coreTensors = { B: "lora_B.weight", A: "lora_A.weight", R: "_lora_latent_mapping.weight" } as const;

async function init(site: Site, { r, svd: way }: Options, { rng, dtype }: InitContext): Promise<CoreParams> {
  const W = site.weight.toDense();
  const { U, S, Vh } = way === "exact" ? await svd(W) : await randomizedSvd(W, r, { iterations: 10, rng: new Rng(42) });
  return {
    B: copyOf(slice(U, 1, 0, r)),
    A: copyOf(mul(slice(Vh, 0, 0, r), reshape(slice(S, 0, 0, r), [r, 1]))),
    R: rng.normal([r, r], 1e-5, dtype),
  };
}

/**
 * LoRA-XS: ΔW = (α/r)·B·R·A with B = U_r and A = Σ_r·V_rᵀ of W frozen; only R, r×r, trains, from nearly zero.
 * Bałazy et al. 2024, arXiv:2405.17604.
 *
 * @example
 * const tuned = await adapt(model, loraXs, { r: 8 });
 */
export const loraXs = adapter({
  id: "lora-xs",
  title: "LoRA-XS",
  paper: "arXiv:2405.17604",
  kinds: ["linear"],
  options: coreOptions,
  waives: [{ law: "starts at the base", because: '_lora-baselines.md: "R ~ N(0, std 1e-5)"' }],
  begins: "core",
  init,
  update: (p: CoreParams, _site, o) => coreUpdate(p, o),
  forward: (x, y, p, site, o, live) => coreForward(x, y, p, site, o, live),
  layout: {
    options: { alpha: "lora_alpha", dropout: "lora_dropout" },
    tensors: { linear: coreTensors },
    reads: { type: "LORA", tensor: coreTensors.R },
    frozen: ["B", "A"],
  },
});
