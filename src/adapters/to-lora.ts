import { StrutError } from "../errors.ts";
import { layerAt, type Layer, type Model } from "../models/model.ts";
import type { Params, Site } from "../nn/contracts.ts";
import { dense, lowRank, ownFactors, sumOf, toLowRank, type LinearOperator } from "../operators/index.ts";
import { copyOf, noGrad, Parameter, reshape, scope, sub, transpose, type Tensor } from "../tensor/index.ts";
import { required } from "./adapt.ts";
import type { Adapter } from "./adapter.ts";
import { newLive, withAdapters, type AttachedAdapter } from "./attach.ts";
import { lora, loraOptions } from "./lora.ts";

/** B out×r and A r×in of one site, what B·A is multiplied with (defaults to 1), and what is added to its bias. */
export interface Factors {
  readonly B: Tensor;
  readonly A: Tensor;
  readonly scale?: number;
  readonly bias?: Tensor;
}

/** Factors as a LoRA's parameters at a site, which train. */
function loraParams(site: Site, { B, A, bias }: Factors, name: string): Params {
  const owned = (key: string, value: Tensor): Parameter => new Parameter(copyOf(value), `${name}/${site.path}/${key}`);
  if (site.kind === "embedding") return { embeddingA: owned("embeddingA", transpose(B)), embeddingB: owned("embeddingB", transpose(A)) };
  const r = A.shape[0]!;
  const [down, up] = site.conv ? [reshape(A, [r, -1, ...site.conv.kernel]), reshape(B, [site.out, r, 1, 1])] : [A, B];
  return { A: owned("A", down), B: owned("B", up), ...(bias ? { bias: owned("bias", bias) } : {}) };
}

/** A LoRA with given factors, on a model beside its other adapters; what else trained with `like` goes along. */
export function attachFactors(model: Model, name: string, factors: ReadonlyMap<string, Factors>, like?: AttachedAdapter): Model {
  if (model.adapters.has(name))
    throw new StrutError("adapter", `the model already has an adapter named ${name}`, { hint: "Give the new one another name, or remove the old one." });
  const sizes = [...factors.values()].map(({ A, scale = 1 }) => ({ r: A.shape[0]!, alpha: scale * Math.max(1, A.shape[0]!) }));
  const largest = sizes.reduce((most, one) => (one.r >= most.r ? one : most), { r: 1, alpha: 1 });
  const options = { ...loraOptions.parse(largest), loraBias: [...factors.values()].some(({ bias }) => bias) };
  const matched = [...factors.keys()];
  const { rankPattern: _, alphaPattern: __, ...targeting } = like?.targeting ?? {};
  const set: AttachedAdapter = {
    name,
    method: lora.id,
    definition: lora as unknown as Adapter,
    options,
    siteOptions: new Map(
      matched.flatMap((path, i) => {
        const own = sizes[i]!;
        return own.r === largest.r && own.alpha === largest.alpha ? [] : [[path, { ...options, ...own }]];
      }),
    ),
    targeting: { ...targeting, targets: matched },
    seed: 0,
    taken: new Map(),
    entries: new Map([...factors].map(([path, own]) => [path, noGrad(() => loraParams(layerAt(model, path).site!, own, name))])),
    shared: {},
    copies: like?.copies ?? new Map(),
    tokens: like?.tokens ?? new Map(),
    live: newLive(),
    warnings: [],
    coverage: { matched, unmatched: [], saved: like?.coverage.saved ?? [] },
  };
  return withAdapters(model, new Map([...model.adapters, [name, set]]), [name]);
}

