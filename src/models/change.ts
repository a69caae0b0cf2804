import { StrutError } from "../errors.ts";
import { replicatedLayers } from "../formats/peft-matching.ts";
import { copyOf, noGrad, Parameter, type Tensor } from "../tensor/index.ts";
import { makeLayer, makeModel, parameters, type Layer, type Model } from "./model.ts";

/** The same model with some leaves replaced, by leaf name; layers that share a leaf keep sharing its replacement. */
export function withLeaves(model: Model, replacements: ReadonlyMap<Parameter, Parameter>): Model {
  const layers = new Map<string, Layer>();
  for (const [path, layer] of model.layers) {
    const weight = replacements.get(layer.weight) ?? layer.weight;
    const bias = layer.bias && (replacements.get(layer.bias) ?? layer.bias);
    layers.set(path, weight === layer.weight && bias === layer.bias ? layer : { ...makeLayer(layer.spec, weight, bias), attached: layer.attached });
  }
  return makeModel({ ...model, layers });
}

/**
 * A model whose chosen leaves are trainable copies; the base keeps its own. For full fine-tuning choose all.
 *
 * @example
 * const tuned = unfreeze(model, (name) => name.endsWith("norm.weight"));
 */
export function unfreeze(model: Model, which: (name: string) => boolean = () => true): Model {
  const chosen = [...parameters(model)].filter(([name]) => which(name));
  if (chosen.length === 0)
    throw new StrutError("targets", "unfreeze: no parameter of the model was chosen", {
      hint: `Names look like ${[...parameters(model).keys()].slice(0, 2).join(", ")}.`,
    });
  return withLeaves(model, new Map(chosen.map(([name, leaf]) => [leaf, leafCopy(leaf, name)])));
}

/** A trainable copy of a leaf. */
export const leafCopy = (leaf: Tensor, name: string): Parameter => noGrad(() => new Parameter(copyOf(leaf), name, true));

/**
 * A deeper model made of ranges of a model's layers, which share their weights until one of them is trained or merged
 * (PEFT's layer_replication).
 */
export function replicateLayers(model: Model, ranges: readonly (readonly [number, number])[]): Model {
  for (const [start, end] of ranges)
    if (!(start >= 0 && start < end && end <= model.dimensions.depth))
      throw new StrutError("option", `layer_replication range [${start}, ${end}] does not lie in the model's ${model.dimensions.depth} layers`, {
        path: "layer_replication",
      });
  const sources = replicatedLayers(ranges);
  const { architecture } = model;
  const dimensions = { ...model.dimensions, depth: sources.length };
  const layers = new Map<string, Layer>();
  for (const spec of architecture.layers(dimensions)) {
    const from = spec.path.replace(/^(.*?\.)(\d+)\./, (_, head: string, index: string) => `${head}${sources[Number(index)]}.`);
    const source = model.layers.get(from)!;
    layers.set(spec.path, makeLayer(spec, source.weight, source.bias));
  }
  return makeModel({
    architecture,
    dimensions,
    layers,
    config: { ...model.config, [architecture.depthKey]: sources.length },
    ...(model.folder ? { folder: model.folder } : {}),
  });
}
