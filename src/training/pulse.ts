/** Gives timers, signals and input their turn now. */
const turn = (): Promise<void> =>
  new Promise((resolve) => {
    if (typeof setImmediate === "function") return void setImmediate(resolve);
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(0);
  });

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
    return turn().then(() => void (this.#last = performance.now()));
  };
}
