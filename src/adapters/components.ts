import { StrutError } from "../errors.ts";
import type { Site, Training, View } from "../nn/contracts.ts";
import { concat, copyOf, hostNumbers, reshape, slice, zeros, type Parameter, type Tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";
import { countsByElement } from "./counts.ts";

/**
 * Components by row of A, column of B and entry of E; `used` of them count, what is behind is the reserve. `born`: from which step each
 * a and b [0], and each e [1], trains. `slope`: ∂L/∂ΔW of a step, while a score is asked for.
 */
export type Components = { A: Tensor; B: Tensor; E: Tensor; used: Tensor; born: Tensor; slope?: Tensor };

interface Advance {
  readonly advanceLearn: boolean;
}

const RESERVE = 1e-5;
const numbers = (x: Tensor): Float32Array => hostView(x) as Float32Array;
export const usedOf = ({ used }: Components): number => numbers(used)[0]!;

export const trained = ["A", "B", "E"] as const;
type Name = (typeof trained)[number];

/** The component that element `at` of A, B or E belongs to. */
export const componentOf = ({ A, B }: Components, name: Name, at: number): number =>
  name === "A" ? Math.floor(at / A.shape[1]!) : name === "B" ? at % B.shape[1]! : at;

/** Sets what stands for some of the components, in a tensor shaped as A, B or E, to 0. */
export function clear(p: Components, name: Name, x: Tensor, which: (component: number) => boolean): void {
  const values = numbers(x);
  for (let at = 0; at < values.length; at++) if (which(componentOf(p, name, at))) values[at] = 0;
}

/** A site with other components: those at `index`, −1 for a new one; the optimiser's state follows, and of new ones it is that of a first step. */
export function reshapeTo({ params, resize }: View<Components>, index: Int32Array, t: Training<Components>, e = 0, born = 0): void {
  for (const name of trained) countsByElement(t, params[name] as Parameter);
  resize("A", 0, index, "gather");
  resize("B", 1, index, "gather");
  resize("E", 0, index, "gather", e);
  resize("born", 1, index, "gather", born);
}

/** New components behind those there are, from the random numbers of a step, which train from the step `born` on. */
export function append(view: View<Components>, q: number, born: number, t: Training<Components>, o: Advance): void {
  const { site, params } = view;
  const first = params.E.size;
  const index = Int32Array.from({ length: first + q }, (_, i) => (i < first ? i : -1));
  reshapeTo(view, index, t, o.advanceLearn ? RESERVE : 0, born);
  const rng = t.rng.fork(site.path);
  const [A, B] = [numbers(params.A), numbers(params.B)];
  const [inner, rows] = [params.A.shape[1]!, first + q];
  A.set(hostNumbers(rng.fork("A").normal([q, inner], 0.02, params.A.dtype as "f32")) as Float32Array, first * inner);
  const drawn = hostNumbers(rng.fork("B").normal([params.B.shape[0]!, q], 0.02, params.B.dtype as "f32")) as Float32Array;
  for (let i = 0; i < params.B.shape[0]!; i++) for (let j = 0; j < q; j++) B[i * rows + first + j] = drawn[i * q + j]!;
}

/** Takes q components of the reserve into use, and puts new ones in their place; both train from the next step on. */
export function growSite(view: View<Components>, q: number, t: Training<Components>, o: Advance): void {
  const { params } = view;
  const [first, size] = [usedOf(params), params.E.size];
  numbers(params.E).fill(RESERVE, first);
  numbers(params.used)[0] = first + q;
  const born = numbers(params.born);
  born.fill(t.step + 1, size + first);
  if (!o.advanceLearn) born.fill(t.step + 1, first, size);
  append(view, q, t.step + 1, t, o);
}

/** The step from which on a component of A, B or E trains. */
export const birthOf = ({ born, E }: Components, name: Name, i: number): number => numbers(born)[name === "E" ? E.size + i : i]!;

/** Of the reserve E does not train, nor without advance learning A and B. */
export const trains = (p: Components, name: Name, i: number, step: number, o: Advance): boolean =>
  birthOf(p, name, i) <= step && (i < usedOf(p) || (o.advanceLearn && name !== "E"));

/** A site's parameters from the lists of the published code, A r×in, B out×r and E r×1 each; what is behind ranknum is its reserve and left out. */
export function fromLists({ A = [], B = [], E = [], used = [] }: Readonly<Record<string, readonly Tensor[]>>, { path, in: inner, out }: Site): Components {
  const [count] = used;
  const fits = (a: Tensor, i: number): boolean => {
    const r = a.shape[0]!;
    return String([a.shape, B[i]?.shape, E[i]?.shape]) === String([r, inner, out, r, r, 1]);
  };
  const n = count?.size === 1 ? Number(hostNumbers(count)[0]) : 0;
  const total = A.reduce((rows, { shape }) => rows + shape[0]!, 0);
  if (B.length !== A.length || E.length !== A.length || !A.every(fits) || !Number.isInteger(n) || n < 1 || n > total)
    throw new StrutError(
      "peft-shape",
      `increlora: ${path} needs lora_A.j r×${inner}, lora_B.j ${out}×r and lora_E.j r×1 for each j, and a ranknum from 1 to their ${total} components; found ${A.length}, ${B.length} and ${E.length} tensors and ranknum ${n}`,
      { hint: "The adapter was made for another base model, or the file is damaged." },
    );
  const [a, b, e] = [slice(concat(A, 0), 0, 0, n), slice(concat(B, 1), 1, 0, n), slice(reshape(concat(E, 0), [-1]), 0, 0, n)];
  return { A: copyOf(a), B: copyOf(b), E: copyOf(e), used: count!, born: zeros([2, n], e.dtype as "f32") };
}
