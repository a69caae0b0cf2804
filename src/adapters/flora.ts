import { z } from "zod";
import { StrutError } from "../errors.ts";
import { modeProduct } from "../linalg/index.ts";
import type { Site } from "../nn/contracts.ts";
import { coredLowRank, lowRank, type LinearOperator } from "../operators/index.ts";
import { reshape, transpose, zeros, type Tensor } from "../tensor/index.ts";
import { adapter, addAt, atEvery } from "./adapter.ts";
import { dropInput } from "./lora.ts";

const options = z.object({
  r: z
    .union([z.int().positive(), z.array(z.int().positive()).min(2)])
    .default(16)
    .describe("rank of each factor, [in, out, kernel height, kernel width]; a number stands for in and out, cut to what a side has; defaults to 16"),
  kernelRank: z.int().positive().default(2).describe("rank of the kernel's factors where r is a number, cut to the kernel; defaults to 2"),
  scale: z.number().default(4).describe("factor on the update, not divided by r; defaults to 4"),
  alpha: z.number().default(8).describe("of the two presets for linear layers: the update is scaled by alpha / r; defaults to 8"),
  dropout: z.number().min(0).lt(1).default(0.01).describe("probability of zeroing an input of the update in training; defaults to 0.01"),
  coreInit: z
    .enum(["tucker", "deberta", "llama"])
    .default("tucker")
    .describe("tucker: factors normal with std 1/√(2r); the presets of the language experiments draw theirs as A and B; the core is zero; defaults to tucker"),
});
type Options = z.output<typeof options>;
/** G r_in×r_out(×r_h×r_w) and P_i dim_i×r_i: in, out, kernel height, kernel width. */
type Params = { G: Tensor; P0: Tensor; P1: Tensor; P2?: Tensor; P3?: Tensor };

/** Extents of a site's weight in the order of the factors. */
function extents(site: Site): number[] {
  if (!site.conv) return [site.in, site.out];
  const [height, width] = site.conv.kernel;
  return [site.in / (height * width), site.out, height, width];
}

function ranks(site: Site, { r, kernelRank }: Options): number[] {
  const dims = extents(site);
  if (typeof r === "number") return dims.map((dim, i) => Math.min(dim, i < 2 ? r : kernelRank));
  const wrong = dims.findIndex((dim, i) => (r[i] ?? 0) < 1 || r[i]! > dim);
  if (wrong >= 0 || r.length < dims.length)
    throw new StrutError("option", `r [${r}] does not fit ${site.path}, whose weight is ${dims.join("×")} (in, out, kernel)`, {
      path: "r",
      hint: "Give a rank for each axis, none above its extent.",
    });
  return r.slice(0, dims.length);
}

const scaleOf = (o: Options, r: number): number => (o.coreInit === "tucker" ? o.scale : o.alpha / (o.coreInit === "deberta" ? r + 1e-5 : r));

function updateOf({ G, P0, P1, P2, P3 }: Params, o: Options): LinearOperator {
  const s = scaleOf(o, G.shape[0]!);
  if (!P2) return coredLowRank(P1, transpose(G), transpose(P0), s);
  // r_out×in×kh×kw: a convolution's A; P₁ is its 1×1 B
  const A = [P0, P2, P3!].reduce((x, factor, i) => modeProduct(x, factor, [0, 2, 3][i]!), G);
  return lowRank(P1, reshape(transpose(A, 0, 1), [P1.shape[1]!, -1]), s);
}

/**
 * FLoRA: ΔW = s·G ×₁P₀ ×₂P₁ ×₃P₂ ×₄P₃, a small core of the order of the weight; a linear layer's is s·P₁·Gᵀ·P₀ᵀ. The core starts at zero.
 * Si et al. 2024, arXiv:2405.14739. Not the optimiser Flora, nor federated FLoRA. The official code's tensors are read where a
 * strut.json beside them gives the options.
 *
 * @example
 * const tuned = await adapt(model, flora, { r: 8, scale: 4 });
 */
export const flora = adapter({
  id: "flora",
  title: "FLoRA",
  paper: "arXiv:2405.14739",
  kinds: ["linear", "conv2d", "embedding"],
  options,
  init(site, o, { rng, dtype }): Params {
    const [dims, r] = [extents(site), ranks(site, o)];
    const factor = (dim: number, i: number): Tensor => {
      const stream = rng.fork(`P${i}`);
      if (o.coreInit === "deberta") return stream.normal([dim, r[i]!], 0.02, dtype);
      // torch's fan-in of A r×in is in, and of B out×r is r
      if (o.coreInit === "llama") return stream.uniform([dim, r[i]!], 1 / Math.sqrt(i === 0 ? dim : r[i]!), dtype);
      return stream.normal([dim, r[i]!], 1 / Math.sqrt(2 * r[i]!), dtype);
    };
    return { G: zeros(r, dtype), ...Object.fromEntries(dims.map((dim, i) => [`P${i}`, factor(dim, i)])) } as Params;
  },
  update: (p: Params, _site, o) => updateOf(p, o),
  forward: (x, y, p, site, o, live) => addAt(site, updateOf(p, o), y, dropInput(x, o, site, live)),
  layout: {
    tensors: atEvery({ G: "flora_G", P0: "flora_P0", P1: "flora_P1", P2: "flora_P2", P3: "flora_P3" }),
    published(key) {
      const [, module, part] = /^(.+)\.flora_layer\.param_(G|[0-3])$/.exec(key) ?? [];
      return part && `${module}.flora_${part === "G" ? part : `P${part}`}`;
    },
  },
  verify(p, site) {
    const dims = extents(site);
    const fits =
      Object.keys(p).length === dims.length + 1 &&
      p.G?.shape.length === dims.length &&
      dims.every((dim, i) => String(p[`P${i}` as keyof Params]?.shape) === String([dim, p.G.shape[i]]));
    if (fits) return;
    const found = Object.entries(p).map(([name, { shape }]) => `${name} [${shape}]`);
    throw new StrutError(
      "peft-shape",
      `FLoRA needs at ${site.path} a core G and a factor P of each axis of its ${dims.join("×")} weight (in, out, kernel); found ${found.join(", ")}`,
    );
  },
});
