import type { Observer, Site, Taps } from "../nn/contracts.ts";
import { accumulate, scaleInPlace } from "../optimizers/in-place.ts";
import { free, keep, noGrad, reshape, scope, stopGradient, sum, zeros, type Tensor } from "../tensor/index.ts";

interface Recorded {
  readonly input: Tensor;
  readonly outputGradient: Tensor;
  rows: number;
}

/** Sums inputs and output gradients of each linear site over the rows of a step's batches. */
export class TapRecorder {
  readonly #recorded = new Map<string, Recorded>();
  readonly taps: ReadonlyMap<string, Taps> = this.#recorded;

  readonly observer: Required<Pick<Observer, "input" | "outputGradient">> = {
    input: (site, x) => {
      if (site.kind === "embedding") return;
      const tap = this.#at(site, x);
      const rows = x.size / site.in;
      this.#add(tap.input, x, rows);
      tap.rows += rows;
    },
    outputGradient: (site, gradient) => this.#add(this.#at(site, gradient).outputGradient, gradient, gradient.size / site.out),
  };

  #at(site: Site, like: Tensor): Recorded {
    let tap = this.#recorded.get(site.path);
    if (!tap) {
      const make = (n: number): Tensor => keep(noGrad(() => zeros([n], like.dtype)));
      this.#recorded.set(site.path, (tap = { input: make(site.in), outputGradient: make(site.out), rows: 0 }));
    }
    return tap;
  }

  #add(total: Tensor, x: Tensor, rows: number): void {
    noGrad(() => scope(() => accumulate(total, 1, sum(reshape(stopGradient(x), [rows, total.size]), { axes: [0] }))));
  }

  /** Turns sums of inputs into means, when the last batch of the step is done. */
  finish(): void {
    for (const tap of this.#recorded.values()) {
      scaleInPlace(tap.input, 1 / Math.max(1, tap.rows));
      tap.rows = 1;
    }
  }

  clear(): void {
    for (const { input, outputGradient } of this.#recorded.values()) {
      free(input);
      free(outputGradient);
    }
    this.#recorded.clear();
  }
}
