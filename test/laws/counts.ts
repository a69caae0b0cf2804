import { factorization } from "../../src/adapters/index.ts";
import type { Site } from "../../src/nn/contracts.ts";

type Shape = Pick<Site, "out" | "in" | "kind"> & Partial<Pick<Site, "path" | "conv" | "bias">>;

const areaOf = ({ conv }: Shape): number => (conv ? conv.kernel[0] * conv.kernel[1] : 1);
// oxlint-disable-next-line typescript/no-explicit-any -- each method's own options
type Options = Record<string, any>;

/** What a method's sheet says of its size, and small options to try its laws with. */
export interface Sheet {
  /** The sheet, and the words in it that give the formula. */
  readonly says: string;
  /** Trainable numbers of one site. */
  count(site: Shape, o: Options): number;
  /** Trainable numbers of what sites share. */
  shared?(sites: readonly Shape[], o: Options): number;
  /** Scaffolds on which the method has nothing to train, or nothing that can be felt. */
  readonly skips?: readonly string[];
  /** Trainable numbers of the copies of all targeted layers, given what each holds; a tied weight counts once. */
  copies?(layers: readonly { weight: number; bias: number; norm: boolean }[]): number;
  /** The option that is a rank, if one is. */
  readonly rank?: string;
  /** Options that fit tiny sites; the first runs on every scaffold, all run on the first. */
  readonly variants: readonly Options[];
  /** Totals the sheet prints: [out, in, how many] of the sites. */
  readonly totals?: readonly {
    readonly says: string;
    readonly options: Options;
    readonly sites: readonly (readonly [number, number, number])[];
    readonly total: number;
  }[];
}

const llama3B = [
  [3072, 3072, 28],
  [1024, 3072, 28],
] as const;

const lora = (o: Options, { out, in: inner, kind }: Shape): number => o["r"] * (inner + out) + (o["loraBias"] && kind === "linear" ? out : 0);

