import { StrutError } from "../errors.ts";
import { engine, kernels } from "./engine.ts";
import type { Handle } from "./memory.ts";
import { scope } from "./scope.ts";
import { copyOf, ones, Parameter, Tensor } from "./tensor.ts";

/** One recorded operation: how the gradient of its output becomes those of its inputs. */
export interface Node {
  readonly id: number;
  readonly inputs: readonly Tensor[];
  readonly output: Tensor;
  /** `sumOf` gives the gradient that an input has so far, if it may be written: adding to it stands for returning one. */
  readonly backward: (gradient: Tensor, sumOf: (input: Tensor) => Tensor | undefined) => readonly (Tensor | null)[];
  /** Memory that nobody needs once this node's backward has run. */
  readonly owned: readonly Handle[];
}

let paused = 0;
let lastId = 0;
let replaying = false;
/** While recompute() runs forward: the parameters its body touched. */
let watching: Set<Parameter> | undefined;

/** Whether a gradient flows to this tensor. */
export const needsGradient = (tensor: Tensor): boolean => tensor.node !== undefined || (tensor instanceof Parameter && tensor.trainable);

/** Whether operations are recorded now, that is outside of noGrad. */
export const gradientsFlow = (): boolean => paused === 0;

/** Whether recompute() runs its body again: what a body writes it wrote the first time. */
export const isReplay = (): boolean => replaying;

/** Runs `body` without recording: evaluation, optimiser steps. */
export function noGrad<T>(body: () => T): T {
  paused++;
  let result: T;
  try {
    result = body();
  } catch (error) {
    paused--;
    throw error;
  }
  if (!(result instanceof Promise)) {
    paused--;
    return result;
  }
  return result.finally(() => paused--) as T;
}

/** Whether an operation on these inputs will be recorded. */
export function recording(inputs: readonly Tensor[]): boolean {
  if (watching) for (const input of inputs) if (input instanceof Parameter && input.trainable) watching.add(input);
  return paused === 0 && inputs.some(needsGradient);
}

/**
 * Puts an operation on the tape if one of its inputs needs a gradient. `backward` returns one gradient an input, or null.
 * `saved` are further tensors that only this backward reads; they and the output end when it has run.
 */
export function record(output: Tensor, inputs: readonly Tensor[], backward: Node["backward"], saved: readonly Tensor[] = []): Tensor {
  if (!recording(inputs)) return output;
  const shared = inputs.some((input) => input.handle === output.handle);
  output.node = { id: ++lastId, inputs, output, backward, owned: [...(shared ? [] : [output.handle]), ...saved.map((tensor) => tensor.handle)] };
  return output;
}

export type Gradients = Map<Parameter, Tensor>;

export interface BackwardOptions {
  /**
   * Called with each parameter's finished gradient, as soon as the last node that reads its memory is done. It may change
   * the parameter and free the gradient; a tensor it returns takes the gradient's place.
   */
  onGradient?: (parameter: Parameter, gradient: Tensor) => Tensor | void | Promise<Tensor | void>;
  /** Gradient of the output; defaults to 1 for a loss with one element. */
  seed?: Tensor;
}

/** Nodes reachable from the root, newest first. */
function reachable(root: Node): Node[] {
  const seen = new Set<Node>([root]);
  const stack = [root];
  for (let node = stack.pop(); node; node = stack.pop())
    for (const { node: next } of node.inputs)
      if (next && !seen.has(next)) {
        seen.add(next);
        stack.push(next);
      }
  return [...seen].sort((a, b) => b.id - a.id);
}

/** Gradients under way, by the tensor they belong to; memory that something else reads is not written in place. */
class Accumulator {
  readonly #sums = new Map<Tensor, Tensor>();
  readonly #uses = new Map<Handle, number>();
  readonly #forward: ReadonlySet<Handle>;

  constructor(forward: ReadonlySet<Handle>) {
    this.#forward = forward;
  }

