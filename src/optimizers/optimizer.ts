import type { z } from "zod";
import type { Awaitable, Batch, ListLink, Method, ParameterLink, Regime, RunnableModel, Transform } from "../nn/contracts.ts";

/** What an optimiser's regime may look at before step 0. */
export interface RunStart {
  readonly model: RunnableModel;
  /** Batch k of the training data. */
  batch(k: number): Awaitable<Batch>;
  /** Tells the user of something the run goes on in spite of. */
  warn(message: string): void;
}

/** An optimiser in the catalog. `build` makes its chain; `inner` takes the place of its core where one optimiser wraps another. */
export interface Optimizer<O extends z.ZodObject = z.ZodObject> extends Method<O> {
  build(options: z.output<O>, inner?: Transform): Transform;
  /** The direction alone, without decay and rate: what another optimiser may wrap. */
  core?(options: z.output<O>): Transform;
  /** Of an inner optimiser `build` takes all, decay and rate included, in place of its core. */
  readonly takes?: "whole";
  /** What it does in training beside moving weights, such as choosing which layers train. */
  regime?(options: z.output<O>, run: RunStart): Awaitable<Regime>;
  /** The learning rate and decay that its options ask for; those of the run and of parameter groups come first. */
  rates?(options: z.output<O>): { learningRate?: number; weightDecay?: number };
}

/** Declares an optimiser, with its types inferred. */
export const optimizer = <O extends z.ZodObject>(method: Omit<Optimizer<O>, "family">): Optimizer<O> => ({ family: "optimizers", ...method });

export type Link = ParameterLink | ListLink;

/**
 * Transforms one after the other; the first sees the gradient, the last gives what is subtracted from the weights.
 *
 * @example
 * const doubled = chain({ scope: "parameter", init: () => ({}), update: (u) => add(u, u) });
 */
export const chain = (...links: readonly Transform[]): Transform => ({ scope: "chain", links });

/** The links of a transform in order, chains within chains laid out flat. */
export const linksOf = (transform: Transform): Link[] => (transform.scope === "chain" ? transform.links.flatMap(linksOf) : [transform]);
