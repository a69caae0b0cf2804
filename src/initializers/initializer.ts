import type { z } from "zod";
import type { SiteStatistics } from "../models/recorder.ts";
import type { Awaitable, Method, Site } from "../nn/contracts.ts";
import type { Real, Rng, Tensor } from "../tensor/index.ts";

export interface StartContext {
  /** Forked by the initialiser's id and the site's path. */
  readonly rng: Rng;
  readonly dtype: Real;
  /** What B·A is multiplied with. */
  readonly scale: number;
  /** What the calibration pass collected at this site: what the initialiser needs. */
  readonly statistics: SiteStatistics;
}

/** Where the factors of a site begin. */
export interface Start {
  /** out×r */
  readonly B: Tensor;
  /** r×in */
  readonly A: Tensor;
  /** r×r, for adapters with a core */
  readonly core?: Tensor;
  /** The base gives scale·B·A away: W − scale·B·A stands in its place, so that the model starts unchanged. */
  readonly takes?: true;
}

/** Chooses where the factors of LoRA-shaped adapters start, and how ranks are spread over the sites. */
export interface Initializer<O extends z.ZodObject = z.ZodObject> extends Method<O> {
  start(site: Site, rank: number, o: z.output<O>, context: StartContext): Awaitable<Start>;
  /** Ranks by path for a total of rank · sites; sites of rank 0 are left alone. */
  allocate?(sites: readonly Site[], rank: number, o: z.output<O>, statistics: ReadonlyMap<string, SiteStatistics>): Awaitable<ReadonlyMap<string, number>>;
  /** Settings of adapter_config.json that tell of it. */
  config?(o: z.output<O>): Readonly<Record<string, unknown>>;
  /** Whether a site's alpha follows its rank, so that alpha / rank stays. */
  keepsScale?(o: z.output<O>): boolean;
}

/** Declares an initialiser, with its types inferred. */
export const initializer = <O extends z.ZodObject>(method: Omit<Initializer<O>, "family">): Initializer<O> => ({ family: "initializers", ...method });
