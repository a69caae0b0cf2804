import { z } from "zod";
import { sign, type Tensor } from "../tensor/index.ts";
import { scaleInPlace } from "./in-place.ts";

/** How what has no state moves: by the sign of its gradient, by the gradient, or not at all. */
export const inactiveUpdateRule = z.enum(["sign_sgd", "sgd", "no"]);
export type StateFreeRule = z.output<typeof inactiveUpdateRule>;

/** factor times the direction of a rule, written over the gradient where it can be. */
export function stateFree(rule: StateFreeRule, gradient: Tensor, factor: number): Tensor {
  const direction = rule === "sign_sgd" ? sign(gradient) : gradient;
  scaleInPlace(direction, rule === "no" ? 0 : factor);
  return direction;
}

/** density·n as a whole number, halves to the even one, as Python rounds. */
export function shareOf(n: number, density: number): number {
  const x = n * density;
  const below = Math.floor(x);
  return x - below === 0.5 ? below + (below % 2) : Math.round(x);
}
