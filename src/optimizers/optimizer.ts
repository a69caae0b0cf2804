import type { z } from "zod";
import type { ListLink, Method, ParameterLink, Transform } from "../nn/contracts.ts";

/** An optimiser in the catalog. `build` makes its chain; `inner` takes the place of its core where one optimiser wraps another. */
export interface Optimizer<O extends z.ZodObject = z.ZodObject> extends Method<O> {
  build(options: z.output<O>, inner?: Transform): Transform;
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
