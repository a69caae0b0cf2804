import { z } from "zod";
import { StrutError } from "../errors.ts";
import { orderProofPatterns } from "../formats/peft-patterns.ts";
import type { Live, Site } from "../nn/contracts.ts";
import { lowRank } from "../operators/index.ts";
import { abs, add, affine, mul, noGrad, reshape, rsqrt, scope, sqrt, stopGradient, sub, type Tensor } from "../tensor/index.ts";
import { adapter, addAt, applyAt } from "./adapter.ts";
import { dropInput, initLora, loraOptions, rowSquares } from "./lora.ts";

const options = z.object({
  r: loraOptions.shape.r,
  etaSquared: z
    .number()
    .positive()
    .default(4)
    .describe("η²: gradients of the update are scaled by η where it is zero, by less where it has grown; defaults to 4"),
  scope: z.enum(["rows", "outputs"]).default("rows").describe("scale by the norms of rows of BA, or by the update's own outputs (ALLoRA-OD); defaults to rows"),
  asf: z
    .boolean()
    .default(false)
    .describe("scale the forward pass instead of the gradient (ASF-LoRA), in a file folded into B: loaded again it is an ALLoRA; defaults to false"),
  dropout: loraOptions.shape.dropout,
});
type Options = z.output<typeof options>;
type Params = { A: Tensor; B: Tensor };

/** 1/√(‖(BA)ᵢ‖ + 1/η²) for each output, from the r×r Gram of A; a constant to the gradient. */
export function rowScale({ A, B }: Params, etaSquared: number): Tensor {
  return noGrad(() =>
    scope(() => {
      return rsqrt(affine(sqrt(abs(rowSquares(B, A))), 1, 1 / etaSquared));
    }),
  );
}

/** The LoRA that computes the same: ASF's scale goes into B. */
const plain = (p: Params, o: Options): Params => (o.asf ? { A: p.A, B: mul(reshape(rowScale(p, o.etaSquared), [-1, 1]), p.B) } : p);

function forward(x: Tensor, y: Tensor, p: Params, site: Site, o: Options, live: Live): Tensor {
  const input = dropInput(x, o, site, live);
  const { A, B } = plain(p, o);
  if (o.asf || !live.training) return addAt(site, lowRank(B, A), y, input);
  // the input sees f's true gradient, the parameters h's, scaled by output: y = f(sg A, sg B, x) + a⊙(h − sg h), h = f(A, B, sg x)
  const outer = addAt(site, lowRank(stopGradient(B), stopGradient(A)), y, input);
  const h = applyAt(site, lowRank(B, A), stopGradient(input));
  const a = o.scope === "rows" ? rowScale({ A, B }, o.etaSquared) : noGrad(() => rsqrt(affine(abs(stopGradient(h)), 1, 1 / o.etaSquared)));
  return add(outer, mul(sub(h, stopGradient(h)), a));
}

/**
 * ALLoRA: LoRA with scale 1 whose own gradients are scaled, per output row, by 1/√(‖(BA)ᵢ‖ + 1/η²): large steps while the update is
 * near zero, smaller ones once it has grown. Huang & Balestriero 2024, arXiv:2410.09692. Under Adam a constant scale cancels.
 *
 * @example
 * const tuned = await adapt(model, allora, { r: 8 });
 */
export const allora = adapter({
  id: "allora",
  title: "ALLoRA",
  paper: "arXiv:2410.09692",
  kinds: ["linear"],
  begins: "factors",
  options,
  waives: [
    {
      law: "gradients of its parameters match finite differences",
      because:
        'allora.md: "the gradient field is not that of a scalar loss in general (do not gradient-check by finite differences on A,B; check against the formula)"',
    },
  ],
  init(site, o, context) {
    if (o.asf && o.scope === "outputs")
      throw new StrutError("option", "asf scales rows of the update, not outputs of each sample", { path: "scope", hint: "Leave out scope, or asf." });
    return initLora(site, o, context) as Params;
  },
  update(p: Params, _site, o) {
    const { A, B } = plain(p, o);
    return lowRank(B, A);
  },
  forward,
  finish: (p: Params, _site, o) => ({ params: plain(p, o), ...(o.asf ? { options: { asf: false } } : {}) }),
  layout: {
    type: "LORA",
    beside: true,
    options: { dropout: "lora_dropout" },
    fixed: { use_dora: false },
    tensors: { linear: { A: "lora_A.weight", B: "lora_B.weight" } },
    config({ options, siteOptions, coverage }) {
      const rank = (path: string): number => (siteOptions.get(path) ?? options)["r"] as number;
      // scale 1 at every rank
      return {
        lora_alpha: options["r"],
        alpha_pattern: orderProofPatterns(new Map(coverage.matched.map((path) => [path, rank(path)])), options["r"] as number),
      };
    },
  },
});
