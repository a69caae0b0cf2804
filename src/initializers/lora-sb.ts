import { z } from "zod";
import { randomizedSvd, svd } from "../linalg/index.ts";
import { cast, copyOf, hostNumbers, Rng, scale, sign, slice, tensor, type Tensor } from "../tensor/index.ts";
import { initializer } from "./initializer.ts";

const options = z.object({
  etaEff: z.number().positive().default(1e-3).describe("size of the first step that is followed: learning rate / warm-up steps; defaults to 1e-3"),
  svd: z.enum(["exact", "randomized"]).default("exact").describe("randomized has ten passes and is faster on large matrices; defaults to exact"),
  cast: z
    .enum(["none", "bf16"])
    .default("none")
    .describe("bf16 rounds B, A and the core to bfloat16, as the authors' code does, which leaves them orthonormal to 1e-3 only; defaults to none"),
  zeroCore: z.boolean().default(false).describe("start the core at 0, and so the model at its base; defaults to false"),
});

/**
 * LoRA-SB: B = U_r, A = V_rᵀ and core S_r/s of −η·sign(∂L/∂W), the first step of full fine-tuning under Adam; for adapters with a core such as
 * LoRA-XS, whose alpha should equal r. Ponkshe et al. 2024, arXiv:2411.19557. The model moves by that step at once.
 *
 * @example
 * const calibration = [{ ids: [[1, 403, 407, 261, 378, 432, 290, 401]] }];
 * const tuned = await adapt(model, loraXs, { r: 4, alpha: 4 }, { initializer: { method: loraSb }, calibration });
 */
export const loraSb = initializer({
  id: "lora-sb",
  title: "LoRA-SB",
  paper: "arXiv:2411.19557",
  options,
  starts: "core",
  needs: ["weightGradient"],
  async start(_site, rank, o, { dtype, statistics, scale: s }) {
    const step = scale(sign(cast(statistics.weightGradient!, dtype)), -o.etaEff);
    const { U, S, Vh } = o.svd === "exact" ? await svd(step) : await randomizedSvd(step, rank, { iterations: 10, oversampling: 8, rng: new Rng(42) });
    const values = Array.from(hostNumbers(S) as Float64Array).slice(0, rank);
    const core = new Float64Array(rank * rank);
    if (!o.zeroCore) values.forEach((value, i) => (core[i * (rank + 1)] = value / s));
    const rounded = (x: Tensor): Tensor => (o.cast === "bf16" ? cast(cast(x, "bf16"), dtype) : copyOf(x));
    return { B: rounded(slice(U, 1, 0, rank)), A: rounded(slice(Vh, 0, 0, rank)), core: rounded(tensor(core, [rank, rank], dtype)) };
  },
});
