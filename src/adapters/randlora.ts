import { z } from "zod";
import type { Site } from "../nn/contracts.ts";
import { lowRank, type LinearOperator } from "../operators/index.ts";
import {
  concat,
  customGradient,
  full,
  hostNumbers,
  mul,
  permute,
  reshape,
  slice,
  sum,
  tensor,
  TorchRng,
  transpose,
  zeros,
  cast,
  type Tensor,
} from "../tensor/index.ts";
import { adapter, addAt } from "./adapter.ts";
import { dropInput } from "./lora.ts";
import { drawn } from "./vera.ts";

const options = z.object({
  r: z.int().positive().default(32).describe("rank of each random product; a smaller one means more of them, and more parameters; defaults to 32"),
  randloraAlpha: z.number().default(640).describe("the update is scaled by randloraAlpha / r; defaults to 640"),
  randloraDropout: z.number().min(0).lt(1).default(0).describe("probability of zeroing an input of the update in training; defaults to 0"),
  projectionPrngKey: z.int().nonnegative().default(0).describe("seed of the shared bases, as torch draws them on a CPU; defaults to 0"),
  saveProjection: z.boolean().default(true).describe("store the shared bases; else they are drawn again on loading; defaults to true"),
  sparse: z.boolean().default(false).describe("bases of −1, 0 and 1, two thirds of them 0; defaults to false"),
  verySparse: z.boolean().default(false).describe("bases of −1, 0 and 1, all but 1/√d of them 0; defaults to false"),
  pairing: z
    .enum(["peft", "paper"])
    .default("peft")
    .describe("which bases meet which scales: as PEFT and the official code flatten them, or Bⱼ·Λⱼ·A·Γⱼ as the paper has it; defaults to peft"),
  initWeights: z.literal(true).default(true).describe("lambda starts at zero; always true"),
});
type Options = z.output<typeof options>;
/** A r×1×d and B D×N×r, for the largest sides of all sites. */
type Bank = { A: Tensor; B: Tensor };
/** λ r×n and γ n×d. */
type Params = { lambda: Tensor; gamma: Tensor };

const small = ({ out, in: inner }: Site): number => Math.min(out, inner);
const large = ({ out, in: inner }: Site): number => Math.max(out, inner);

/** Numbers over their standard deviation (n − 1), with torch's roundings where it draws in bf16. */
function standardised(x: Tensor, dtype: "f32" | "bf16"): Tensor {
  const rounded = (numbers: ArrayLike<number>, shape: readonly number[]): Tensor => cast(cast(tensor(numbers, shape), dtype), "f32");
  const values = Array.from(hostNumbers(x) as Float32Array);
  const mean = values.reduce((total, value) => total + value, 0) / values.length;
  const variance = values.reduce((total, value) => total + (value - mean) ** 2, 0) / Math.max(1, values.length - 1);
  const std = (hostNumbers(rounded([Math.sqrt(variance)], [1])) as Float32Array)[0]!;
  return rounded(
    values.map((value) => value / std),
    x.shape,
  );
}

/** −1 below 1/(2s), 1 above 1 − 1/(2s), else 0. */
function signs(u: Tensor, s: number): Tensor {
  const edge = 1 / (2 * s);
  return tensor(
    Array.from(hostNumbers(u) as Float32Array, (x) => (x < edge ? -1 : x > 1 - edge ? 1 : 0)),
    u.shape,
  );
}

function bank(sites: readonly Site[], o: Options): Bank {
  const [out, inner] = [Math.max(...sites.map((site) => site.out)), Math.max(...sites.map((site) => site.in))];
  const [D, d] = [Math.max(out, inner), Math.min(out, inner)];
  const n = Math.ceil(d / o.r);
  const rng = new TorchRng(o.projectionPrngKey);
  if (o.sparse || o.verySparse) {
    const s = o.verySparse ? Math.sqrt(d) : 3;
    const A = signs(rng.rand([o.r, 1, d]), s);
    return { A: standardised(A, "f32"), B: standardised(signs(rng.rand([D, n, o.r]), s), "f32") };
  }
  const kaiming = (shape: readonly number[]): Tensor => cast(rng.kaimingUniform(shape, { a: Math.sqrt(5), dtype: "bf16" }), "f32");
  const A = kaiming([o.r, 1, d]);
  const B = concat(
    Array.from({ length: n }, () => kaiming([D, 1, o.r])),
    1,
  );
  return { A: standardised(A, "bf16"), B: standardised(B, "bf16") };
}

