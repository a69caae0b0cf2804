import type { State } from "../nn/contracts.ts";
import { bytesOf, Tensor } from "../tensor/index.ts";
import { hostView } from "../tensor/tensor.ts";

/** Numbers as JSON can hold them. */
export type Scalar = number | string;

const special: Readonly<Record<string, number>> = { NaN, Infinity, "-Infinity": -Infinity, "-0": -0 };
const encode = (n: number): Scalar => (Object.is(n, -0) ? "-0" : Number.isFinite(n) ? n : String(n));
const decode = (n: Scalar): number => (typeof n === "number" ? n : special[n]!);

/** A state as named tensors and named scalars; names are the path to each, its parts escaped as in a URL. */
export function flatten(state: State, prefix = ""): { tensors: Map<string, Tensor>; scalars: Record<string, Scalar> } {
  const tensors = new Map<string, Tensor>();
  const scalars: Record<string, Scalar> = {};
  const visit = (node: State, at: string): void => {
    for (const [key, value] of Object.entries(node)) {
      const name = at + encodeURIComponent(key);
      if (value instanceof Tensor) tensors.set(name, value);
      else if (typeof value === "number") scalars[name] = encode(value);
      else visit(value, `${name}/`);
    }
  };
  visit(state, prefix);
  return { tensors, scalars };
}

export function bytesTogether(tensors: Iterable<Tensor>): number {
  let sum = 0;
  for (const { size, dtype } of tensors) sum += size * bytesOf(dtype);
  return sum;
}

/** Bytes of the tensors of a state. */
export const bytesOfState = (state: State): number => bytesTogether(flatten(state).tensors.values());

/** The state that `flatten` took apart. */
export function unflatten(tensors: Iterable<readonly [string, Tensor]>, scalars: Readonly<Record<string, Scalar>>): State {
  const root: State = {};
  const put = (name: string, value: Tensor | number): void => {
    const parts = name.split("/").map(decodeURIComponent);
    let node = root;
    for (const part of parts.slice(0, -1)) node = (Object.hasOwn(node, part) ? node[part] : (node[part] = {})) as State;
    node[parts.at(-1)!] = value;
  };
  for (const [name, value] of tensors) put(name, value);
  for (const [name, value] of Object.entries(scalars)) put(name, decode(value));
  return root;
}

/** Makes `state` what `saved` is, keeping its objects and, where shapes agree, its tensors: whoever holds them sees the restored values. */
export function restoreInto(state: State, saved: State): void {
  for (const key of Object.keys(state)) if (!Object.hasOwn(saved, key) && !(isState(state[key]!) && Object.keys(state[key]).length === 0)) delete state[key];
  for (const [key, value] of Object.entries(saved)) {
    const now = state[key];
    if (now instanceof Tensor && value instanceof Tensor && now.dtype === value.dtype && String(now.shape) === String(value.shape) && now.contiguous)
      hostView(now).set(hostView(value) as never);
    else if (now !== undefined && isState(now) && isState(value)) restoreInto(now, value);
    else state[key] = value;
  }
}

const isState = (value: State[string]): value is State => typeof value !== "number" && !(value instanceof Tensor);
