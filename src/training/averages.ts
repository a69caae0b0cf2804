import type { State } from "../nn/contracts.ts";
import { accumulate } from "../optimizers/in-place.ts";
import { isReal, keep, type Parameter, type Tensor } from "../tensor/index.ts";
import { copyOf, hostView } from "../tensor/tensor.ts";

/** Exponential moving averages of what trains (Polyak & Juditsky 1992): a ← decay·a + (1 − decay)·w. */
export class Averages {
  readonly #trained: ReadonlyMap<string, Parameter>;
  readonly #decay: number;
  /** By name; empty before the first step, whose weights they start from. */
  readonly state: { [name: string]: Tensor } = {};

  constructor(trained: ReadonlyMap<string, Parameter>, decay: number) {
    // indices and masks are kept in checkpoints too, and have no average
    this.#trained = new Map([...trained].filter(([, w]) => isReal(w.dtype)));
    this.#decay = decay;
  }

  /** After every step, and once before the first. A parameter whose shape changed starts anew. */
  follow(): void {
    for (const [name, w] of this.#trained) {
      const average = this.state[name];
      if (average && String(average.shape) === String(w.shape)) accumulate(average, 1 - this.#decay, w, this.#decay);
      else keep((this.state[name] = copyOf(w)));
    }
  }

  /** Exchanges weights and averages: before an evaluation and again after it. */
  swap(): void {
    for (const [name, w] of this.#trained) {
      const average = this.state[name];
      if (!average || String(average.shape) !== String(w.shape)) continue;
      const held = (hostView(w) as Float32Array).slice();
      hostView(w).set(hostView(average) as never);
      hostView(average).set(held as never);
    }
  }

  restore(saved: State): void {
    for (const [name, average] of Object.entries(saved)) keep((this.state[name] = average as Tensor));
  }
}