/** λ·A·γ, r×n×d; saves its inputs alone. */
const scaledBases = (A: Tensor, lambda: Tensor, gamma: Tensor): Tensor => {
  const [r, n] = lambda.shape as [number, number];
  const d = gamma.shape[1]!;
  const of = (l: Tensor, g: Tensor): Tensor => mul(mul(A, reshape(l, [r, n, 1])), reshape(g, [1, n, d]));
  return customGradient([lambda, gamma], of, (G) => {
    const weighted = mul(G, A);
    return [sum(mul(weighted, reshape(gamma, [1, n, d])), { axes: [2] }), sum(mul(weighted, reshape(lambda, [r, n, 1])), { axes: [0] })];
  });
};

/**
 * Column i of B̃ is basis ⌊i/r⌋, i mod r, and meets row i of Ã: as PEFT flattens them that of scales ⌊i/n⌋ and i mod n, in the paper of its
 * own basis.
 */
function updateOf({ lambda, gamma }: Params, { A, B }: Bank, site: Site, o: Options): LinearOperator {
  const [r, n] = lambda.shape as [number, number];
  const d = gamma.shape[1]!;
  const scaled = scaledBases(slice(A, 2, 0, d), lambda, gamma);
  const right = reshape(o.pairing === "paper" ? permute(scaled, [1, 0, 2]) : scaled, [r * n, d]);
  const [rows, all] = [B.shape[0]!, B.shape[1]! * r];
  const left = slice(slice(reshape(B, [rows, all]), 1, 0, n * r), 0, 0, large(site));
  const s = o.randloraAlpha / o.r;
  return d === site.in ? lowRank(left, right, s) : lowRank(transpose(right), transpose(left), s);
}

/**
 * RandLoRA: ΔW = s·Σⱼ Bⱼ·Λⱼ·A·Γⱼ, of full rank, with one bank of frozen random bases for the whole model; the diagonals Λ and Γ train.
 * Albert et al. 2025, arXiv:2502.00987. Bases and scales are paired as PEFT does unless `pairing` says as the paper; such an adapter only strut reads.
 *
 * @example
 * const tuned = await adapt(model, randlora, { r: 8, randloraAlpha: 160 });
 */
export const randlora = adapter({
  id: "randlora",
  title: "RandLoRA",
  paper: "arXiv:2502.00987",
  kinds: ["linear"],
  anyRank: true,
  options,
  shared(sites, o, { dtype }): Bank {
    const { A, B } = bank(sites, o);
    return { A: drawn(A, dtype), B: drawn(B, dtype) };
  },
  init(site, o, { dtype }): Params {
    const d = small(site);
    const n = Math.ceil(d / o.r);
    return { lambda: zeros([o.r, n], dtype), gamma: full([n, d], 1 / Math.max(n, d), dtype) };
  },
  update: (p, site, o, _live, shared) => updateOf(p, shared, site, o),
  forward(x, y, p, site, o, live, shared) {
    return addAt(site, updateOf(p, shared, site, o), y, dropInput(x, { dropout: o.randloraDropout }, site, live));
  },
  layout: {
    type: "RANDLORA",
    own: { pairing: "peft" },
    tensors: { linear: { lambda: "randlora_lambda", gamma: "randlora_gamma" } },
    shared: { A: "randlora_A", B: "randlora_B" },
    storesShared: (o) => o["saveProjection"] === true,
    repeated: ["randlora_A", "randlora_B"],
    frozen: ["A", "B"],
    derived: true,
  },
});
