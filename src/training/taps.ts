import type { Observer, Site, TapRequest, Taps } from "../nn/contracts.ts";
import { accumulate, scaleInPlace } from "../optimizers/in-place.ts";
import { free, full, keep, maximum, minimum, noGrad, reshape, scope, stopGradient, sum, zeros, type Tensor } from "../tensor/index.ts";

interface Recorded {
  readonly input: Tensor;
  readonly outputGradient: Tensor;
  rows: number;
}

/** Sums inputs and output gradients of each linear or convolution over the rows of a step's batches. */
export class TapRecorder {
  readonly #recorded = new Map<string, Recorded>();
  readonly taps: ReadonlyMap<string, Taps> = this.#recorded;

  /** What is to watch a pass, for all who read the taps of its step. */
  observer(requests: readonly TapRequest[]): Observer {
    const bound = Math.min(...requests.map((request) => request.bound ?? Infinity));
    return {
      sees: (site) => requests.some((request) => request.sees?.(site) ?? true),
      input: (site, x) => {
        if (site.kind === "embedding") return;
        const tap = this.#at(site, x);
        const rows = x.size / site.in;
        this.#add(tap.input, x, rows, bound);
        tap.rows += rows;
      },
      outputGradient: (site, gradient) => {
        const rows = gradient.size / site.out;
        this.#add(this.#at(site, gradient).outputGradient, gradient, rows, bound / rows);
      },
    };
  }

  #at(site: Site, like: Tensor): Recorded {
    let tap = this.#recorded.get(site.path);
    if (!tap) {
      const make = (n: number): Tensor => keep(noGrad(() => zeros([n], like.dtype)));
      this.#recorded.set(site.path, (tap = { input: make(site.in), outputGradient: make(site.out), rows: 0 }));
    }
    return tap;
  }

  #add(total: Tensor, x: Tensor, rows: number, bound: number): void {
    noGrad(() =>
      scope(() => {
        const each = reshape(stopGradient(x), [rows, total.size]);
        const cut = Number.isFinite(bound) ? minimum(maximum(each, full([], -bound, x.dtype)), full([], bound, x.dtype)) : each;
        accumulate(total, 1, sum(cut, { axes: [0] }));
      }),
    );
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
