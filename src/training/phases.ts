import type { Phase } from "../nn/contracts.ts";
import { adapterParameters } from "../adapters/attach.ts";
import type { Parameter } from "../tensor/index.ts";
import type { BoundRegime, Session } from "./session.ts";

/** The phase that begins at a step, if one does. */
function beginning(phases: readonly Phase[], step: number): Phase | undefined {
  let start = 0;
  for (const phase of phases) {
    if (start === step) return phase;
    start += phase.steps;
  }
  return undefined;
}

/** Enters the phases of regimes: first their trainable set, then onEnter, which may change it. */
export class PhaseKeeper {
  readonly #session: Session;

  constructor(session: Session) {
    this.#session = session;
  }

  async enter(): Promise<void> {
    const session = this.#session;
    for (const bound of session.regimes) {
      const phase = beginning(bound.regime.phases ?? [], session.step);
      if (!phase) continue;
      if (phase.trainable) for (const w of this.#ownedBy(bound)) w.trainable = phase.trainable(w);
      await phase.onEnter?.(bound.training);
      session.settleState(bound.regime);
    }
    session.applyChoices();
  }

  /** An adapter's regime governs its own parameters, one that stands alone all of them. */
  #ownedBy({ name }: BoundRegime): Iterable<Parameter> {
    const set = name.startsWith("adapter/") ? this.#session.model.adapters.get(name.slice("adapter/".length)) : undefined;
    return set ? adapterParameters(set).values() : this.#session.trained.values();
  }
}
