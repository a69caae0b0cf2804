import { yieldToEvents } from "../nn/events.ts";

/** Yields to the event loop when that is due; cheap to call often. */
export class Pulse {
  #last = performance.now();
  readonly #every: number;

  /** `every` in milliseconds. */
  constructor(every = 40) {
    this.#every = every;
  }

  readonly beat = (): Promise<void> | undefined => {
    if (performance.now() - this.#last < this.#every) return undefined;
    return yieldToEvents().then(() => void (this.#last = performance.now()));
  };
}
