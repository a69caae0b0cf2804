import { z } from "zod";
import { adapter } from "./adapter.ts";

/**
 * Full fine-tuning as an adapter: copies of all weights and biases train (of the targeted modules, where targets are given).
 *
 * @example
 * const tuned = await adapt(model, fullFineTuning);
 */
export const fullFineTuning = adapter({
  id: "full",
  title: "Full fine-tuning",
  paper: "none",
  kinds: ["linear", "conv2d", "embedding"],
  copies: { weight: true, bias: true },
  options: z.object({}),
  defaults: (_o, layers) => ({ targets: layers.filter(({ kind }) => kind !== "norm").map(({ path }) => path) }),
  init: () => ({}),
  layout: { tensors: {} },
});

/**
 * BitFit: all biases train and nothing else. Ben Zaken, Ravfogel & Goldberg 2022, arXiv:2106.10199.
 *
 * @example
 * const biased = await adapt(randomModel({ model_type: "gpt2", vocab_size: 11, n_embd: 8, n_head: 2, n_layer: 1 }, (_, shape) => zeros(shape)), bitfit);
 */
export const bitfit = adapter({
  ...fullFineTuning,
  id: "bitfit",
  title: "BitFit",
  paper: "arXiv:2106.10199",
  copies: { bias: true },
});
