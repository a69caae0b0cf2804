import { z } from "zod";
import type { Live, Site } from "../nn/contracts.ts";
import { lowRank } from "../operators/index.ts";
import { dropout, type Parameter, scale, type Tensor, transpose, zeros } from "../tensor/index.ts";
import { adapter, type InitContext } from "./adapter.ts";

export const loraOptions = z.object({
  r: z.int().positive().default(8).describe("rank of the update; defaults to 8"),
  alpha: z.number().default(8).describe("the update is scaled by alpha / r; defaults to 8"),
  dropout: z.number().min(0).lt(1).default(0).describe("probability of zeroing an input of the update in training; defaults to 0"),
  useRslora: z.boolean().default(false).describe("scale by alpha / √r instead; defaults to false"),
  loraBias: z.boolean().default(false).describe("train a bias beside B; defaults to false"),
  initLoraWeights: z
    .union([z.boolean(), z.literal("gaussian")])
    .default(true)
    .describe("true: A uniform, B zero; gaussian: A normal with std 1/r, B zero; false: both uniform; defaults to true"),
});

export type LoraOptions = z.output<typeof loraOptions>;
/** A and B of a linear site; an embedding, and a head tied to it, has embeddingA r×V and embeddingB dim×r instead. */
export type LoraParams = { A: Tensor; B: Tensor; bias?: Tensor } | { embeddingA: Tensor; embeddingB: Tensor; bias?: never };

type InitOptions = Pick<LoraOptions, "r"> & Partial<Pick<LoraOptions, "initLoraWeights" | "loraBias">>;

/** alpha / r, or alpha / √r; 0 at rank 0. */
export function loraScale(p: LoraParams, o: LoraOptions): number {
  const rank = ("A" in p ? p.A : p.embeddingA).shape[0]!;
  return rank === 0 ? 0 : o.alpha / (o.useRslora ? Math.sqrt(rank) : rank);
}

/** A r×in and B out×r for linear sites. An embedding V×dim has A r×V zero and B dim×r normal, as in PEFT. */
export function initLora(site: Site, o: InitOptions, { rng, dtype }: InitContext): LoraParams {
  if (site.kind === "embedding") return { embeddingA: zeros([o.r, site.out], dtype), embeddingB: rng.normal([site.in, o.r], 1, dtype) };
  const drawn =
    o.initLoraWeights === "gaussian" ? rng.normal([o.r, site.in], 1 / Math.max(1, o.r), dtype) : rng.uniform([o.r, site.in], 1 / Math.sqrt(site.in), dtype);
  const B = o.initLoraWeights === false && o.r > 0 ? rng.uniform([site.out, o.r], 1 / Math.sqrt(o.r), dtype) : zeros([site.out, o.r], dtype);
  return { A: drawn, B, ...(o.loraBias ? { bias: zeros([site.out], dtype) } : {}) };
}

/** scale·B·A as an operator on the site's matrix; an embedding's is its transpose. */
export function loraUpdate(p: LoraParams, o: LoraOptions) {
  return "A" in p ? lowRank(p.B, p.A, loraScale(p, o)) : lowRank(transpose(p.embeddingA), transpose(p.embeddingB), loraScale(p, o));
}

/** Dropout on the input of the update, in training only. */
export const dropInput = (x: Tensor, o: Pick<LoraOptions, "dropout">, site: Site, live: Live): Tensor =>
  live.training && o.dropout > 0 ? dropout(x, o.dropout, live.rng.fork(site.path)) : x;

export const loraTensors = {
  linear: { A: "lora_A.weight", B: "lora_B.weight", bias: "lora_B.bias" },
  embedding: { embeddingA: "lora_embedding_A", embeddingB: "lora_embedding_B" },
} as const;

export const loraPeftOptions = { alpha: "lora_alpha", dropout: "lora_dropout" } as const;

/**
 * LoRA: W + (alpha / r)·B·A, with A r×in drawn and B out×r zero, so training starts at the base model.
 * Hu et al. 2021, arXiv:2106.09685. Scale is alpha / √r with `useRslora` (arXiv:2312.03732).
 *
 * @example
 * const tuned = await adapt(model, lora, { r: 16, alpha: 32 }, { targets: "all-linear" });
 */
export const lora = adapter({
  id: "lora",
  title: "LoRA",
  paper: "arXiv:2106.09685",
  kinds: ["linear", "embedding"],
  options: loraOptions,
  init: initLora,
  update: (p: LoraParams, _site, o) => loraUpdate(p, o),
  forward: (x, y, p, site, o, live) => loraUpdate(p, o).addTo!(y, dropInput(x, o, site, live)),
  bias: (p, _site, o) => p.bias && scale(p.bias as Parameter, loraScale(p, o)),
  layout: { type: "LORA", options: loraPeftOptions, fixed: { use_dora: false }, tensors: loraTensors, tied: { A: "embeddingB", B: "embeddingA" } },
});

/** rsLoRA: LoRA scaled by alpha / √r, which keeps its size at any rank. Kalajdzievski 2023, arXiv:2312.03732. */
export const rslora = adapter({
  ...lora,
  id: "rslora",
  title: "rsLoRA",
  paper: "arXiv:2312.03732",
  options: loraOptions.extend({ useRslora: z.literal(true).default(true).describe("always true here") }),
});
