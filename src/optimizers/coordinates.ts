import { contiguous, expand, gather, reshape, scale, scatterAdd, topk, zeros, type Tensor } from "../tensor/index.ts";
import { copyOf, hostView } from "../tensor/tensor.ts";
import type { Subspace } from "./subspace.ts";

export type Coordinates = "columns" | "rows" | "randk";

/** A random share of a matrix's columns, rows or single entries; the count is rounded down. */
export function coordinates(choice: Coordinates, density: number): Subspace {
  const axis = choice === "columns" ? 1 : 0;
  const laidOut = (g: Tensor): Tensor => (choice === "randk" ? reshape(g, [-1]) : g);
  const kept = ([m, n]: readonly number[]): number => Math.floor(density * (choice === "columns" ? n! : choice === "rows" ? m! : m! * n!));
  const shape = ([m, n]: readonly [number, number]): number[] => {
    const k = kept([m, n]);
    return choice === "columns" ? [m, k] : choice === "rows" ? [k, n] : [k];
  };
  /** The index in the shape of what is kept. */
  const places = (index: Tensor, g: Tensor): Tensor => {
    const whole = shape(g.shape as [number, number]);
    return contiguous(expand(reshape(index, choice === "columns" ? [1, -1] : choice === "rows" ? [-1, 1] : [-1]), whole));
  };
  return {
    shape,
    choose(g, rng) {
      const x = laidOut(g);
      const index = copyOf(topk(rng.uniform([x.shape[axis]!], 1), kept(g.shape)).indices);
      // in order: whoever keeps averages at density 1 keeps them in place
      (hostView(index) as Int32Array).sort();
      return { index };
    },
    into: (g, { index }) => gather(laidOut(g), axis, places(index as Tensor, g)),
    back(r, { index }, g, factor) {
      const x = laidOut(g);
      const spread = scatterAdd(zeros(x.shape, x.dtype), axis, places(index as Tensor, g), r);
      return reshape(factor === 1 ? spread : scale(spread, factor), g.shape);
    },
  };
}
