import type { Site } from "../nn/contracts.ts";
import { dense, lowRank, type LinearOperator } from "../operators/index.ts";
import { hostNumbers, matmul, mul, scale, tensor, type Tensor } from "../tensor/index.ts";
import { adapter, addAt } from "./adapter.ts";
import { dropInput, initLora, loraOptions, loraPeftOptions } from "./lora.ts";
import type { z } from "zod";

const options = loraOptions.pick({ r: true, alpha: true, dropout: true }).extend({
  alpha: loraOptions.shape.alpha.default(16).describe("the update is scaled by alpha / r; defaults to 16"),
  dropout: loraOptions.shape.dropout.default(0.05).describe("probability of zeroing an input of the update in training; defaults to 0.05"),
});
type Options = z.output<typeof options>;
/** mask: 1 where the base has an entry, 0 where it is zero; absent from a base without zeros. */
type Params = { A: Tensor; B: Tensor; mask?: Tensor };

/** Where W is not zero. A quantised matrix has zeros that no pruning put there. */
function maskOf({ weight, out, in: inner }: Site): Tensor | undefined {
  if (weight.kind !== "dense") return undefined;
  const W = weight.toDense();
  const values = hostNumbers(W);
  const zero = (x: number | bigint): boolean => Number(x) === 0;
  return values.some(zero)
    ? tensor(
        Array.from(values as Float32Array, (x) => Number(!zero(x))),
        [out, inner],
        W.dtype as "f32",
      )
    : undefined;
}

function updateOf({ A, B, mask }: Params, { r, alpha }: Options): LinearOperator {
  const s = r === 0 ? 0 : alpha / r;
  return mask ? dense(mul(scale(matmul(B, A), s), mask)) : lowRank(B, A, s);
}

/**
 * LoRAM: a LoRA that is trained on a pruned base and used on the full one: W + (alpha / r)·M ⊙ (B·A), where M is 0 at the zeros of the
 * base it sits on. `prune` makes that base and `recover` puts A and B back; on a full base nothing is masked, and it is a LoRA.
 * Zhang et al. 2025, arXiv:2502.13533.
 *
 * @example
 * const { model: small, kept } = await prune(base, { ratio: 0.5, variant: "rand" });
 * const large = recover(await adapt(small, loram, { r: 4 }), base, kept);
 */
export const loram = adapter({
  id: "loram",
  title: "LoRAM",
  paper: "arXiv:2502.13533",
  kinds: ["linear"],
  options,
  defaults: (_, layers) => ({
    targets: [...new Set(layers.filter(({ kind }) => kind === "linear").map(({ path }) => path.split(".").at(-1)!))],
  }),
  begins: "factors",
  init(site, o, context): Params {
    const mask = maskOf(site);
    return { ...(initLora(site, o, context) as Params), ...(mask ? { mask } : {}) };
  },
  update: (p: Params, _site, o) => updateOf(p, o),
  forward: (x, y, p, site, o, live) => addAt(site, updateOf(p, o), y, dropInput(x, o, site, live)),
  layout: {
    type: "LORA",
    options: loraPeftOptions,
    tensors: { linear: { A: "lora_A.weight", B: "lora_B.weight" } },
    frozen: ["mask"],
    derived: true,
    beside: true,
  },
});
