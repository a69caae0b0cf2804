import { StrutError } from "../errors.ts";
import type { ListLink, ParameterGroup, ParameterLink, Schedule, Site, State, TapRequest, Taps, Transform, TransformContext } from "../nn/contracts.ts";
import { kernels } from "../tensor/engine.ts";
import { free, keep, noGrad, scope, sumSquares, Tensor, type Parameter, type Rng } from "../tensor/index.ts";
import { clampTo, clipByGlobalNorm, clipFactor } from "./clip.ts";
import { accumulate, overwrite, scaleInPlace } from "./in-place.ts";
import { linksOf, type Link } from "./optimizer.ts";

export interface OptimizationSettings {
  /** Chain of every parameter whose group has none of its own. */
  optimizer: Transform;
  learningRate: number;
  weightDecay: number;
  schedule: Schedule;
  /** Largest 2-norm of all gradients together. */
  clip?: number;
  /** Largest size of a single number of a gradient. */
  clipValue?: number;
  /** Keep the weights on the grid of bf16, each rounded at random so that its mean is right. */
  stochasticRounding?: boolean;
  /** Run the everyday chain as one kernel; defaults to true. */
  fuse?: boolean;
}

interface Group {
  readonly parameters: readonly Parameter[];
  readonly learningRate: number;
  readonly schedule: Schedule;
  readonly weightDecay: number;
}

/** One chain, with the groups that use it and the state of its links. */
interface Chain {
  readonly links: readonly Link[];
  readonly groups: Group[];
  readonly fused: { beta1: number; beta2: number; eps: number; decay: boolean } | undefined;
  /** By link: states of a "parameter" link by parameter, of a "group" link by group, of a "model" link one. */
  readonly states: Map<Parameter | number, State>[];
}

/** The everyday chain, by the declarations of its links: adam, then decay or none, then the learning rate. */
function fusedForm(links: readonly Link[]): Chain["fused"] {
  const [adam, ...rest] = links.map(({ fused }) => fused);
  if (adam?.kind !== "adam" || rest.at(-1)?.kind !== "learningRate") return undefined;
  const decay = rest.length === 2 && rest[0]?.kind === "decay";
  return rest.length === 1 || decay ? { beta1: adam.beta1, beta2: adam.beta2, eps: adam.eps, decay } : undefined;
}

/** Where the learning rate stands, if nothing behind it moves the weight: then it goes into the subtraction, to the same bits. */
function rateLast(links: readonly Link[], decay: number): number | undefined {
  const at = links.findLastIndex(({ fused }) => fused?.kind === "learningRate");
  const idle = links.slice(at + 1).every(({ fused }) => fused?.kind === "decayAfter" && decay === 0);
  return at >= 0 && idle ? at : undefined;
}

/** Lets the tensors of a state outlive the step, and cuts them off from any tape. */
export function keepState(state: State): State {
  for (const value of Object.values(state)) {
    if (typeof value === "number") continue;
    if (!(value instanceof Tensor)) keepState(value);
    else {
      value.node = undefined;
      if (!value.handle.kept) keep(value);
    }
  }
  return state;
}

/** Returns the memory of a state that nobody needs any more. */
export function freeState(state: State): void {
  for (const value of Object.values(state)) {
    if (value instanceof Tensor) free(value);
    else if (typeof value !== "number") freeState(value);
  }
}

/** What a link sees of the run at one parameter: its random numbers do not depend on the order of the parameters. */
export const alone = (w: Parameter, t: TransformContext): TransformContext => ({ ...t, rng: t.rng.fork(w.name) });

/** The optimiser of a run: parameter groups, their chains, and all state. */
export class Optimization {
  readonly chains: Chain[] = [];
  readonly #groupOf = new Map<Parameter, Group>();
  readonly #chainOf = new Map<Parameter, Chain>();
  readonly #maxNorm: number | undefined;
  readonly #clipsLater: boolean;
  readonly #maxValue: number | undefined;
  readonly #rounds: boolean;
  #gradScale = 1;

