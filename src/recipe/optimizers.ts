import { nearest, StrutError } from "../errors.ts";
import type { Optimizer } from "../optimizers/index.ts";

// oxlint-disable-next-line no-explicit-any -- optimisers of any options
const optimizers: Record<string, () => Promise<Optimizer<any>>> = {
  adamw: async () => (await import("../optimizers/adamw.ts")).adamw,
  sgd: async () => (await import("../optimizers/sgd.ts")).sgd,
};

/** The optimiser with an id; an unknown id is an error with the nearest names. */
export function optimizerById(id: string): ReturnType<(typeof optimizers)[string]> {
  const load = Object.hasOwn(optimizers, id) ? optimizers[id] : undefined;
  if (load) return load();
  const [near] = nearest(id, Object.keys(optimizers), 1);
  throw new StrutError("option", `there is no optimiser ${JSON.stringify(id)}`, {
    path: "training.optimizer",
    hint: near ? `Did you mean ${near}?` : `Optimisers: ${Object.keys(optimizers).join(", ")}.`,
  });
}
