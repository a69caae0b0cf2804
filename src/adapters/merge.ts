import { StrutError } from "../errors.ts";
import { acting, currentNorm, currentSite, makeLayer, makeModel, type Layer, type Model } from "../models/model.ts";
import type { Attachment, Params } from "../nn/contracts.ts";
import { add, copyOf, isReal, noGrad, Parameter, reshape, scope, sub, transpose, type Tensor } from "../tensor/index.ts";

/** A copy in memory of its own, laid out as the file has it. */
const stored = (layer: Layer, matrix: Tensor): Tensor => copyOf(layer.spec.transposed ? transpose(matrix) : reshape(matrix, layer.spec.shape));

/** W with every active adapter's part, out×in, and what is added to the bias. */
function merged(layer: Layer, active: readonly Attachment[]): { weight: Tensor; bias: Tensor | undefined } {
  const site = currentSite(layer, active);
  let weight = site.weight.toDense();
  let bias: Tensor | undefined = site.bias;
  for (const { forward, update, weightAt, biasUpdate, adapter } of active) {
    if (!forward) continue;
    if (!update && !weightAt)
      throw new StrutError("merge", `adapter ${adapter} at ${layer.spec.path} is not a matrix, so it cannot be merged`, {
        path: layer.spec.path,
        hint: "Keep it as an adapter.",
      });
    if (update) weight = add(weight, update(site).toDense());
    const extra = biasUpdate?.(site);
    if (extra && !bias)
      throw new StrutError("merge", `adapter ${adapter} trains a bias at ${layer.spec.path}, but the base has none there to merge it into`, {
        path: layer.spec.path,
        hint: "Keep it as an adapter, or train it without lora_bias.",
      });
    if (extra) bias = add(bias!, extra);
  }
  return { weight, bias };
}

function mergeLayer(layer: Layer, active: readonly Attachment[]): Layer {
  const { spec } = layer;
  const leaf = (value: Tensor, kind: string): Parameter => new Parameter(value, `${spec.path}.${kind}`, false);
  return noGrad(() =>
    scope(() => {
      if (!layer.site) {
        const { weight, bias } = currentNorm(layer, active);
        return makeLayer(spec, leaf(copyOf(weight), "weight"), bias ? leaf(copyOf(bias), "bias") : undefined, layer.buffers);
      }
      const { weight, bias } = merged(layer, active);
      return makeLayer(spec, leaf(stored(layer, weight), "weight"), bias && leaf(copyOf(bias), "bias"));
    }),
  );
}

/**
 * The model with its active adapters folded into the weights: W + Σ ΔW at each site. The base is not written. A weight
 * that two modules shared gets a copy for each where only one of them changed: a tied head is untied, replicated layers
 * are split, and config.json says so.
 *
 * @example
 * const folded = merge(tuned);
 */
export function merge(model: Model): Model {
  const layers = new Map<string, Layer>();
  for (const [path, layer] of model.layers) {
    const active = acting(model, layer);
    layers.set(path, active.length === 0 ? { ...layer, attached: [] } : mergeLayer(layer, active));
  }
  const head = layers.get(model.architecture.head)!;
  const tie = head.spec.tiedTo === undefined ? undefined : layers.get(head.spec.tiedTo)!;
  const untied = tie !== undefined && tie.weight !== head.weight && !sameTie(model, head, tie);
  if (tie && tie.weight !== head.weight && !untied) layers.set(head.spec.path, makeLayer(head.spec, tie.weight));
  if (untied) {
    const { tiedTo: _, ...spec } = head.spec;
    layers.set(spec.path, makeLayer(spec, head.weight));
  }
  return makeModel({
    ...model,
    layers,
    adapters: new Map(),
    active: [],
    config: untied ? { ...model.config, tie_word_embeddings: false } : model.config,
    dimensions: untied ? { ...model.dimensions, tied: false } : model.dimensions,
  });
}

/** One and the same, or none: where copies alone train. */
const sameParams = (a: Params | undefined, b: Params | undefined): boolean => a === b || [a, b].every((p) => Object.keys(p ?? {}).length === 0);

/** Whether head and embedding were changed by the very same parameters, so that their merged weights are still one. */
function sameTie(model: Model, head: Layer, embedding: Layer): boolean {
  const parts = (layer: Layer): string =>
    acting(model, model.layers.get(layer.spec.path)!)
      .map(({ adapter }) => adapter)
      .join();
  return (
    parts(head) === parts(embedding) &&
    [...model.adapters.values()].every(
      ({ entries, copies }) =>
        sameParams(entries.get(head.spec.path), entries.get(embedding.spec.path)) &&
        ["weight", "token_rows"].every((kind) => copies.get(`${head.spec.path}.${kind}`) === copies.get(`${embedding.spec.path}.${kind}`)),
    )
  );
}

/**
 * The base weights again: a merged model less what the adapters of `adapted` add. Exact but for rounding.
 *
 * @example
 * const base = unmerge(merge(tuned), tuned);
 */
export function unmerge(folded: Model, adapted: Model): Model {
  const layers = new Map<string, Layer>();
  for (const [path, layer] of folded.layers) {
    const source = adapted.layers.get(path);
    const active = source ? acting(adapted, source) : [];
    if (!source || active.length === 0) {
      layers.set(path, layer);
      continue;
    }
    const whole = mergeLayer(source, active);
    const back = (from: Tensor, total: Tensor, base: Tensor, kind: string): Parameter => {
      if (!isReal(from.dtype) || String(from.shape) !== String(base.shape))
        throw new StrutError("merge", `${path}.${kind} of the merged model has shape [${from.shape}], the adapted model's [${base.shape}]`, { path });
      return noGrad(
        () =>
          new Parameter(
            scope(() => sub(from, sub(total, base))),
            `${path}.${kind}`,
            false,
          ),
      );
    };
    layers.set(
      path,
      makeLayer(
        layer.spec,
        back(layer.weight, whole.weight, source.weight, "weight"),
        layer.bias && back(layer.bias, whole.bias!, source.bias!, "bias"),
        layer.buffers,
      ),
    );
  }
  return makeModel({ ...folded, layers });
}