/** One entry a method of the catalog, by id. */
export const sheets: Readonly<Record<string, Sheet>> = {
  lora: {
    says: '_lora-baselines.md: "r(in+out)"',
    count: (site, o) => lora(o, site),
    rank: "r",
    variants: [
      { r: 2, alpha: 3 },
      { r: 3, dropout: 0.4 },
      { r: 1, initLoraWeights: "gaussian" },
      { r: 2, loraBias: true },
    ],
    totals: [
      {
        says: '_lora-baselines.md: "Llama-3.2-3B q_proj 3072→3072 & v_proj 3072→1024, 28 layers: LoRA r32 9,175,040"',
        options: { r: 32 },
        sites: llama3B,
        total: 9_175_040,
      },
    ],
  },
  rslora: {
    says: '_lora-baselines.md: "same"',
    count: (site, o) => lora(o, site),
    rank: "r",
    variants: [
      { r: 2, alpha: 3 },
      { r: 4, dropout: 0.4 },
    ],
  },
  dora: {
    says: '_lora-baselines.md: "r(in+out)+out"',
    count: (site, o) => lora(o, site) + site.out,
    rank: "r",
    variants: [
      { r: 2, alpha: 3 },
      { r: 3, dropout: 0.4 },
      { r: 2, useRslora: true },
      { r: 2, loraBias: true },
    ],
    totals: [{ says: '_lora-baselines.md: "DoRA r32 9,289,728"', options: { r: 32 }, sites: llama3B, total: 9_289_728 }],
  },
  svfit: {
    says: 'svfit.md: "trainable = Σ r"',
    count: (_site, o) => o["r"] + (o["pattern"] === "plain" ? 0 : o["r"] * (2 * o["offDiagonals"] + 1) - o["offDiagonals"] * (o["offDiagonals"] + 1) - o["r"]),
    rank: "r",
    variants: [{ r: 2 }, { r: 3, relative: true, scale: 0.5, nonNegative: true }, { r: 3, pattern: "banded" }, { r: 4, pattern: "random", offDiagonals: 2 }],
  },
  loldu: {
    says: 'loldu.md: "trainable = Σ r"',
    count: (_site, o) => o["r"] + (o["trainScale"] ? 1 : 0),
    rank: "r",
    variants: [
      { r: 2, alpha: 3 },
      { r: 3, initMethod: "uniform" },
      { r: 3, initMethod: "normal" },
      { r: 2, initMethod: "constant", trainScale: true },
      { r: 3, pivoting: "rook", saveFactors: false },
    ],
  },
  flora: {
    says: 'flora.md: "Trainable = Π r_i + Σ dim_i r_i"',
    count({ out, in: inner, kind, conv }, o) {
      const dims = [inner / areaOf({ out, in: inner, kind, ...(conv ? { conv } : {}) }), out, ...(conv?.kernel ?? [])];
      const r = dims.map((dim, i) => Math.min(dim, i < 2 ? (o["r"] as number) : 2));
      return r.reduce((product, n) => product * n, 1) + dims.reduce((sum, dim, i) => sum + dim * r[i]!, 0);
    },
    rank: "r",
    variants: [
      { r: 2, scale: 1 },
      { r: 3, dropout: 0.4, coreInit: "llama" },
      { r: 1, coreInit: "deberta" },
    ],
  },
  bottleneck: {
    says: 'compacter.md: "Dense adapter r32: 37 656·48"',
    count: ({ out }, o) => 2 * out * o["width"] + o["width"] + out + (o["addLayerNormBefore"] ? 2 * out : 0) + (o["addLayerNormAfter"] ? 2 * out : 0),
    variants: [
      { width: 2, unfreezeLayerNorms: false },
      { width: 1, nonLinearity: "relu", addLayerNormBefore: true, addLayerNormAfter: true, unfreezeLayerNorms: false },
    ],
    totals: [{ says: 'compacter.md: "37 656·48"', options: { width: 24 }, sites: [[768, 768, 48]], total: 37_656 * 48 }],
  },
  compacter: {
    says: 'compacter.md: "n·ρ·(k/n+d/n) = ρ(k+d) weights + d bias"',
    count({ out }, o) {
      const [m, n, rho] = [o["width"], o["phmDim"], o["phmRank"] ?? 1];
      const weights = o["factorizedPhmW"] === false ? (2 * out * m) / n : 2 * rho * (out + m);
      const rules = o["sharedPhmRule"] === false ? 2 * n ** 3 : 0;
      return weights + rules + m + out;
    },
    shared: (_sites, o) => (o["sharedPhmRule"] === false || o["learnPhm"] === false ? 0 : o["factorizedPhmRule"] ? 2 * o["phmDim"] ** 2 : o["phmDim"] ** 3),
    variants: [
      { width: 1, phmDim: 1, unfreezeLayerNorms: false },
      { width: 1, phmDim: 1, factorizedPhmW: false, unfreezeLayerNorms: false, sharedPhmRule: false },
      { width: 1, phmDim: 1, factorizedPhmRule: true, unfreezeLayerNorms: false, phmInitRange: 0.5 },
    ],
    totals: [
      {
        says: 'compacter.md: "per adapter 2·(768+24)+24+768 = 2376"',
        options: { width: 24, phmDim: 4, learnPhm: false },
        sites: [[768, 768, 48]],
        total: 114_048,
      },
    ],
  },
  loha: {
    says: '_lora-baselines.md: "2r(in+out)"',
    count: ({ out, in: inner }, o) => 2 * o["r"] * (inner + out),
    rank: "r",
    variants: [
      { r: 2, alpha: 3 },
      { r: 3, rankDropout: 0.3 },
      { r: 2, moduleDropout: 0.3 },
    ],
  },
  lokr: {
    says: '_lora-baselines.md: "w1 is ol×im, full unless `decompose_both` and r<max(ol,im)/2"',
    count(site, o) {
      const area = areaOf(site);
      const [[ol, ok], [im, inn]] = [factorization(site.out, o["decomposeFactor"]), factorization(site.in / area, o["decomposeFactor"])];
      const r = o["r"] as number;
      const small = o["decomposeBoth"] && r < Math.max(ol, im) / 2 ? r * (ol + im) : ol * im;
      return small + (r < Math.max(ok, inn) / 2 ? r * (ok + inn * area) : ok * inn * area);
    },
    rank: "r",
    variants: [
      { r: 1, alpha: 3 },
      { r: 2, rankDropout: 0.3, rankDropoutScale: true },
      { r: 1, decomposeBoth: true, decomposeFactor: 4 },
      { r: 1, initWeights: "lycoris", moduleDropout: 0.2 },
    ],
  },
  ia3: {
    says: '_lora-baselines.md: "IA3 | non-FF: y = l⊙(xWᵀ+b), l (out,1); FF: y = (x⊙lᵀ)Wᵀ+b, l (1,in)"',
    count: ({ out, in: inner, path }, o) =>
      ((o["feedforwardModules"] ?? ["down_proj", "mlp.c_proj"]) as string[]).some((name) => path?.endsWith(name)) ? inner : out,
    variants: [{}, { feedforwardModules: ["o_proj", "q_proj"] }],
  },
  bone: {
    says: 'bone.md: "trainable r·out (default), out·r (bat), r·mini_r (mini)"',
    count: ({ out }, o) => o["r"] * (o["initWeights"] === "mini" ? o["miniR"] : out),
    rank: "r",
    variants: [{ r: 3 }, { r: 2, missDropout: 0.3 }, { r: 1, initWeights: "bat" }, { r: 2, initWeights: "mini", miniR: 1 }],
    totals: [
      { says: 'bone.md: "Llama-3.2-3B q,v r64: 7,340,032"', options: { r: 64 }, sites: llama3B, total: 7_340_032 },
      { says: 'bone.md: "mini(64) 229,376"', options: { r: 64, miniR: 64, initWeights: "mini" }, sites: llama3B, total: 229_376 },
    ],
  },
  vera: {
    says: '_lora-baselines.md: "out + r"',
    count: ({ out }, o) => out + o["r"],
    variants: [{ r: 6 }, { r: 3, veraDropout: 0.4 }, { r: 20, saveProjection: false, projectionPrngKey: 5 }],
    totals: [{ says: '_lora-baselines.md: "VeRA r256 129,024"', options: { r: 256 }, sites: llama3B, total: 129_024 }],
  },
  randlora: {
    says: 'randlora.md: "trainable = Σ n(r+d)"',
    count({ out, in: inner }, o) {
      const d = Math.min(out, inner);
      return Math.ceil(d / o["r"]) * (o["r"] + d);
    },
    variants: [
      { r: 2, randloraAlpha: 3 },
      { r: 3, randloraAlpha: 3, randloraDropout: 0.4 },
      { r: 4, randloraAlpha: 2, sparse: true },
      { r: 2, randloraAlpha: 2, pairing: "paper" },
      { r: 20, saveProjection: false, verySparse: true },
    ],
    totals: [{ says: 'randlora.md: "Llama-3.2-3B q,v r32: 9,289,728"', options: { r: 32 }, sites: llama3B, total: 9_289_728 }],
  },
  nola: {
    says: 'nola.md: "trainable = Σ_layers 2k"',
    count: (_site, o) => 2 * o["numBasis"],
    rank: "r",
    variants: [
      { r: 2, numBasis: 5 },
      { r: 1, numBasis: 40, generator: "torch-cpu", sharedSeed: true },
      { r: 2, numBasis: 3, baseFactor: "none", cacheBases: true },
    ],
    totals: [
      { says: 'nola.md: "GPT-2 L: 36 layers·2 matrices·2 factors·256 = 36,864"', options: { numBasis: 256 }, sites: [[1280, 1280, 72]], total: 36_864 },
      { says: 'nola.md: "k=1000 → 0.144M"', options: { numBasis: 1000 }, sites: [[1280, 1280, 72]], total: 144_000 },
    ],
  },
  "lora-xs": {
    says: '_lora-baselines.md: "r²"',
    count: (_site, o) => o["r"] ** 2,
    rank: "r",
    variants: [{ r: 2 }, { r: 3, dropout: 0.4, svd: "randomized" }],
  },
  sora: {
    says: 'sora.md: "trainable = Σ r(in+out+1)"',
    count: ({ out, in: inner }, o) => o["r"] * (inner + out + 1),
    rank: "r",
    variants: [
      { r: 2, alpha: 3 },
      { r: 3, dropout: 0.3, sparseLambda: 0.1, prox: "official" },
      { r: 3, sparseLambda2: 0.05, lambdaSchedule: "linear", lambdaNum: 2, stageSteps: 1, maxLambda: 0.5 },
    ],
  },
  dylora: {
    says: 'dylora.md: "trainable = r(in+out)"',
    count: ({ out, in: inner }, o) => o["r"] * (inner + out),
    rank: "r",
    variants: [
      { r: 3, alpha: 3 },
      { r: 3, frozen: true, scaling: "alpha/r" },
      { r: 4, rank: 2, rMin: 2, dropout: 0.3 },
    ],
  },
  allora: {
    says: 'allora.md: "trainable r(m+n), state as LoRA"',
    count: ({ out, in: inner }, o) => o["r"] * (inner + out),
    rank: "r",
    variants: [{ r: 2 }, { r: 3, scope: "outputs", dropout: 0.3 }, { r: 2, asf: true, etaSquared: 1 }],
  },
  mos: {
    says: 'mos.md: "Trainable = e·L·Σ_kinds(in+out), independent of r, l, p"',
    count: () => 0,
    shared: (sites, o) => sites.reduce((total, { out, in: inner }) => total + o["validR"] * (inner + out), 0),
    variants: [
      { r: 1, validR: 1, dropout: 0 },
      { r: 2, validR: 2, privateR: 1, dropout: 0.3 },
      { r: 2, validR: 2, pairDissociation: false },
      { r: 2, validR: 2, balanced: true },
    ],
    totals: (
      [
        [2, 4_997_120],
        [8, 19_988_480],
        [64, 159_907_840],
      ] as const
    ).map(([validR, total]) => ({
      says: `mos.md: "Llama-2-7B: e=${validR} → ${total}"`,
      options: { validR },
      sites: [
        [4096, 4096, 128],
        [11008, 4096, 64],
        [4096, 11008, 32],
      ] as const,
      total,
    })),
  },
  s2lora: {
    says: 's2lora.md: "Trainable = Σ_classes R(in+out) + R·#modules"',
    count: (_site, o) => o["r"],
    shared(sites, o) {
      const total = (key: (site: Shape) => string | number, width: (site: Shape) => number): number =>
        [...new Map(sites.map((site) => [key(site), width(site)])).values()].reduce((a, b) => a + b, 0);
      const [inputs, outputs] = [(site: Shape): number => site.in, (site: Shape): number => site.out];
      const shape = (site: Shape): string => `${site.out}x${site.in}`;
      return o["r"] * (o["shareClasses"] === false ? total(shape, inputs) + total(shape, outputs) : total(inputs, inputs) + total(outputs, outputs));
    },
    variants: [
      { r: 3 },
      { r: 2, sparsity: "penalty", lambdaOrthogonal: 0.1, normalize: false, dropout: 0.3 },
      { r: 20, targetSparsity: 0.5 },
      { r: 3, shareClasses: false, zeroInit: "B" },
    ],
    totals: [{ says: 's2lora.md: "2·32·768 + 144·32 = 53 760"', options: { r: 32 }, sites: [[768, 768, 144]], total: 53_760 }],
  },
  full: {
    says: 'INDEX.md: "full"',
    count: () => 0,
    copies: (layers) => layers.reduce((total, { weight, bias }) => total + weight + bias, 0),
    variants: [{}],
  },
  bitfit: {
    says: 'INDEX.md: "bitfit"',
    count: () => 0,
    copies: (layers) => layers.reduce((total, { bias }) => total + bias, 0),
    skips: ["llama, tied, without biases, f32", "gpt2 of width 1, f32"],
    variants: [{}],
  },
  adalora: {
    says: 'adalora.md: "trainable = Σ r(in+out+1)"',
    count: ({ out, in: inner }, o) => o["initR"] * (inner + out + 1),
    rank: "initR",
    variants: [
      { initR: 2, targetR: 1, alpha: 3 },
      { initR: 3, targetR: 1, tinit: 1, tfinal: 1, dropout: 0.3 },
      { initR: 2, targetR: 1, importance: "magnitude" },
    ],
    totals: [{ says: '_lora-baselines.md: "AdaLoRA init_r 64 18,353,664"', options: { initR: 64 }, sites: llama3B, total: 18_353_664 }],
  },
  increlora: {
    says: 'increlora.md: "saved useful = Σ n_k(in+out+1)"',
    count: ({ out, in: inner }, o) => o["r"] * (inner + out + 1),
    rank: "r",
    variants: [
      { r: 1, targetRank: 1, alpha: 3 },
      { r: 1, targetRank: 2, topH: 30, increInterval: 1, dropout: 0.2, warmupSteps: 1 },
      { r: 1, targetRank: 2, topH: 30, increInterval: 1, allocation: "random", advanceLearn: false },
    ],
  },
  "lora-ggpo": {
    says: 'lora-ggpo.md: "trainable = r(m+n); memory overhead: 2 m-vectors per layer"',
    count: ({ out, in: inner }, o) => o["r"] * (inner + out),
    rank: "r",
    variants: [
      { r: 2, alpha: 3 },
      { r: 3, mode: "mgpo" },
      { r: 2, firstStep: "weights", normDim: "out" },
      { r: 2, mode: "sd", firstStep: "weights" },
    ],
  },
  pst: {
    says: 'pst.md: "trainable = Σ_layers (r1+r2+1)(out+in)"',
    count: ({ out, in: inner }, o) => (o["weightRank"] + (o["maskRank"] ?? o["weightRank"]) + 1) * (out + inner),
    variants: [
      { weightRank: 2, maskRank: 1 },
      { weightRank: 1, maskRank: 0, sparsity: 0.5, initialWarmup: 0, finalWarmup: 0.2 },
      { weightRank: 1, maskEvery: 3, finalWarmup: 0, initialWarmup: 0 },
    ],
    totals: [
      {
        says: 'pst.md: "17·165 888 = 2 820 096"',
        options: { weightRank: 8, maskRank: 8 },
        sites: [
          [768, 768, 48],
          [3072, 768, 12],
          [768, 3072, 12],
        ],
        total: 2_820_096,
      },
    ],
  },
  relora: {
    says: '_optimizer-baselines.md: "W0 += s·BA, then A re-drawn kaiming(a=√5), B=0, every `relora` steps"; W is a copy that trains in the warm start alone',
    count: ({ out, in: inner }, o) => o["r"] * (inner + out),
    rank: "r",
    variants: [
      { r: 2, alpha: 3, dropout: 0, every: 2 },
      { r: 1, dropout: 0.3, every: 3, warmStart: 2, reset: "magnitude", resetShare: 0.8 },
    ],
  },
  sara: {
    says: 'sara.md: "trainable vector θ_M = θ[M] (nnz)"',
    count: ({ out, in: inner, bias }, o) => [out * inner, bias?.size ?? 0].reduce((sum, n) => sum + Math.round((o["share"] ?? 1) * n), 0),
    copies: (layers) => layers.reduce((total, { weight, bias, norm }) => total + (norm ? weight + bias : 0), 0),
    variants: [{ share: 0.6 }, { threshold: 99 }, { share: 0.5, progressiveIter: 1, lambdaRank: 0.1, leastSide: 0, leastCount: 0 }],
  },
  pissa: {
    says: '_lora-baselines.md: "LoRA on residual base"',
    count: (site, o) => lora(o, site),
    rank: "r",
    variants: [
      { r: 2, alpha: 3 },
      { r: 3, dropout: 0.3, useRslora: true },
    ],
  },
  olora: {
    says: '_lora-baselines.md: "LoRA on residual base"',
    count: (site, o) => lora(o, site),
    rank: "r",
    variants: [
      { r: 2, alpha: 3 },
      { r: 3, dropout: 0.3 },
    ],
  },
  loram: {
    says: 'loram.md: "recovered: Σ r(in+out)"',
    count: ({ out, in: inner }, o) => o["r"] * (out + inner),
    rank: "r",
    variants: [{ r: 2, alpha: 3, dropout: 0 }, { r: 3 }],
  },
  dsee: {
    says: 'dsee.md: "trainable (no head) = 2·L·(r·(in+out)+N)"',
    count: ({ out, in: inner }, o) => o["r"] * (inner + out) + Math.min(o["numSparse"], inner * out),
    variants: [
      { r: 1, alpha: 3, numSparse: 2, sparseMethod: "omp" },
      { r: 2, alpha: 4, numSparse: 5, outerIters: 2, rankStep: 1, dropout: 0.3 },
      { r: 1, numSparse: 3, sparseMethod: "rp", adPruningRatio: 0.3 },
    ],
    totals: [{ says: 'dsee.md: "24·(16·1536+16)=590 208"', options: { r: 16, numSparse: 16 }, sites: [[768, 768, 24]], total: 590_208 }],
  },
};