  constructor(groups: readonly ParameterGroup[], parameters: Iterable<Parameter>, settings: OptimizationSettings) {
    const chains = new Map<Transform, Chain>();
    for (const group of groups) this.#join(group, settings, chains);
    const rest = [...parameters].filter((w) => !this.#groupOf.has(w));
    if (rest.length > 0) this.#join({ parameters: rest }, settings, chains);
    this.#maxNorm = settings.clip;
    this.#clipsLater = this.chains.some(({ links }) => links.some(({ clipAfter }) => clipAfter));
    if (this.#clipsLater && settings.clip !== undefined && this.chains.length > 1)
      throw new StrutError("option", "clip needs the norm of all gradients together, but one of several chains clips after it has changed its own", {
        path: "clip",
        hint: "Leave out `clip`, or train all parameters with one optimiser.",
      });
    this.#maxValue = settings.clipValue;
    this.#rounds = settings.stochasticRounding ?? false;
  }

  #join(group: ParameterGroup, settings: OptimizationSettings, chains: Map<Transform, Chain>): void {
    const transform = group.optimizer ?? settings.optimizer;
    const links = linksOf(transform).flatMap((link) => (link.clipAfter && settings.clip !== undefined ? [link, clipByGlobalNorm(settings.clip)] : [link]));
    const chain: Chain = chains.get(transform) ?? {
      links,
      groups: [],
      fused: settings.fuse === false ? undefined : fusedForm(links),
      states: links.map(() => new Map()),
    };
    if (!chains.has(transform)) {
      chains.set(transform, chain);
      this.chains.push(chain);
    }
    const made: Group = {
      parameters: group.parameters,
      learningRate: group.learningRate ?? settings.learningRate * (group.learningRateFactor ?? 1),
      schedule: group.schedule ?? settings.schedule,
      weightDecay: group.weightDecay ?? settings.weightDecay,
    };
    chain.groups.push(made);
    for (const w of made.parameters) {
      if (this.#groupOf.has(w))
        throw new StrutError("option", `${w.name} stands in two parameter groups`, { hint: "Each parameter trains in one group only." });
      this.#groupOf.set(w, made);
      this.#chainOf.set(w, chain);
    }
  }

  get wantsTaps(): boolean {
    return this.chains.some(({ links }) => links.some(({ taps }) => taps));
  }

  /** Which taps of a step its links read. */
  tapRequests(step: number): TapRequest[] {
    return this.chains.flatMap(({ links, states }) => links.flatMap(({ taps }, i) => (taps && (taps.at?.(step, states[i]!.get(0)) ?? true) ? [taps] : [])));
  }

  context(
    step: number,
    steps: number,
    rng: Rng,
    sites: readonly Site[],
    taps: ReadonlyMap<string, Taps>,
    warn: (message: string) => void = () => {},
    loss = NaN,
  ): TransformContext {
    return {
      warn,
      loss,
      step,
      steps,
      rng,
      sites,
      taps,
      learningRate: (w) => {
        const group = this.#groupOf.get(w)!;
        return group.learningRate * group.schedule(step, steps);
      },
      weightDecay: (w) => this.#groupOf.get(w)!.weightDecay,
    };
  }

  /**
   * The global norm of the gradients before clipping, in f64. Clips them, by value and then by norm: in place, or by a factor
   * that the fused kernel applies where nobody reads the gradients in between. A chain with a link that says `clipAfter` clips
   * by norm for itself.
   */
  clip(gradients: ReadonlyMap<Parameter, Tensor>, inPlace: boolean): number {
    const norm = Math.sqrt(sumSquares(gradients.values()));
    this.clipValues(gradients.values());
    const left = this.#maxValue === undefined || this.#maxNorm === undefined ? norm : Math.sqrt(sumSquares(gradients.values()));
    const factor = this.#maxNorm === undefined || this.#clipsLater ? 1 : clipFactor(left, this.#maxNorm);
    const fold = !inPlace && this.chains.every(({ fused }) => fused);
    this.#gradScale = fold ? factor : 1;
    if (!fold && factor < 1) for (const gradient of gradients.values()) scaleInPlace(gradient, factor);
    return norm;
  }

  /** Limits every number of gradients in place, if the run asks for that. */
  clipValues(gradients: Iterable<Tensor>): void {
    if (this.#maxValue !== undefined) for (const gradient of gradients) scope(() => overwrite(gradient, clampTo(gradient, this.#maxValue!)));
  }

  /** Whether every chain sees one tensor at a time, so that a weight can move before other gradients are known. */
  get singly(): boolean {
    return this.chains.every(({ links }) => links.every(({ scope: of }) => of === "parameter"));
  }

  /** Moves the weights. `clip` comes first; gradients are used up. `beat` may give the event loop its turn. */
  async update(gradients: ReadonlyMap<Parameter, Tensor>, t: TransformContext, beat?: () => Promise<void> | undefined): Promise<void> {
    for (const chain of this.chains) {
      const groups = chain.groups.map(({ parameters }) => parameters.filter((w) => gradients.has(w)));
      if (chain.fused) {
        for (const w of groups.flat()) {
          const g = gradients.get(w)!;
          // the kernel corrects all elements by one count
          if (this.#stateOf(chain, 0, w, t)["t"] instanceof Tensor) await noGrad(() => this.#chainUpdate(chain, [[w]], new Map([[w, g]]), t));
          else this.#fusedUpdate(chain, w, g, t);
          await beat?.();
        }
      } else await noGrad(() => this.#chainUpdate(chain, groups, new Map(gradients), t, beat));
    }
  }

  #round(w: Parameter, t: TransformContext): void {
    if (this.#rounds) kernels().random_round(w, w, w.size, ...alone(w, t).rng.fork("round").key, 0);
  }

  #fusedUpdate(chain: Chain, w: Parameter, g: Tensor, t: TransformContext): void {
    const { beta1, beta2, eps, decay } = chain.fused!;
    const s = this.#stateOf(chain, 0, w, t);
    const count = (s["t"] = (s["t"] as number) + 1);
    kernels().adamw(
      w,
      g,
      s["m"] as Tensor,
      s["v"] as Tensor,
      w.size,
      t.learningRate(w),
      beta1,
      beta2,
      eps,
      decay ? t.weightDecay(w) : 0,
      1 - beta1 ** count,
      1 - beta2 ** count,
      this.#gradScale,
    );
    this.#round(w, t);
  }

  /** Links that see lists run over all tensors; the parameter links after the last of those run tensor by tensor. */
  async #chainUpdate(
    chain: Chain,
    groups: readonly (readonly Parameter[])[],
    updates: Map<Parameter, Tensor>,
    t: TransformContext,
    beat?: () => Promise<void> | undefined,
  ): Promise<void> {
    const single = chain.links.findLastIndex(({ scope: of }) => of !== "parameter") + 1;
    for (let i = 0; i < single; i++) {
      const link = chain.links[i]!;
      if (link.scope === "parameter") for (const w of groups.flat()) updates.set(w, await this.#parameterUpdate(chain, i, link, updates.get(w)!, w, t));
      else if (link.scope === "model") await this.#listUpdate(chain, i, link, 0, groups.flat(), updates, t);
      else for (const [index, group] of groups.entries()) await this.#listUpdate(chain, i, link, index, group, updates, t);
    }
    for (const w of groups.flat()) {
      await scope(async () => {
        let u = updates.get(w)!;
        const rate = rateLast(chain.links, t.weightDecay(w));
        for (let i = single; i < (rate ?? chain.links.length); i++) u = await this.#parameterUpdate(chain, i, chain.links[i] as ParameterLink, u, w, t);
        accumulate(w, rate === undefined ? -1 : -t.learningRate(w), u);
      });
      this.#round(w, t);
      await beat?.();
    }
  }

  async #parameterUpdate(chain: Chain, i: number, link: ParameterLink, u: Tensor, w: Parameter, t: TransformContext): Promise<Tensor> {
    const s = this.#stateOf(chain, i, w, t);
    const next = await link.update(u, s, w, alone(w, t));
    keepState(s);
    return next;
  }

  async #listUpdate(
    chain: Chain,
    i: number,
    link: ListLink,
    key: number,
    w: readonly Parameter[],
    updates: Map<Parameter, Tensor>,
    t: TransformContext,
  ): Promise<void> {
    if (w.length === 0) return;
    const states = chain.states[i]!;
    const s = states.get(key) ?? keepState(link.init(w, t));
    states.set(key, s);
    const next = await link.update(
      w.map((parameter) => updates.get(parameter)!),
      s,
      w,
      t,
    );
    keepState(s);
    w.forEach((parameter, index) => updates.set(parameter, next[index]!));
  }

  #stateOf(chain: Chain, i: number, w: Parameter, t: TransformContext): State {
    const states = chain.states[i]!;
    let s = states.get(w);
    if (!s) states.set(w, (s = keepState(noGrad(() => (chain.links[i] as ParameterLink).init(w, alone(w, t))))));
    return s;
  }

  /** The state of a parameter, one a "parameter" link; made now if it was not there. */
  moments(w: Parameter, t: TransformContext): State[] {
    const chain = this.#chainOf.get(w);
    if (!chain) return [];
    return chain.links.flatMap(({ scope: of }, i) => (of === "parameter" ? [this.#stateOf(chain, i, w, t)] : []));
  }

  /** The states a parameter has now, by link; empty before its first update. */
  statesOf(w: Parameter): State[] {
    return (this.#chainOf.get(w)?.states ?? []).flatMap((states): State[] => (states.has(w) ? [states.get(w)!] : []));
  }

  /** Forgets the state of a parameter; it starts anew at its next update. */
  drop(w: Parameter): void {
    for (const states of this.#chainOf.get(w)?.states ?? []) states.delete(w);
  }

  /** All state as one tree: chain / link / parameter or group. */
  state(nameOf: (w: Parameter) => string): State {
    const named = (states: Map<Parameter | number, State>): State =>
      Object.fromEntries([...states].map(([key, s]) => [typeof key === "number" ? String(key) : nameOf(key), s]));
    return Object.fromEntries(this.chains.map(({ states }, c) => [c, Object.fromEntries(states.map((of, i) => [i, named(of)]))]));
  }

  /** Takes over a tree that `state` gave. */
  restore(tree: State, byName: ReadonlyMap<string, Parameter>): void {
    this.chains.forEach(({ states }, c) =>
      states.forEach((of, i) => {
        of.clear();
        const saved = ((tree[c] as State | undefined)?.[i] ?? {}) as State;
        for (const [key, s] of Object.entries(saved)) of.set(byName.get(key) ?? Number(key), keepState(s as State));
      }),
    );
  }
}
