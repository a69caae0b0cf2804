import { StrutError } from "../errors.ts";
import type { ParameterLink, State, Transform } from "../nn/contracts.ts";
import { linksOf } from "./optimizer.ts";

/** A chain as one link: what an optimiser that wraps another runs inside, on a gradient of its own making. */
export function composed(transform: Transform, wrapper: string): ParameterLink {
  const links = linksOf(transform).map((link): ParameterLink => {
    if (link.scope === "parameter") return link;
    throw new StrutError("option", `${wrapper} runs its inner optimiser on one tensor at a time, but a link of that sees several together`, {
      path: "inner",
      hint: "Choose an inner optimiser such as adamw, adafactor, lion or sgd.",
    });
  });
  return {
    scope: "parameter",
    init: (w, t) => Object.fromEntries(links.map((link, i) => [i, link.init(w, t)])),
    // links without tensors or numbers leave nothing of their state in a checkpoint
    async update(u, s: State | undefined, w, t) {
      for (const [i, link] of links.entries()) u = await link.update(u, (s?.[i] ?? {}) as State, w, t);
      return u;
    },
  };
}
