import { StrutError } from "../errors.ts";
import { Rng, type Real, type Tensor } from "../tensor/index.ts";
import { blockDiagonal, kronecker } from "./block.ts";
import { dense } from "./dense.ts";
import { diagonal, scaledColumns, scaledRows } from "./diagonal.ts";
import { coredLowRank, lowRank } from "./low-rank.ts";
import { nf4 } from "./nf4.ts";
import { productOf, sumOf, transposeOf } from "./nodes.ts";
import type { LinearOperator, OperatorOptions } from "./operator.ts";
import { permutation } from "./permutation.ts";
import { quantized, quantizedBlocks } from "./quantized.ts";
import { replacedRowsAt } from "./replaced-rows.ts";
import { seeded } from "./seeded.ts";
import { csr, flatSparse, nOfM } from "./sparse.ts";

/** An operator without its tensors, as JSON. */
export interface OperatorDescriptor {
  kind: string;
  options?: OperatorOptions;
  inner?: Record<string, OperatorDescriptor>;
  /** Parts that are the tensor of another name. */
  same?: Record<string, string>;
}

/** What the options of all kinds are, by name. */
interface AllOptions {
  bits: number;
  block: number;
  cols: number;
  dtype: Real;
  group: number;
  key: readonly [number, number];
  m: number;
  n: number;
  scale: number;
  shape: readonly [number, number];
  std: number;
  transposed: boolean;
}

/** How each kind is built again. */
type Build = (part: (name: string) => Tensor, options: AllOptions, inner: Record<string, LinearOperator>, has: (name: string) => boolean) => LinearOperator;

const kinds: Record<string, Build> = {
  "block-diagonal": (part) => blockDiagonal(part("blocks")),
  "cored-low-rank": (part, { scale }) => coredLowRank(part("B"), part("core"), part("A"), scale),
  csr: (part, { cols }) => csr(part("values"), part("columns"), part("rowPointers"), cols),
  dense: (part, { transposed }) => dense(part("weight"), transposed),
  diagonal: (part) => diagonal(part("d")),
  "flat-sparse": (part, { shape }) => flatSparse(part("values"), part("indices"), shape),
  kronecker: (part) => kronecker(part("A"), part("B")),
  "low-rank": (part, { scale }) => lowRank(part("B"), part("A"), scale),
  "n-of-m": (part, { n, m, cols }) => nOfM(part("values"), part("places"), [n, m], cols),
  nf4: (part, { shape, block }) => nf4({ codes: part("codes"), largest: part("largest"), scales: part("scales"), mean: part("mean") }, shape, block),
  permutation: (part, { dtype }) => permutation(part("index"), dtype),
  product: (_part, _options, inner) => productOf(inner["0"]!, inner["1"]!),
  quantized: (part, options, _inner, has) => quantized(part("codes"), part("scales"), has("zeros") ? part("zeros") : null, options),
  "quantized-blocks": (part, { block }) => quantizedBlocks(part("codes"), part("largest"), block),
  "replaced-rows": (part, _options, { base }) => replacedRowsAt(base!, part("index"), part("rows")),
  "scaled-columns": (part, _options, { inner }) => scaledColumns(inner!, part("d")),
  "scaled-rows": (part, _options, { inner }) => scaledRows(part("d"), inner!),
  seeded: (_part, { key, shape, std, dtype }) => seeded(new Rng(key), shape, { std, dtype }),
  sum: (_part, _options, inner) => sumOf(inner["0"]!, inner["1"]!),
  transpose: (_part, _options, { of }) => transposeOf(of!),
};

const shell = ({ kind, options, inner }: LinearOperator): OperatorDescriptor => ({
  kind,
  ...(options ? { options } : {}),
  ...(inner ? { inner: Object.fromEntries(Object.entries(inner).map(([name, one]) => [name, shell(one)])) } : {}),
});

/**
 * An operator as JSON and named tensors; a tensor that stands under two names is given once.
 *
 * @example
 * const { descriptor, tensors } = describeOperator(lowRank(ones([4, 2]), ones([2, 3])));
 * const again = operatorFrom(JSON.parse(JSON.stringify(descriptor)), tensors);
 */
export function describeOperator(operator: LinearOperator): { descriptor: OperatorDescriptor; tensors: Record<string, Tensor> } {
  const names = new Map<Tensor, string>();
  const same: Record<string, string> = {};
  for (const [name, tensor] of Object.entries(operator.parts)) {
    const first = names.get(tensor);
    if (first === undefined) names.set(tensor, name);
    else same[name] = first;
  }
  const tensors = Object.fromEntries([...names].map(([tensor, name]) => [name, tensor]));
  return { descriptor: { ...shell(operator), ...(Object.keys(same).length > 0 ? { same } : {}) }, tensors };
}

/** The operator that describeOperator wrote. */
export function operatorFrom(descriptor: OperatorDescriptor, tensors: Readonly<Record<string, Tensor>>): LinearOperator {
  const { same = {} } = descriptor;
  const find = (name: string): Tensor | undefined => tensors[same[name] ?? name];
  return build(descriptor, "", find);
}

function build({ kind, options = {}, inner = {} }: OperatorDescriptor, prefix: string, find: (name: string) => Tensor | undefined): LinearOperator {
  const make = Object.hasOwn(kinds, kind) ? kinds[kind]! : undefined;
  if (!make) throw new StrutError("format", `"${kind}" is no kind of operator; the kinds are ${Object.keys(kinds).join(", ")}`);
  const part = (name: string): Tensor => {
    const found = find(prefix + name);
    if (found) return found;
    throw new StrutError("format", `the ${kind} operator needs a tensor "${prefix}${name}", which is not there`);
  };
  const made = Object.fromEntries(Object.entries(inner).map(([name, one]) => [name, build(one, `${prefix}${name}.`, find)]));
  return make(part, options as unknown as AllOptions, made, (name) => find(prefix + name) !== undefined);
}
