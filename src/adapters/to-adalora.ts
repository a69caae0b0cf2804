import { StrutError } from "../errors.ts";
import type { Model } from "../models/model.ts";
import { concat, copyOf, noGrad, Parameter, reshape, scale, slice, zeros, type Tensor } from "../tensor/index.ts";
import { adalora } from "./adalora.ts";
import { required } from "./adapt.ts";
import type { Adapter } from "./adapter.ts";
import { newLive, withAdapters, type AttachedAdapter } from "./attach.ts";
import { usedOf, type Components } from "./components.ts";
import { increlora } from "./increlora.ts";

/** The first n slices along an axis, and zeros up to r. */
const padded = (x: Tensor, axis: 0 | 1, n: number, r: number): Tensor => {
  const rest = axis === 0 ? [r - n, ...x.shape.slice(1)] : [x.shape[0]!, r - n];
  return copyOf(concat([slice(x, axis, 0, n), zeros(rest, x.dtype as "f32")], axis));
};

/**
 * An IncreLoRA as an AdaLoRA that answers the same and that PEFT reads: the n components of a site are its triplets that are left of
 * initR, the largest n. Since AdaLoRA divides by initR + 1e-5 whatever is left, e becomes e·(initR + 1e-5)/(n + 1e-5). The AdaLoRA is the
 * active adapter afterwards.
 *
 * @example
 * const relabelled = toAdalora(await adapt(model, increlora, { targetRank: 2 }));
 */
export function toAdalora(model: Model, { name = model.active[0] ?? "default", as = `${name}-adalora` }: { name?: string; as?: string } = {}): Model {
  const set = required(model, name);
  if (set.method !== increlora.id)
    throw new StrutError("adapter", `${name} is no IncreLoRA, so it has no components to relabel`, { hint: "Convert it with toLora instead." });
  if (model.adapters.has(as))
    throw new StrutError("adapter", `the model already has an adapter named ${as}`, { hint: "Give the new one another name, or remove the old one." });
  const sites = [...set.entries] as unknown as [string, Components][];
  const initR = Math.max(...sites.map(([, p]) => usedOf(p)));
  const total = sites.reduce((sum, [, p]) => sum + usedOf(p), 0);
  const options = adalora.options.parse({ initR, targetR: Math.round(total / sites.length), alpha: set.options["alpha"], dropout: set.options["dropout"] });
  const entries = sites.map(([path, p]) => {
    const n = usedOf(p);
    const e = scale(p.E, (initR + 1e-5) / (n + 1e-5));
    const own = noGrad(() => ({ A: padded(p.A, 0, n, initR), B: padded(p.B, 1, n, initR), E: reshape(padded(e, 0, n, initR), [initR, 1]) }));
    return [path, Object.fromEntries(Object.entries(own).map(([key, value]) => [key, new Parameter(value, `${as}/${path}/${key}`)]))] as const;
  });
  const { raw: _, regime: __, ...kept } = set;
  const relabelled: AttachedAdapter = {
    ...kept,
    name: as,
    method: adalora.id,
    definition: adalora as unknown as Adapter,
    options,
    siteOptions: new Map(),
    entries: new Map(entries),
    live: newLive(),
    regime: adalora.regime!(options) as NonNullable<AttachedAdapter["regime"]>,
  };
  return withAdapters(model, new Map([...model.adapters, [as, relabelled]]), [as]);
}
