import { z } from "zod";
import type { Site } from "../nn/contracts.ts";
import { coredLowRank, scaledRows, type LinearOperator } from "../operators/index.ts";
import { cast, full, slice, TorchRng, zeros, type Real, type Tensor } from "../tensor/index.ts";
import { adapter, addAt } from "./adapter.ts";
import { dropInput } from "./lora.ts";

const options = z.object({
  r: z.int().positive().default(256).describe("rank of the shared random matrices, which may be above that of a layer; defaults to 256"),
  projectionPrngKey: z.int().nonnegative().default(0).describe("seed of the shared matrices, as torch draws them on a CPU; defaults to 0"),
  saveProjection: z.boolean().default(true).describe("store the shared matrices; else they are drawn again on loading; defaults to true"),
  veraDropout: z.number().min(0).lt(1).default(0).describe("probability of zeroing an input of the update in training; defaults to 0"),
  dInitial: z.number().default(0.1).describe("start of the vector d; defaults to 0.1"),
  initWeights: z.literal(true).default(true).describe("b starts at zero, d at dInitial; always true"),
});
type Bank = { A: Tensor; B: Tensor };
type Params = { b: Tensor; d: Tensor };

/** A matrix of the bank, drawn by torch's generator, in the model's dtype. */
export const drawn = (x: Tensor, dtype: Real): Tensor => cast(cast(x, "f32"), dtype);

function updateOf({ b, d }: Params, { A, B }: Bank, { out, in: inner }: Site): LinearOperator {
  return scaledRows(b, coredLowRank(slice(B, 0, 0, out), d, slice(A, 1, 0, inner)));
}

/**
 * VeRA: ΔW = diag(b)·B·diag(d)·A, with one pair of frozen random matrices for the whole model, cut to each layer; b and d train.
 * Kopiczko, Blankevoort & Asano 2023, arXiv:2310.11454.
 *
 * @example
 * const tuned = await adapt(model, vera, { r: 64 });
 */
export const vera = adapter({
  id: "vera",
  title: "VeRA",
  paper: "arXiv:2310.11454",
  kinds: ["linear"],
  anyRank: true,
  options,
  shared(sites, o, { dtype }): Bank {
    const rng = new TorchRng(o.projectionPrngKey);
    const most = (extent: (site: Site) => number): number => Math.max(...sites.map(extent));
    const A = rng.kaimingUniform([o.r, most((site) => site.in)]);
    const B = rng.kaimingUniform([most((site) => site.out), o.r]);
    return { A: drawn(A, dtype), B: drawn(B, dtype) };
  },
  init: (site, o, { dtype }): Params => ({ b: zeros([site.out], dtype), d: full([o.r], o.dInitial, dtype) }),
  update: (p, site, _o, _live, shared) => updateOf(p, shared, site),
  forward(x, y, p, site, o, live, shared) {
    return addAt(site, updateOf(p, shared, site), y, dropInput(x, { dropout: o.veraDropout }, site, live));
  },
  layout: {
    type: "VERA",
    tensors: { linear: { b: "vera_lambda_b", d: "vera_lambda_d" } },
    shared: { A: "vera_A", B: "vera_B" },
    storesShared: (o) => o["saveProjection"] === true,
    frozen: ["A", "B"],
    derived: true,
  },
});
