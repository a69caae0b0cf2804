import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { ParameterLink, State } from "../nn/contracts.ts";
import { kernels } from "../tensor/engine.ts";
import { cast, contiguous, dynamicLevels, empty, isReal, Tensor, zeros, type Parameter, type Rng } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";

export interface AdamOptions {
  beta1?: number;
  beta2?: number;
  eps?: number;
  /**
   * With c = 1 − beta^t: "torch" gives (m/c1) / (√(v/c2) + eps), "hf", as in the first transformers, (√c2/c1)·m / (√v + eps),
   * and "uncorrected" m / (√v + eps). Defaults to "torch".
   */
  form?: "torch" | "hf" | "uncorrected";
  /**
   * How m and v are kept between steps: as computed, rounded at random to bf16, or in blocks of 256 numbers of 8 bits on the
   * dynamic map. Defaults to "f32".
   */
  state?: "f32" | "bf16" | "8bit";
  /** Smaller tensors keep f32 in spite of "8bit". Defaults to 4096. */
  min8bitSize?: number;
}

const beta = z.number().min(0).lt(1);

export const betas = z.tuple([beta, beta]).default([0.9, 0.999]).describe("decay of the averages of gradients and of their squares; defaults to [0.9, 0.999]");

/** The options that Adam's relatives share. */
export const adamOptions = ({ eps }: { eps: number }) => ({
  betas,
  eps: z.number().positive().default(eps).describe(`added to the denominator; defaults to ${eps}`),
  state: z
    .enum(["f32", "bf16", "8bit"])
    .default("f32")
    .describe("how the averages are kept: as computed (f32), rounded at random to bf16, or in blocks of 256 with 8 bits a number; defaults to f32"),
  min8bitSize: z.int().nonnegative().default(4096).describe("numbers below which a tensor's averages stay f32 in spite of 8bit; defaults to 4096"),
});

/** Adam's direction by the options of an optimiser. */
export const adamCoreOf = ({ betas: [beta1, beta2], ...o }: Omit<AdamOptions, "beta1" | "beta2"> & { betas: readonly [number, number] }): ParameterLink =>
  adamCore({ ...o, beta1, beta2 });

/** The block of bitsandbytes, and of the kernel adam_blocks. */
const BLOCK = 256;

/** An average in 8 bits: its codes, and the largest size of each block, by which they are scaled. */
interface Blocks extends State {
  codes: Tensor;
  largest: Tensor;
}

type Average = Tensor | Blocks;

function average(w: Parameter, { state = "f32", min8bitSize = 4096 }: AdamOptions): Average {
  if (state === "bf16") return zeros(w.shape, "bf16");
  if (state === "f32" || w.size < min8bitSize) return zeros(w.shape, w.dtype);
  return { codes: zeros(w.shape, "u8"), largest: zeros([Math.ceil(w.size / BLOCK)]) };
}

/** Rounds to bf16 up or down at random: to the nearest, steps of less than 1/512 of an average would be lost for ever. */
function storeRounded(average: Tensor, computed: Tensor, { key }: Rng): void {
  kernels().random_round(computed, computed, computed.size, ...key, 0);
  kernels().f32_to_bf16(average, cast(computed, "f32"), average.size);
}

/**
 * Adam's direction, without decay or learning rate. m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)g²; `form` says how they make the
 * direction, `state` how they are kept. Kingma & Ba 2014, arXiv:1412.6980; 8 bits: Dettmers et al. 2021, arXiv:2110.02861.
 * Where t is a tensor of w's shape each element is corrected by its own count.
 */
export function adamCore(o: AdamOptions = {}): ParameterLink {
  const { beta1 = 0.9, beta2 = 0.999, eps = 1e-8, form = "torch", state = "f32" } = o;
  const corrections = (t: number): readonly [c1: number, c2: number, held: number] => {
    if (form === "uncorrected") return [1, 1, eps];
    const c2 = 1 - beta2 ** t;
    return [1 - beta1 ** t, c2, form === "hf" ? eps / Math.sqrt(c2) : eps];
  };
  const byCounts = (direction: Tensor, ...tensors: readonly [g: Tensor, m: Tensor, v: Tensor, counts: Tensor]): void => {
    const [u, g, m, v, counts] = [direction, ...tensors].map((x) => hostView(x) as Float32Array) as [
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
      Float32Array,
    ];
    for (let i = 0; i < u.length; i++) {
      const [c1, c2, held] = corrections((counts[i]! += 1));
      m[i] = beta1 * m[i]! + (1 - beta1) * g[i]!;
      v[i] = beta2 * v[i]! + (1 - beta2) * g[i]! ** 2;
      u[i] = m[i]! / c1 / (Math.sqrt(v[i]! / c2) + held);
    }
  };
  return {
    scope: "parameter",
    ...(form === "torch" && state === "f32" ? { fused: { kind: "adam", beta1, beta2, eps } } : {}),
    init: (w) => ({ t: 0, m: average(w, o), v: average(w, o) }),
    update(g, s, w, { rng }) {
      const direction = contiguous(g);
      const { m, v } = s as { m: Average; v: Average };
      if (s["t"] instanceof Tensor) {
        if (!(m instanceof Tensor && v instanceof Tensor && isReal(m.dtype)))
          throw new StrutError("option", `the elements of ${w.name} have counts of their own, which Adam's averages in ${state} do not know`, {
            path: "state",
            hint: 'Use state "f32".',
          });
        byCounts(direction, direction, m, v, s["t"]);
        return direction;
      }
      const [c1, c2, held] = corrections((s["t"] = (s["t"] as number) + 1));
      if (!(m instanceof Tensor && v instanceof Tensor)) {
        const [first, second] = [m as Blocks, v as Blocks];
        const kept = [first.codes, first.largest, second.codes, second.largest] as const;
        const out = empty(g.shape);
        kernels().adam_blocks(out, cast(direction, "f32"), ...kept, dynamicLevels(), dynamicLevels(false), g.size, beta1, beta2, held, c1, c2);
        return cast(out, g.dtype);
      }
      const [first, second] = [cast(m, g.dtype), cast(v, g.dtype)];
      // in place: a weight that decays away whole and moves at the rate −1 becomes the direction
      kernels().adamw(direction, direction, first, second, g.size, -1, beta1, beta2, held, -1, c1, c2, 1);
      if (m.dtype === "bf16") {
        storeRounded(m, first, rng.fork("m"));
        storeRounded(v, second, rng.fork("v"));
      }
      return direction;
    },
  };
}
