import { StrutError } from "../errors.ts";
import { replicatedLayers } from "../formats/peft-matching.ts";
import { nf4, quantizeNf4, type Nf4Parts } from "../operators/index.ts";
import { cast, contiguous, copyOf, isReal, noGrad, Parameter, type Tensor } from "../tensor/index.ts";
import { isPruned } from "./pruned-config.ts";
import { makeLayer, makeModel, parameters, type Layer, type Model } from "./model.ts";

/** The same model with some leaves replaced, by leaf name; layers that share a leaf keep sharing its replacement. */
export function withLeaves(model: Model, replacements: ReadonlyMap<Parameter, Parameter>): Model {
  const layers = new Map<string, Layer>();
  for (const [path, layer] of model.layers) {
    const weight = replacements.get(layer.weight) ?? layer.weight;
    const bias = layer.bias && (replacements.get(layer.bias) ?? layer.bias);
    layers.set(
      path,
      weight === layer.weight && bias === layer.bias
        ? layer
        : { ...makeLayer(layer.spec, weight, bias, layer.buffers, layer.quantized), attached: layer.attached },
    );
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
  return withLeaves(ownBuffers(model), new Map(chosen.map(([name, leaf]) => [leaf, leafCopy(leaf, name)])));
}

/** The same model with buffers of its own, so that training does not move another's; itself if it has none. */
export function ownBuffers(model: Model): Model {
  if ([...model.layers.values()].every(({ buffers }) => !buffers)) return model;
  const copied = (layer: Layer): Layer =>
    layer.buffers
      ? {
          ...layer,
          buffers: Object.fromEntries(
            Object.entries(layer.buffers).map(([name, buffer]) => [name, noGrad(() => new Parameter(copyOf(buffer), buffer.name, false))]),
          ),
        }
      : layer;
  return makeModel({ ...model, layers: new Map([...model.layers].map(([path, layer]) => [path, copied(layer)])) });
}

/** A trainable copy of a leaf. */
export function leafCopy(leaf: Tensor, name: string): Parameter {
  if (!isReal(leaf.dtype))
    throw new StrutError("targets", `${name} is quantised, so it cannot train itself`, { hint: "Train an adapter on it, or the model before quantising." });
  return noGrad(() => new Parameter(copyOf(leaf), name, true));
}

/**
 * A deeper model made of ranges of a model's layers, which share their weights until one of them is trained or merged
 * (PEFT's layer_replication).
 */
export function replicateLayers(model: Model, ranges: readonly (readonly [number, number])[]): Model {
  const { architecture } = model;
  const { depthKey } = architecture;
  if (depthKey === undefined)
    throw new StrutError("option", `the blocks of a ${architecture.modelType} model are not alike, so they cannot be replicated`, {
      path: "layer_replication",
    });
  if (isPruned(model.config))
    throw new StrutError("option", "the blocks of a pruned model differ, so they cannot be replicated", {
      path: "layer_replication",
      hint: "Replicate first.",
    });
  for (const [start, end] of ranges)
    if (!(start >= 0 && start < end && end <= model.dimensions.depth))
      throw new StrutError("option", `layer_replication range [${start}, ${end}] does not lie in the model's ${model.dimensions.depth} layers`, {
        path: "layer_replication",
      });
  const sources = replicatedLayers(ranges);
  const dimensions = { ...model.dimensions, depth: sources.length };
  const layers = new Map<string, Layer>();
  for (const spec of architecture.layers(dimensions)) {
    const from = spec.path.replace(/^(.*?\.)(\d+)\./, (_, head: string, index: string) => `${head}${sources[Number(index)]}.`);
    const source = model.layers.get(from)!;
    layers.set(spec.path, makeLayer(spec, source.weight, source.bias, source.buffers, source.quantized));
  }
  return makeModel({
    architecture,
    dimensions,
    layers,
    config: { ...model.config, [depthKey]: sources.length },
    ...(model.folder ? { folder: model.folder } : {}),
  });
}

/**
 * The model with every linear matrix but its head in 4-bit NormalFloat, to train adapters on (QLoRA, QLoRAM): about .52 bytes a weight in
 * place of 4. Products are computed in f32. It cannot be saved: keep the model it was made from.
 *
 * @example
 * const tuned = await adapt(quantizeModel(model), lora, { r: 8 });
 */
export function quantizeModel(model: Model): Model {
  const quantized = (layer: Layer): Layer => {
    const { spec, site, bias } = layer;
    if (spec.kind !== "linear" || spec.path === model.architecture.head || layer.quantized) return layer;
    const made = noGrad(() => quantizeNf4(cast(contiguous(site!.weight.toDense()), "f32")));
    const kept = Object.fromEntries(Object.entries(made.parts).map(([name, part]) => [name, new Parameter(part, `${spec.path}.${name}`, false)]));
    const operator = nf4(kept as Record<keyof Nf4Parts, Parameter>, [made.out, made.in]);
    return makeLayer(spec, kept["codes"]!, bias, layer.buffers, operator);
  };
  return makeModel({ ...model, layers: new Map([...model.layers].map(([path, layer]) => [path, quantized(layer)])), adapters: new Map(), active: [] });
}
