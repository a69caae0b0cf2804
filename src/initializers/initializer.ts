import type { z } from "zod";
import type { CalibrationBatches } from "../models/calibration.ts";
import type { Model } from "../models/model.ts";
import type { SiteStatistics } from "../models/recorder.ts";
import type { Awaitable, Method, Site } from "../nn/contracts.ts";
import type { Real, Rng, Tensor } from "../tensor/index.ts";

export interface StartContext<F = unknown> {
  /** Forked by the initialiser's id and the site's path. */
  readonly rng: Rng;
  readonly dtype: Real;
  /** What B·A is multiplied with. */
  readonly scale: number;
  /** What the calibration pass collected at this site: what the initialiser needs. */
  readonly statistics: SiteStatistics;
  /** What the initialiser found when it watched the batches itself. */
  readonly found: F;
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

/** What an initialiser may watch. */
export interface Watched {
  readonly model: Model;
  readonly sites: readonly Site[];
  readonly batches?: CalibrationBatches;
  /** As options and patterns have it. */
  rank(site: Site): number;
}

/** What watching gave: ranks by path (sites of rank 0 are left alone), what the user should know, and what `start` reads. */
export interface Found {
  readonly ranks: ReadonlyMap<string, number>;
  readonly warnings: readonly string[];
}

/** Chooses where the factors of LoRA-shaped adapters start, and how ranks are spread over the sites. */
export interface Initializer<O extends z.ZodObject = z.ZodObject, F extends Found = Found> extends Method<O> {
  /** What it gives: factors B and A, both trained; or frozen ones with a core between them. */
  readonly starts: "factors" | "core";
  /** Reads the calibration batches as it likes, where sums over all of them (`needs`) would not do. */
  watch?(watched: Watched, o: z.output<O>): Promise<F>;
  start(site: Site, rank: number, o: z.output<O>, context: StartContext<F>): Awaitable<Start>;
  /** Settings of adapter_config.json that tell of it. */
  config?(o: z.output<O>): Readonly<Record<string, unknown>>;
  /** Whether a site's alpha follows its rank, so that alpha / rank stays. */
  keepsScale?(o: z.output<O>): boolean;
}

/** Declares an initialiser, with its types inferred. */
export const initializer = <O extends z.ZodObject, F extends Found = Found>(method: Omit<Initializer<O, F>, "family">): Initializer<O, F> => ({
  family: "initializers",
  ...method,
});
