import type { z } from "zod";
import type { Site } from "../nn/contracts.ts";
import { scaledRows, sumOf, type LinearOperator } from "../operators/index.ts";
import { add, addLinear, affine, div, equal, mul, noGrad, norm, reshape, scope, transpose, zeros, type Tensor } from "../tensor/index.ts";
import { adapter, addAt, applyAt, perOutput } from "./adapter.ts";
import { dropInput, initLora, loraOptions, loraPeftOptions, loraStart, loraTensors, loraUpdate, type LoraParams } from "./lora.ts";

const options = loraOptions;
type Options = z.output<typeof options>;
type Params = LoraParams & { m: Tensor };

/** m / ‖W + s·B·A‖ by row; the norm is a constant to the gradient (§4.3 of the paper). A row of zeros has no direction: its gain is m. */
function gain(p: Params, site: Site, o: Options): Tensor {
  const norms = noGrad(() =>
    scope(() => {
      const { A, B, scale } = loraUpdate(p, site, o);
      const lengths = norm(addLinear(site.weight.toDense(), B, transpose(A), scale), { axes: [1] });
      return add(lengths, equal(lengths, zeros(lengths.shape, lengths.dtype)));
    }),
  );
  return div(reshape(p.m, [site.out]), norms);
}

const doraTensors = { ...loraTensors.linear, m: "lora_magnitude_vector" } as const;

/**
 * DoRA: diag(m / ‖W + s·B·A‖)·(W + s·B·A), with m the row norms of W at the start; magnitude and direction train apart.
 * Liu et al. 2024, arXiv:2402.09353. With dropout the base's part sees the dropped input too, as in PEFT.
 *
 * @example
 * const tuned = await adapt(model, dora, { r: 8, alpha: 16 });
 */
export const dora = adapter({
  id: "dora",
  title: "DoRA",
  paper: "arXiv:2402.09353",
  kinds: ["linear", "conv2d"],
  options,
  waives: [
    {
      law: "gradients of its parameters match finite differences",
      because: '_lora-baselines.md: "Gradients that matter: DoRA treats the norm ‖W+sBA‖ as a constant (detach)."',
    },
  ],
  begins: "factors",
  start: loraStart,
  init(site, o, context) {
    const m = norm(site.weight.toDense(), { axes: [1] });
    return { ...initLora(site, o, context), m: site.conv ? reshape(m, [1, site.out, 1, 1]) : m };
  },
  update(p: Params, site, o): LinearOperator {
    const g = gain(p, site, o);
    return sumOf(scaledRows(affine(g, 1, -1), site.weight), scaledRows(g, loraUpdate(p, site, o)));
  },
  forward(x, y, p, site, o, live) {
    const g = gain(p, site, o);
    const input = dropInput(x, o, site, live);
    const update = loraUpdate(p, site, o);
    if (input === x) {
      const turned = mul(addAt(site, update, y, x), perOutput(site, g));
      return site.bias ? add(turned, perOutput(site, mul(site.bias, affine(g, -1, 1)))) : turned;
    }
    return add(add(y, mul(applyAt(site, site.weight, input), perOutput(site, affine(g, 1, -1)))), mul(applyAt(site, update, input), perOutput(site, g)));
  },
  layout: { type: "LORA", options: loraPeftOptions, fixed: { use_dora: true }, tensors: { linear: doraTensors, conv2d: doraTensors } },
});
