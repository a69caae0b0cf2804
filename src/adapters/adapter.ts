import type { z } from "zod";
import type { Awaitable, Live, Method, Params, Regime, Site } from "../nn/contracts.ts";
import type { LinearOperator } from "../operators/index.ts";
import type { Real, Rng, Tensor } from "../tensor/index.ts";

export interface InitContext {
  /** Forked by the method's id and the site's path. */
  readonly rng: Rng;
  /** Every site the adapter will sit on, in the order of the model. */
  readonly sites: readonly Site[];
  readonly dtype: Real;
}

/** How a method's parameters stand in a PEFT directory: PEFT's type, option names and tensor names. */
export interface PeftLayout {
  readonly type: string;
  /** Options whose PEFT name is not their snake_case form. */
  readonly options: Readonly<Record<string, string>>;
  /** Settings of adapter_config.json that mark this method, such as use_dora. */
  readonly fixed?: Readonly<Record<string, unknown>>;
  /** Parameter → tensor name behind the module path, by kind of site. */
  readonly tensors: Readonly<Partial<Record<Site["kind"], Readonly<Record<string, string>>>>>;
  /** A head tied to an adapted embedding shares its parameters; in the file each of its tensors is the transpose of this one. */
  readonly tied?: Readonly<Record<string, string>>;
}

/**
 * A method that adds something to a site's output. With `update` it is a matrix ΔW and can be merged; `forward` is for
 * what is not, or what is cheaper or noisier in training.
 */
export interface Adapter<O extends z.ZodObject = z.ZodObject, P extends Params = Params, S extends Params = Params> extends Method<O> {
  /** Kinds of sites it can sit on. */
  readonly kinds: readonly Site["kind"][];
  /** Pools and banks: one parameter, one optimiser entry, one key in the file. */
  shared?(sites: readonly Site[], o: z.output<O>, context: InitContext): Awaitable<S>;
  init(site: Site, o: z.output<O>, context: InitContext, shared: S): Awaitable<P>;
  update?(p: P, site: Site, o: z.output<O>, live: Live, shared: S): LinearOperator;
  /** The site's whole output; y is the base's. */
  forward?(x: Tensor, y: Tensor, p: P, site: Site, o: z.output<O>, live: Live, shared: S): Tensor;
  /** Added to the bias in forward and in merging. */
  bias?(p: P, site: Site, o: z.output<O>): Tensor | undefined;
  regime?(o: z.output<O>): Regime<P>;
  /** Save-time: drop dead ranks, fold gates and scales. */
  finish?(p: P, site: Site, o: z.output<O>): P;
  readonly peft?: PeftLayout;
}

/** Declares an adapter, with its types inferred. */
export const adapter = <O extends z.ZodObject, P extends Params, S extends Params>(method: Omit<Adapter<O, P, S>, "family">): Adapter<O, P, S> => ({
  family: "adapters",
  ...method,
});
