import { z } from "zod";
import type { Start } from "../initializers/initializer.ts";
import type { Live, Site } from "../nn/contracts.ts";
import { lowRank } from "../operators/index.ts";
import { StrutError } from "../errors.ts";
import { add, conv2d, dropout, matmul, mul, type Parameter, reshape, scale, sum, type Tensor, transpose, zeros } from "../tensor/index.ts";
import { adapter, addAt, type InitContext } from "./adapter.ts";

export const loraOptions = z.object({
  r: z.int().positive().default(8).describe("rank of the update; defaults to 8"),
  alpha: z.number().default(8).describe("the update is scaled by alpha / r; defaults to 8"),
  dropout: z.number().min(0).lt(1).default(0).describe("probability of zeroing an input of the update in training; defaults to 0"),
  useRslora: z.boolean().default(false).describe("scale by alpha / √r instead; defaults to false"),
  loraBias: z.boolean().default(false).describe("train a bias beside B; defaults to false"),
  initLoraWeights: z
    .union([z.boolean(), z.enum(["gaussian", "pissa", "olora", "orthogonal", "eva"]), z.string().regex(/^pissa_niter_\d+$/)])
    .default(true)
    .describe(
      "true: A uniform, B zero; gaussian: A normal with std 1/r, B zero; false: both uniform; pissa, pissa_niter_N, olora: the leading part of W, which the base gives away; orthogonal: A and B with B·A = 0; defaults to true",
    ),
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

/** Shapes of A and B: matrices, or the filters of a convolution to r channels and of a 1×1 convolution behind it, which has the groups. */
export function factorShapes({ out, in: inner, conv, path }: Site, r: number): [number[], number[]] {
  if (!conv)
    return [
      [r, inner],
      [out, r],
    ];
  const { kernel, groups } = conv;
  if (r % groups !== 0)
    throw new StrutError("option", `rank ${r} is no multiple of the ${groups} groups of ${path}`, { path: "r", hint: `Use a multiple of ${groups}.` });
  return [
    [r, (inner / (kernel[0] * kernel[1])) * groups, ...kernel],
    [out, r / groups, 1, 1],
  ];
}

/** Filters as a matrix, one a row. */
export const asMatrix = (x: Tensor): Tensor => (x.shape.length === 2 ? x : reshape(x, [x.shape[0]!, x.shape.slice(1).reduce((product, n) => product * n, 1)]));

/** A r×in and B out×r for linear sites. An embedding V×dim has A r×V zero and B dim×r normal, as in PEFT. */
export function initLora(site: Site, o: InitOptions, context: InitContext): LoraParams {
  const { dtype } = context;
  checkInitializer(String(o.initLoraWeights), context.initializer);
  if (site.kind === "embedding") return { embeddingA: zeros([o.r, site.out], dtype), embeddingB: context.rng.normal([site.in, o.r], 1, dtype) };
  const [down, up] = factorShapes(site, o.r);
  // A reads all channels of a grouped convolution, whose matrix has those of one group
  const inner = down.slice(1).reduce((product, n) => product * n, 1);
  // where B and A are those of a decomposition, see loraStart
  if (starts.test(String(o.initLoraWeights))) return { A: zeros(down, dtype), B: zeros(up, dtype), ...(o.loraBias ? { bias: zeros([site.out], dtype) } : {}) };
  const { rng } = context;
  const drawn = o.initLoraWeights === "gaussian" ? rng.normal(down, 1 / Math.max(1, o.r), dtype) : rng.uniform(down, 1 / Math.sqrt(inner), dtype);
  const B = o.initLoraWeights === false && o.r > 0 ? rng.uniform(up, 1 / Math.sqrt(up[1]!), dtype) : zeros(up, dtype);
  return { A: drawn, B, ...(o.loraBias ? { bias: zeros([site.out], dtype) } : {}) };
}

/** One start each: from the options, or from an initialiser; "eva" is the name that files have for one of these. */
function checkInitializer(wanted: string, initializer: string | undefined): void {
  if (initializer && !/^(true|eva|undefined)$/i.test(wanted))
    throw new StrutError("option", `initLoraWeights ${wanted} chooses a start, and so does the initialiser ${initializer}`, {
      path: "initLoraWeights",
      hint: "Keep one of them.",
    });
  if (!initializer && wanted.toLowerCase() === "eva")
    throw new StrutError("option", "initLoraWeights eva starts from inputs, which the adapter alone does not see", {
      path: "initLoraWeights",
      hint: "Give adapt() `initializer: { method: eva }` and `calibration` batches.",
    });
}

// PEFT reads these names in any case
const starts = /^(pissa(_niter_\d+)?|olora|orthogonal)$/i;

/** PiSSA, OLoRA and orthogonal starts; their decompositions are loaded when one is asked for. */
export async function loraStart(site: Site, o: LoraOptions, context: InitContext): Promise<Start | undefined> {
  const wanted = String(o.initLoraWeights).toLowerCase();
  const [name, iterations] = /^(pissa)_niter_(\d+)$/.exec(wanted)?.slice(1) ?? [wanted];
  if (!starts.test(String(o.initLoraWeights))) return undefined;
  if (site.kind === "embedding" || (site.conv?.groups ?? 1) > 1)
    throw new StrutError("option", `initLoraWeights ${name} needs a matrix, which ${site.path} is not`, {
      path: "initLoraWeights",
      hint: "Leave this module out.",
    });
  if (name === "orthogonal" && o.r % 2 !== 0) throw new StrutError("option", `initLoraWeights orthogonal needs an even rank, not ${o.r}`, { path: "r" });
  const { pissaStart, oloraStart, orthogonalStart } = await import("../initializers/pissa.ts");
  const scale = o.useRslora ? o.alpha / Math.sqrt(o.r) : o.alpha / o.r;
  if (name === "olora") return oloraStart(site, o.r);
  if (name === "orthogonal") return orthogonalStart(site, o.r, context);
  return pissaStart(site, o.r, { scale }, iterations === undefined ? undefined : Number(iterations));
}

/** scale·B·A as an operator on the site's matrix; an embedding's is its transpose. */
export function loraUpdate(p: LoraParams, site: Site, o: LoraOptions) {
  if (!("A" in p)) return lowRank(transpose(p.embeddingA), transpose(p.embeddingB), loraScale(p, o));
  if ((site.conv?.groups ?? 1) > 1)
    throw new StrutError(
      "merge",
      `the LoRA of ${site.path} is no change of its filters: the convolution has ${site.conv!.groups} groups, and A reads all of them`,
      {
        path: site.path,
        hint: "Keep it as an adapter.",
      },
    );
  return lowRank(asMatrix(p.B), asMatrix(p.A), loraScale(p, o));
}

/** y + scale·B·A·x, of a grouped convolution through both of its convolutions. */
export function addLora(x: Tensor, y: Tensor, p: LoraParams, site: Site, o: LoraOptions): Tensor {
  const { conv } = site;
  if (!conv || conv.groups === 1 || !("A" in p)) return addAt(site, loraUpdate(p, site, o), y, x);
  const { kernel: _, groups, ...geometry } = conv;
  return add(y, scale(conv2d(conv2d(x, p.A, null, { ...geometry, groups: 1 }), p.B, null, { groups }), loraScale(p, o)));
}

/** Squared norm of each row of B·A, through the Gram of A. */
export const rowSquares = (B: Tensor, A: Tensor): Tensor => sum(mul(matmul(B, matmul(A, transpose(A))), B), { axes: [1] });

/** Dropout on the input of the update, in training only. */
export const dropInput = (x: Tensor, o: Pick<LoraOptions, "dropout">, site: Site, live: Live): Tensor =>
  live.training && o.dropout > 0 ? dropout(x, o.dropout, live.rng.fork(site.path)) : x;

export const loraTensors = {
  linear: { A: "lora_A.weight", B: "lora_B.weight", bias: "lora_B.bias" },
  conv2d: { A: "lora_A.weight", B: "lora_B.weight", bias: "lora_B.bias" },
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
  kinds: ["linear", "conv2d", "embedding"],
  options: loraOptions,
  init: initLora,
  begins: "factors",
  start: loraStart,
  scale: (o) => (o.useRslora ? o.alpha / Math.sqrt(o.r) : o.alpha / o.r),
  update: (p: LoraParams, site, o) => loraUpdate(p, site, o),
  forward: (x, y, p, site, o, live) => addLora(dropInput(x, o, site, live), y, p, site, o),
  bias: (p, _site, o) => p.bias && scale(p.bias as Parameter, loraScale(p, o)),
  layout: { type: "LORA", options: loraPeftOptions, fixed: { use_dora: false }, tensors: loraTensors, tied: { A: "embeddingB", B: "embeddingA" } },
});

/** PiSSA: LoRA that starts at W's leading singular triples, which the base gives away. Meng et al. 2024, arXiv:2404.02948. */
export const pissa = adapter({
  ...lora,
  id: "pissa",
  title: "PiSSA",
  paper: "arXiv:2404.02948",
  kinds: ["linear", "conv2d"],
  options: loraOptions.extend({
    initLoraWeights: z
      .union([z.literal("pissa"), z.string().regex(/^pissa_niter_\d+$/)])
      .default("pissa")
      .describe("pissa, or pissa_niter_N for a randomised decomposition with N passes; defaults to pissa"),
  }),
});

/** OLoRA: LoRA that starts at the leading rows and columns of W = QR, which the base gives away. Büyükakyüz 2024, arXiv:2406.01775. */
export const olora = adapter({
  ...lora,
  id: "olora",
  title: "OLoRA",
  paper: "arXiv:2406.01775",
  kinds: ["linear", "conv2d"],
  options: loraOptions.extend({ initLoraWeights: z.literal("olora").default("olora").describe("always olora here") }),
});

/** rsLoRA: LoRA scaled by alpha / √r, which keeps its size at any rank. Kalajdzievski 2023, arXiv:2312.03732. */
export const rslora = adapter({
  ...lora,
  id: "rslora",
  title: "rsLoRA",
  paper: "arXiv:2312.03732",
  options: loraOptions.extend({ useRslora: z.literal(true).default(true).describe("always true here") }),
});
