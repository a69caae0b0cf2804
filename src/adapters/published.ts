import { StrutError } from "../errors.ts";
import type { AdapterDirectory } from "../formats/adapter-directory.ts";
import type { Model } from "../models/model.ts";
import type { Params } from "../nn/contracts.ts";
import type { Tensor } from "../tensor/index.ts";
import type { Adapter } from "./adapter.ts";

/** Our keys, and for each those of the file that hold it, in the order of the numbers in them. */
export function sourcesOf(
  base: Model,
  { weights, own, path }: AdapterDirectory,
  { layout }: Adapter,
  options: Readonly<Record<string, unknown>>,
): Map<string, string[]> {
  const sources = new Map<string, string[]>();
  const modules = [...base.layers.keys()];
  for (const key of weights.entries.keys()) {
    const ours = (own && layout.published?.(key, modules, options)) ?? key;
    const held = sources.get(ours);
    if (held) held.push(key);
    else sources.set(ours, [key]);
  }
  for (const [ours, held] of sources) {
    held.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    const astray = layout.assemble ? held.findIndex((key, i) => key !== ours && !key.endsWith(`.${i}`)) : -1;
    if (astray >= 0)
      throw new StrutError("peft-keys", `${path} lacks ${ours}.${astray}; ${held[astray]} stands in its place.`, {
        path,
        hint: "The pieces of a tensor are numbered from 0; save the adapter again.",
      });
  }
  return sources;
}

/** The tensor that several keys hold, which must agree. */
export async function oneOf(tensors: readonly Tensor[], keys: readonly string[], path: string): Promise<Tensor> {
  if (tensors.length === 1) return tensors[0]!;
  const [first, ...rest] = await Promise.all(tensors.map(async (x) => ({ shape: x.shape, values: await x.data() })));
  const other = rest.findIndex(({ shape, values }) => String(shape) !== String(first!.shape) || values.some((value, i) => value !== first!.values[i]));
  if (other < 0) return tensors[0]!;
  throw new StrutError("peft-keys", `${path} holds one shared tensor twice, with different values: ${keys[0]} and ${keys[other + 1]}.`, {
    path,
    hint: "Set the option that shares it to false, or save the adapter again.",
  });
}

/** Refuses tensors under published names that are missing or have other shapes than the options give. */
export function refuseUnlike(made: Params, stored: Params, where: string, path: string): void {
  const param = Object.keys(made).find((name) => String(stored[name]?.shape) !== String(made[name]!.shape));
  if (param === undefined) return;
  const found = stored[param] ? `has shape [${stored[param].shape}]` : "is missing";
  throw new StrutError("peft-shape", `${path}: ${param} of ${where} ${found}, expected [${made[param]!.shape}]`, {
    path,
    hint: "Give strut.json the options that the adapter was trained with.",
  });
}
