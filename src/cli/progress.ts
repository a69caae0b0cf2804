import type { Coverage } from "../adapters/index.ts";
import { grouped, secondsText } from "../report/numbers.ts";
import type { TrainingEvent } from "../training/index.ts";
import { isLively, print, StatusLine, type Io } from "./io.ts";

/** `q_proj (5)`: last names of modules with how many there are. */
function byName(paths: readonly string[]): string {
  const counts = new Map<string, number>();
  for (const path of paths) {
    const name = path.split(".").at(-1)!;
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  return [...counts].map(([name, count]) => `${name} (${count})`).join(", ");
}

/** What an adapter will sit on, what asked for it in vain, and what stays as it is. */
export function coverageFacts({ matched, unmatched, saved }: Coverage, sites: readonly { readonly path: string }[]): [string, string | undefined][] {
  const left = sites.map(({ path }) => path).filter((path) => !matched.includes(path) && !saved.includes(path));
  return [
    ["adapted", `${matched.length} modules: ${byName(matched)}`],
    ["whole", saved.length > 0 ? byName(saved) : undefined],
    ["no match", unmatched.length > 0 ? unmatched.join(", ") : undefined],
    ["left alone", left.length > 0 ? byName(left) : undefined],
  ];
}

/** A held-out loss, of language modelling with its perplexity. */
export const heldOutText = ({ loss, perplexity }: { readonly loss: number; readonly perplexity?: number }): string =>
  `${loss.toFixed(4)}${perplexity === undefined ? "" : `, perplexity ${perplexity.toFixed(2)}`}`;

/** Shows a run as it goes on: one line in place on a terminal, a line now and then elsewhere. */
export class TrainingProgress {
  readonly #io: Io;
  readonly #status: StatusLine;
  #shown = 0;

  constructor(io: Io) {
    this.#io = io;
    this.#status = new StatusLine(io);
  }

  readonly show = (event: TrainingEvent): void => {
    if (event.event === "step") return this.#step(event);
    if (event.event === "evaluation") this.#line(`step ${event.step}  held-out loss ${heldOutText(event)}${event.best ? "" : " (no better)"}`);
    else if (event.event === "warning") this.#line(`warning: ${event.message}`);
    else if (event.event === "start" && event.resumed) this.#line(`going on from ${event.resumed}, step ${event.step}`);
  };

  #line(text: string): void {
    this.#status.clear();
    print(this.#io, text);
  }

  #step({ step, steps, loss, tokensPerSecond, timeLeft }: Extract<TrainingEvent, { event: "step" }>): void {
    const text = `step ${step}/${steps}  loss ${loss.toFixed(4)}  ${grouped(tokensPerSecond)} tokens/s  ${secondsText(timeLeft)} left`;
    if (isLively(this.#io)) return this.#status.show(text, "cyan");
    const due = Math.ceil(steps / 10);
    if (step < this.#shown + due && step !== steps) return;
    this.#shown = step;
    print(this.#io, text);
  }

  end(): void {
    this.#status.clear();
  }
}
