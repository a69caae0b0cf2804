import type { Training } from "../nn/contracts.ts";
import { full, keep, Tensor, type Parameter } from "../tensor/index.ts";

/** Adam's count of updates as one of each element of w, so that elements may differ in age; empty where the optimiser counts none. */
export function countsByElement({ moments }: Pick<Training, "moments">, w: Parameter): Tensor[] {
  return moments(w).flatMap((state) => {
    if (!("m" in state && "v" in state && "t" in state)) return [];
    if (typeof state["t"] === "number") state["t"] = keep(full(w.shape, state["t"], w.dtype as "f32"));
    return state["t"] instanceof Tensor ? [state["t"]] : [];
  });
}