  add(target: Tensor, gradient: Tensor): void {
    const sum = this.#sums.get(target);
    const value = sum ? (this.writable(target) ?? copyOf(sum)) : gradient;
    if (sum) kernels().axpby(value, 1, gradient.contiguous ? gradient : copyOf(gradient), 1, gradient.size);
    if (value === sum) return;
    this.hold(value);
    this.#sums.set(target, value);
    if (sum) this.release(sum);
  }

  /** The sum so far, where nobody else reads its memory. */
  writable(target: Tensor): Tensor | undefined {
    const sum = this.#sums.get(target);
    return sum && sum.contiguous && !sum.handle.kept && !this.shared(sum) ? sum : undefined;
  }

  /** The sum so far; whoever takes it releases it. */
  take(target: Tensor): Tensor | undefined {
    const sum = this.#sums.get(target);
    this.#sums.delete(target);
    return sum;
  }

  hold({ handle }: Tensor): void {
    this.#uses.set(handle, (this.#uses.get(handle) ?? 0) + 1);
  }

  /** Whether other gradients, or the forward pass, live in the same memory. */
  shared({ handle }: Tensor): boolean {
    return (this.#uses.get(handle) ?? 0) > 1 || this.#forward.has(handle);
  }

  /** Gives up one use; memory without further use is freed, unless it belongs to the forward pass. */
  release({ handle }: Tensor): void {
    const uses = this.#uses.get(handle)! - 1;
    this.#uses.set(handle, uses);
    if (uses === 0 && !handle.kept && !this.#forward.has(handle)) engine().pool.free(handle);
  }
}

/** The parameters of a tape by their memory, and how many inputs of nodes lie in it: views and stopGradient share it. */
function readersOf(nodes: readonly Node[]): Map<Handle, { left: number; parameters: Set<Parameter> }> {
  const readers = new Map<Handle, { left: number; parameters: Set<Parameter> }>();
  const inputs = nodes.flatMap((node) => node.inputs);
  for (const input of inputs) {
    if (!(input instanceof Parameter && input.trainable)) continue;
    const found = readers.get(input.handle);
    if (found) found.parameters.add(input);
    else readers.set(input.handle, { left: 0, parameters: new Set([input]) });
  }
  for (const { handle } of inputs) {
    const found = readers.get(handle);
    if (found) found.left++;
  }
  return readers;
}

function* walk(loss: Tensor, seed: Tensor | undefined): Generator<readonly [Parameter, Tensor], void, void> {
  if (!seed && loss.size !== 1)
    throw new StrutError("shape", `backward() starts from a loss with one element, this one has shape [${loss.shape}]`, {
      hint: "Reduce it with sum or mean, or give a seed.",
    });
  if (!loss.node)
    throw new StrutError("gradient", "backward(): no trainable parameter contributed to this loss", {
      hint: "Adapt the model, or set `trainable` on parameters, before the forward pass.",
    });
  const nodes = reachable(loss.node);
  const readers = readersOf(nodes);
  const sums = new Accumulator(new Set(nodes.flatMap((node) => node.owned)));
  if (seed) sums.hold(seed);
  sums.add(loss, seed ?? ones(loss.shape, loss.dtype));
  for (const node of nodes) {
    const gradient = sums.take(node.output);
    if (gradient) {
      const results = noGrad(() => scope(() => node.backward(gradient, (input) => sums.writable(input))));
      if (results.length !== node.inputs.length)
        throw new StrutError("gradient", `a backward function returned ${results.length} gradients for ${node.inputs.length} inputs`);
      for (const result of results) if (result) sums.hold(result);
      results.forEach((result, i) => {
        if (result && needsGradient(node.inputs[i]!)) sums.add(node.inputs[i]!, result);
      });
      for (const result of results) if (result) sums.release(result);
      sums.release(gradient);
    }
    for (const handle of node.owned) if (!handle.kept && handle !== loss.handle) engine().pool.free(handle);
    node.output.node = undefined;
    for (const { handle } of node.inputs) {
      const reader = readers.get(handle);
      if (!reader || --reader.left > 0) continue;
      for (const parameter of reader.parameters) {
        const total = sums.take(parameter);
        if (!total) continue;
        // whoever gets it may write it in place
        const own = total.contiguous && !sums.shared(total) ? total : copyOf(total);
        if (own !== total) sums.release(total);
        yield [parameter, own];
      }
    }
  }
}

/**
 * Gradients of `loss` for every trainable parameter that took part. Frees the intermediates of the forward pass.
 * With `onGradient` it returns a promise and awaits each call.
 *
 * @example
 * const gradients = backward(sum(mul(w, w)));
 * console.log(await gradients.get(w)!.data());
 */
export function backward(loss: Tensor, options: BackwardOptions & { onGradient: NonNullable<BackwardOptions["onGradient"]> }): Promise<Gradients>;
export function backward(loss: Tensor, options?: BackwardOptions & { onGradient?: undefined }): Gradients;
export function backward(loss: Tensor, { onGradient, seed }: BackwardOptions = {}): Gradients | Promise<Gradients> {
  const gradients: Gradients = new Map();
  const steps = walk(loss, seed);
  if (!onGradient) {
    for (const [parameter, gradient] of steps) gradients.set(parameter, gradient);
    return gradients;
  }
  return (async () => {
    for (const [parameter, gradient] of steps) {
      const replaced = (await onGradient(parameter, gradient)) ?? gradient;
      if (replaced.handle.block) gradients.set(parameter, replaced);
    }
    return gradients;
  })();
}

/** The same values, cut off from the tape. */
export function stopGradient(x: Tensor): Tensor {
  return new Tensor(x.handle, x.dtype, x.shape, x.strides, x.offset);
}

/**
 * An operation with a gradient of your own: `forward` runs unrecorded; `backward(g, output)` gives one gradient an input.
 *
 * @example
 * const signSte = (x: Tensor) => customGradient([x], (v) => sign(v), (g) => [g]);
 */
export function customGradient(
  inputs: readonly Tensor[],
  forward: (...inputs: Tensor[]) => Tensor,
  backwardOf: (gradient: Tensor, output: Tensor) => readonly (Tensor | null)[],
): Tensor {
  const made = noGrad(() => forward(...inputs.map(stopGradient)));
  const output = inputs.some((input) => input.handle === made.handle) ? copyOf(made) : made;
  return record(output, inputs, (gradient) => backwardOf(gradient, stopGradient(output)));
}

/**
 * Runs `body` now without keeping its intermediates, and again during backward: memory for time.
 * `body` must give the same result both times.
 */
export function recompute(body: (...inputs: Tensor[]) => Tensor, ...inputs: Tensor[]): Tensor {
  const outer = watching;
  const seen = (watching = new Set<Parameter>());
  let output: Tensor;
  try {
    output = noGrad(() => scope(() => body(...inputs.map(stopGradient))));
  } finally {
    watching = outer;
    for (const parameter of seen) outer?.add(parameter);
  }
  const parameters = [...seen].filter((parameter) => !inputs.includes(parameter));
  return record(output, [...inputs, ...parameters], (gradient) => {
    const before = paused;
    paused = 0;
    try {
      const leaves = inputs.map((input) => leafOf(input));
      const again = replay(() => body(...leaves));
      const inner = again.node ? backward(again, { seed: gradient }) : new Map<Parameter, Tensor>();
      return [...leaves.map((leaf) => (leaf instanceof Parameter ? (inner.get(leaf) ?? null) : null)), ...parameters.map((p) => inner.get(p) ?? null)];
    } finally {
      paused = before;
    }
  });
}

function replay(body: () => Tensor): Tensor {
  const outer = replaying;
  replaying = true;
  try {
    return body();
  } finally {
    replaying = outer;
  }
}

/** An input as a leaf of its own inner tape. */
function leafOf(input: Tensor): Tensor {
  if (!needsGradient(input)) return input;
  const leaf = Object.assign(Object.create(Parameter.prototype) as Parameter, stopGradient(input), { name: "", trainable: true });
  return leaf;
}
