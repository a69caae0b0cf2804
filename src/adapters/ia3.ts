import { z } from "zod";
import type { LayerSpec } from "../models/model.ts";
import type { Site } from "../nn/contracts.ts";
import { scaledColumns, scaledRows } from "../operators/index.ts";
import { affine, mul, ones, reshape, type Parameter, type Tensor } from "../tensor/index.ts";
import { adapter } from "./adapter.ts";

const options = z.object({
  feedforwardModules: z.array(z.string()).optional().describe("targets whose inputs are scaled, by their last names; defaults to PEFT's for the model type"),
  initIa3Weights: z.boolean().default(true).describe("start at the base, all scales 1; else at random around 0; defaults to true"),
});
type Options = z.output<typeof options>;

/** PEFT's targets by the names that models give their layers: which are scaled at all, and which of them at the input. */
const known = [
  { if: "down_proj", targets: ["k_proj", "v_proj", "down_proj"], feedforward: ["down_proj"] },
  { if: "mlp.c_proj", targets: ["c_attn", "mlp.c_proj"], feedforward: ["mlp.c_proj"] },
  { if: "output.dense", targets: ["key", "value", "output.dense"], feedforward: ["output.dense"] },
] as const;

const endsIn = (path: string, name: string): boolean => path === name || path.endsWith(`.${name}`);

const defaultsFor = (paths: readonly string[]): (typeof known)[number] | undefined => known.find((entry) => paths.some((path) => endsIn(path, entry.if)));

/** Whether a site's input is scaled rather than its output. */
const scalesInput = ({ path }: Site, o: Options): boolean =>
  (o.feedforwardModules ?? known.flatMap(({ feedforward }) => [...feedforward])).some((name) => endsIn(path, name));

/** The scale is one row for inputs, one column for outputs; of a 1×1 matrix the option decides. */
const atInput = (l: Tensor, site: Site, o: Options): boolean => (l.size === 1 ? scalesInput(site, o) : l.shape[0] === 1);

/**
 * IA³: outputs y ⊙ l, bias included, or at feed-forward modules inputs x ⊙ l; the vectors l train, from 1. Liu et al. 2022, arXiv:2205.05638.
 *
 * @example
 * const tuned = await adapt(model, ia3, {}, { targets: ["k_proj", "v_proj", "down_proj"] });
 */
export const ia3 = adapter({
  id: "ia3",
  title: "IA³",
  paper: "arXiv:2205.05638",
  kinds: ["linear"],
  options,
  defaults(_o, layers: readonly LayerSpec[]) {
    const found = defaultsFor(layers.map(({ path }) => path));
    return found ? { targets: found.targets } : {};
  },
  init(site, o, context): { l: Tensor } {
    const shape = scalesInput(site, o) ? [1, site.in] : [site.out, 1];
    return { l: o.initIa3Weights ? ones(shape, context.dtype) : context.rng.normal(shape, 0.02, context.dtype) };
  },
  weight: ({ l }: { l: Tensor }, site, o) =>
    atInput(l, site, o) ? scaledColumns(site.weight, reshape(l, [site.in])) : scaledRows(reshape(l, [site.out]), site.weight),
  bias: ({ l }, site, o) => (site.bias && !atInput(l, site, o) ? mul(affine(reshape(l, [site.out]), 1, -1), site.bias as Parameter) : undefined),
  layout: { type: "IA3", tensors: { linear: { l: "ia3_l" } } },
});
