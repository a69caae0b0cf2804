import { z } from "zod";
import { lowRank } from "../operators/index.ts";
import {
  add,
  cast,
  customGradient,
  gemmInto,
  hostNumbers,
  keep,
  reshape,
  Rng,
  scale,
  scope,
  slice,
  tensor,
  TorchRng,
  zeros,
  type Real,
  type Tensor,
} from "../tensor/index.ts";
import { adapter, atEvery } from "./adapter.ts";
import { kaiming } from "./loha.ts";

const options = z.object({
  r: z.int().positive().default(8).describe("rank of A and B; defaults to 8"),
  alpha: z.number().default(8).describe("the update is scaled by alpha / r; defaults to 8"),
  numBasis: z
    .int()
    .positive()
    .default(512)
    .describe("random matrices mixed into A, and as many into B; all that trains are their coefficients; defaults to 512"),
  baseFactor: z
    .enum(["kaiming", "none"])
    .default("kaiming")
    .describe("kaiming: A has a frozen part that lets B's coefficients move first; none: A's coefficients start at random; defaults to kaiming"),
  sharedSeed: z.boolean().default(false).describe("all sites mix the same matrices, where their shapes agree; defaults to false"),
  generator: z
    .enum(["strut", "torch-cpu"])
    .default("strut")
    .describe("what draws the matrices from their seed: counters, or torch's generator on a CPU; defaults to strut"),
  cacheBases: z.boolean().default(false).describe("keep the matrices once they are drawn, numBasis times the memory of A and B; defaults to false"),
});
type Options = z.output<typeof options>;
type Params = { a: Tensor; b: Tensor; seedA: Tensor; seedB: Tensor; A0?: Tensor };

/** Matrices that are drawn at a time. */
const CHUNK = 32;

/** Matrices that are kept, by the tensor of their seed. */
const kept = new WeakMap<Tensor, Tensor[]>();

/** Calls `use` with the k random matrices of a seed, uniform in ±1/√k, some at a time: [count, rows·cols] and the first one's number. */
function forBases(seed: Tensor, k: number, size: number, dtype: Real, { generator, cacheBases }: Options, use: (W: Tensor, first: number) => void): void {
  const chunks = kept.get(seed) ?? [];
  const number = Number(hostNumbers(seed)[0]);
  const [counters, torch] = [new Rng(number).fork("nola"), new TorchRng(number)];
  const draw = (first: number): Tensor => {
    const shape = [Math.min(CHUNK, k - first), size];
    return scale(generator === "strut" ? counters.fork(`${first}`).uniform(shape, 1, dtype) : cast(torch.uniform(shape, -1, 1), dtype), 1 / Math.sqrt(k));
  };
  for (let first = 0; first < k; first += CHUNK)
    scope(() => {
      const at = first / CHUNK;
      if (cacheBases) chunks[at] ??= keep(draw(first));
      use(chunks[at] ?? draw(first), first);
    });
  if (cacheBases) kept.set(seed, chunks);
}

/** Σ cᵢ·Wᵢ, the Wᵢ drawn again in backward unless they are cached: neither pass keeps them. */
function mixture(c: Tensor, seed: Tensor, shape: readonly [number, number], o: Options): Tensor {
  const [k, size, dtype] = [c.size, shape[0] * shape[1], c.dtype as Real];
  return customGradient(
    [c],
    (coefficients) => {
      const total = zeros([1, size], dtype);
      forBases(seed, k, size, dtype, o, (W, first) => {
        gemmInto(total, reshape(slice(coefficients, 0, first, first + W.shape[0]!), [1, W.shape[0]!]), W, { beta: 1 });
      });
      return reshape(total, shape);
    },
    (G) => {
      const gradient = zeros([k, 1], dtype);
      forBases(seed, k, size, dtype, o, (W, first) => gemmInto(slice(gradient, 0, first, first + W.shape[0]!), W, reshape(G, [size, 1])));
      return [reshape(gradient, [k])];
    },
  );
}

const seedTensor = (seed: number): Tensor => tensor([seed], [1], "i32");

/**
 * NOLA: ΔW = (α/r)·B·A with A = A₀ + Σ aᵢ·Āᵢ and B = Σ bⱼ·B̄ⱼ; the random matrices are drawn from two stored seeds whenever they are
 * needed, only their coefficients train. Koohpayegani et al. 2024, arXiv:2310.02556. Wants some ten times LoRA's learning rate.
 *
 * @example
 * const tuned = await adapt(model, nola, { r: 4, numBasis: 16 });
 */
export const nola = adapter({
  id: "nola",
  title: "NOLA",
  paper: "arXiv:2310.02556",
  kinds: ["linear", "conv2d", "embedding"],
  options,
  size: "numBasis",
  init(site, o, { rng, dtype }): Params {
    const source = o.sharedSeed ? new Rng(0).fork("nola/shared") : rng;
    const seed = (name: string): Tensor => seedTensor(source.fork(name).integer(2 ** 31 - 1));
    return {
      a: o.baseFactor === "none" ? rng.fork("a").uniform([o.numBasis], 1, dtype) : zeros([o.numBasis], dtype),
      b: zeros([o.numBasis], dtype),
      seedA: seed("A"),
      seedB: seed("B"),
      ...(o.baseFactor === "kaiming" ? { A0: kaiming(rng.fork("A0"), [o.r, site.in], dtype) } : {}),
    };
  },
  update({ a, b, seedA, seedB, A0 }: Params, site, o) {
    const mixed = mixture(a, seedA, [o.r, site.in], o);
    return lowRank(mixture(b, seedB, [site.out, o.r], o), A0 ? add(A0, mixed) : mixed, o.alpha / o.r);
  },
  layout: {
    tensors: atEvery({ a: "nola_A.coefficients", b: "nola_B.coefficients", seedA: "nola_A.seed", seedB: "nola_B.seed", A0: "nola_A.weight" }),
    frozen: ["A0"],
  },
});
