import type { z } from "zod";
import type { Awaitable, Live, Method, Params, Regime, Site } from "../nn/contracts.ts";
import type { PeftType } from "../formats/peft-config.ts";
import { convolve, type LinearOperator } from "../operators/index.ts";
import { add, reshape, type Real, type Rng, type Tensor } from "../tensor/index.ts";
import type { Initializer, Start } from "../initializers/initializer.ts";
import type { LayerSpec } from "../models/model.ts";
import type { SiteStatistics } from "../models/recorder.ts";
import type { AttachedAdapter, Targeting } from "./attach.ts";

export interface InitContext {
  /** Forked by the method's id and the site's path. */
  readonly rng: Rng;
  /** Every site the adapter will sit on, in the order of the model. */
  readonly sites: readonly Site[];
  readonly dtype: Real;
  /** What the calibration pass collected at a site: what the method needs. */
  statistic?(site: Site): SiteStatistics;
  /** The initialiser that will choose where A and B start, if there is one. */
  readonly initializer?: string;
}

/** How a method's parameters stand in a directory: PEFT's type, option names and tensor names; or our own. */
export interface AdapterLayout {
  /** PEFT's type. Without one the directory holds strut.json in place of adapter_config.json, and only strut reads it. */
  readonly type?: PeftType;
  /** Options whose PEFT name is not their snake_case form. */
  readonly options?: Readonly<Record<string, string>>;
  /** Older types of PEFT that are read too, with their tensor names. */
  readonly formerly?: Readonly<Partial<Record<PeftType, Readonly<Record<string, string>>>>>;
  /** Settings of adapter_config.json that mark this method, such as use_dora; or that follow from its options. */
  readonly fixed?: Readonly<Record<string, unknown>>;
  /** Options that PEFT does not have, at what its type stands for; with other values strut.json is written in place of adapter_config.json. */
  readonly own?: Readonly<Record<string, unknown>>;
  /** PEFT's type does not say it all: strut.json stands beside adapter_config.json and is what strut reads. */
  readonly beside?: true;
  /** Parameter → tensor name behind the module path, by kind of site; those that a site does not have are left out. */
  readonly tensors: Readonly<Partial<Record<Site["kind"], Readonly<Record<string, string>>>>>;
  /** Shared parameter → tensor name behind `base_model.`: one a model. */
  readonly shared?: Readonly<Record<string, string>>;
  /** In place of `shared`, for shared parameters whose names depend on the model: each stands behind `base_model.` and this. */
  readonly sharedPrefix?: string;
  /** Whether options have the shared tensors stored; defaults to always. */
  storesShared?(options: Readonly<Record<string, unknown>>): boolean;
  /** Names of shared tensors that PEFT writes again under every module; they are read once. */
  readonly repeated?: readonly string[];
  /** Also reads directories of this type of PEFT that hold such a tensor: adapters that PEFT itself would take for something else. */
  readonly reads?: { readonly type: PeftType; readonly tensor: string };
  /**
   * The key for one of the method's published code, in a folder whose strut.json says the method and its options; undefined for any other
   * key. Keys that become the same one hold copies, or with `assemble` pieces.
   */
  published?(key: string, modules: readonly string[], options: Readonly<Record<string, unknown>>): string | undefined;
  /** A site's parameters from the pieces that the published code stores, each in the order of its keys. */
  assemble?(pieces: Readonly<Record<string, readonly Tensor[]>>, site: Site): Params;
  /** Parameters, of a site or shared, that do not train. */
  readonly frozen?: readonly string[];
  /** Parameters without a tensor are made again by `init` and `shared` on loading, from the same base, options and seed. */
  readonly derived?: true;
  /** A head tied to an adapted embedding shares its parameters; in the file each of its tensors is the transpose of this one. */
  readonly tied?: Readonly<Record<string, string>>;
  /** More of adapter_config.json that follows from what was trained, such as AdaLoRA's rank_pattern; `held` is as it was before `finish`. */
  config?(set: AttachedAdapter, held: AttachedAdapter): Readonly<Record<string, unknown>>;
  /** A site's options where config or tensors say other than the adapter's; defaults to none. */
  siteOptions?(path: string, tensors: Params, config: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> | undefined;
}

/**
 * A method that changes what a site computes. With `update` it is a matrix ΔW, with `weight` the matrix itself, and can be merged;
 * `forward` is for what is not, or what is cheaper or noisier in training.
 */
export interface Adapter<O extends z.ZodObject = z.ZodObject, P extends Params = Params, S extends Params = Params> extends Method<O> {
  /** Base leaves of the targeted modules (of all, where no targets are given) that train as copies: weights, biases or both; or the norms alone, where every matrix is targeted. */
  readonly copies?: { readonly weight?: boolean; readonly bias?: boolean; readonly norms?: boolean };
  /** Kinds of sites it can sit on. */
  readonly kinds: readonly Site["kind"][];
  /** Pools and banks: one parameter, one optimiser entry, one key in the file. */
  shared?(sites: readonly Site[], o: z.output<O>, context: InitContext): Awaitable<S>;
  init(site: Site, o: z.output<O>, context: InitContext, shared: S): Awaitable<P>;
  /** Where B and A of a site start instead of where init put them, if the options ask for it; made again on loading where the base is changed. */
  start?(site: Site, o: z.output<O>, context: InitContext): Awaitable<Start | undefined>;
  /** What B·A is multiplied with, for initialisers; defaults to alpha / r. */
  scale?(o: z.output<O>): number;
  /** What initialisers may start: its parameters A and B, which both train; or a core R between frozen ones. Without it they refuse it. */
  readonly begins?: Initializer["starts"];
  update?(p: P, site: Site, o: z.output<O>, live: Live, shared: S): LinearOperator;
  /** W itself, in place of the base's, whose product is then not computed. */
  weight?(p: P, site: Site, o: z.output<O>, live: Live, shared: S): LinearOperator;
  /** The site's whole output; y is the base's. Of a conv2d both are images: see applyAt. */
  forward?(x: Tensor, y: Tensor, p: P, site: Site, o: z.output<O>, live: Live, shared: S): Tensor;
  /** Added to the bias in forward and in merging. */
  bias?(p: P, site: Site, o: z.output<O>): Tensor | undefined;
  regime?(o: z.output<O>): Regime<P>;
  /** Save-time: drop dead ranks, fold gates and scales; with the options that the site then has, where they differ. */
  finish?(p: P, site: Site, o: z.output<O>): { params: P; options?: Readonly<Record<string, unknown>> };
  /** Where it sits, and what trains beside it, unless the user says otherwise; defaults to PEFT's targets for the model type. */
  defaults?(o: z.output<O>, layers: readonly LayerSpec[]): Targeting;
  /** Throws where loaded parameters do not belong to a site, in a way their shapes do not show. */
  verify?(p: P, site: Site): void;
  /** Its option r may be above the smaller side of a matrix. */
  readonly anyRank?: true;
  /** The whole-number option that sets how much is stored; defaults to `r` where there is one. */
  readonly size?: string;
  /** Of a method that grows in training: options of a new adapter as large as one with these is in the end. */
  grown?(o: z.output<O>): Readonly<Record<string, unknown>>;
  readonly layout: AdapterLayout;
}

/** The same tensor names at sites of every kind. */
export const atEvery = (names: Readonly<Record<string, string>>): AdapterLayout["tensors"] => ({ linear: names, conv2d: names, embedding: names });

/** x·Wᵀ at a site, of a conv2d the convolution by W. */
export const applyAt = (site: Site, operator: LinearOperator, x: Tensor): Tensor => (site.conv ? convolve(operator, x, site.conv) : operator.apply(x));

/** y + x·Wᵀ at a site. */
export const addAt = (site: Site, operator: LinearOperator, y: Tensor, x: Tensor): Tensor =>
  (site.conv ? undefined : operator.addTo?.(y, x)) ?? add(y, applyAt(site, operator, x));

/** A number for each output of a site, so that it broadcasts over the site's output. */
export const perOutput = (site: Site, v: Tensor): Tensor => (site.conv ? reshape(v, [site.out, 1, 1]) : v);

/** Declares an adapter, with its types inferred. */
export const adapter = <O extends z.ZodObject, P extends Params, S extends Params>(method: Omit<Adapter<O, P, S>, "family">): Adapter<O, P, S> => ({
  family: "adapters",
  ...method,
});