/** ΔW of one adapter at a layer of the base, and what it adds to the bias. */
export function deltaAt(layer: Layer, set: AttachedAdapter): { update: LinearOperator; bias?: Tensor } {
  const site = layer.site!;
  const { name } = set;
  const own = layer.attached.find(({ adapter, update, weightAt }) => adapter === name && (update ?? weightAt));
  if (!own)
    throw new StrutError("merge", `adapter ${name} at ${site.path} is not a matrix, so it has no low-rank form`, {
      path: site.path,
      hint: "Keep it as an adapter.",
    });
  const taken = set.taken.get(site.path);
  if (own.update && taken) return { update: sumOf(own.update(site), lowRank(taken.B, taken.A, -taken.scale)) };
  const moved = own.weightAt && sub(own.weightAt(site).toDense(), site.weight.toDense());
  const update = own.update ? (moved ? sumOf(dense(moved), own.update(site)) : own.update(site)) : dense(moved!);
  const bias = own.biasUpdate?.(site);
  return { update, ...(bias ? { bias } : {}) };
}

/** What a conversion lost: ‖ΔW − BA‖_F / ‖ΔW‖_F of each module, and of all of them together. */
export interface ConversionError {
  readonly sites: ReadonlyMap<string, number>;
  readonly total: number;
}

export interface ToLoraOptions {
  /** Of the new LoRA; at a smaller matrix its smaller side. Defaults to the rank that each update has, 0 being left out, and then its factors stay as they are. */
  rank?: number;
  /** The adapter to convert; defaults to the active one. */
  name?: string;
  /** Name of the LoRA; defaults to the old one's with "-lora" behind. */
  as?: string;
}

/**
 * Any mergeable adapter as a plain LoRA of a rank: the best one, by SVD of ΔW at each site. Without a rank, of the rank that each site
 * has, where ΔW is made of two factors and perhaps a diagonal between them. The LoRA is the active one afterwards; the old adapter stays
 * beside it.
 *
 * @example
 * const { model: converted, error } = await toLora(tuned, { rank: 4 });
 */
export async function toLora(
  model: Model,
  { rank, name = model.active[0] ?? "default", as = `${name}-lora` }: ToLoraOptions = {},
): Promise<{ model: Model; error: ConversionError }> {
  const set = required(model, name);
  if (rank !== undefined && !(Number.isInteger(rank) && rank >= 1))
    throw new StrutError("option", `rank is ${rank}; it must be a whole number of at least 1`, { path: "rank" });
  const factors = new Map<string, Factors>();
  const sites = new Map<string, number>();
  let [lost, whole] = [0, 0];
  const own = ({ B, A, scale, bias }: Factors): Factors => ({
    B: new Parameter(copyOf(B)),
    A: new Parameter(copyOf(A)),
    ...(scale === undefined ? {} : { scale }),
    ...(bias ? { bias: new Parameter(copyOf(bias)) } : {}),
  });
  for (const path of set.entries.keys()) {
    const layer = layerAt(model, path);
    const { out, in: inner } = layer.site!;
    await noGrad(() =>
      scope(async () => {
        const { update, bias } = deltaAt(layer, set);
        if (rank === undefined) {
          const found = ownFactors(update);
          if (!found)
            throw new StrutError("option", `the update at ${path} is not made of two factors, so it has no rank of its own`, {
              path: "rank",
              hint: "Say which rank the LoRA shall have.",
            });
          sites.set(path, 0);
          if (found.A.shape[0]! > 0 || bias) factors.set(path, own({ ...found, ...(bias ? { bias } : {}) }));
          return;
        }
        const { operator, error, discarded, norm } = await toLowRank(update, Math.min(rank, out, inner));
        lost += discarded ** 2;
        whole += norm ** 2;
        sites.set(path, error);
        factors.set(path, own({ B: operator.B, A: operator.A, ...(bias ? { bias } : {}) }));
      }),
    );
  }
  if (factors.size === 0) throw new StrutError("adapter", `every update of ${name} is zero, so there is nothing to convert`, { hint: "Use the base model." });
  return { model: attachFactors(model, as, factors, set), error: { sites, total: whole === 0 ? 0 : Math.sqrt(lost / whole) } };
}
