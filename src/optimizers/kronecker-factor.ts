import { empty, gemmInto, slice, transpose, zeros, type Tensor } from "../tensor/index.ts";
import { copyOf, hostView } from "../tensor/tensor.ts";
import { overwrite, scaleInPlace } from "./in-place.ts";

/**
 * A symmetric n×n factor F that starts at I and moves by vectors. Either it is held whole, or, where that is smaller, as rows u,
 * the newest of a ring, with F = I − Σ u·uᵀ: each update takes the older ones times √keep, so that few of them count.
 */
export type Factor = Tensor;

/** One update: P = keep·F + (1 − keep)·I, then F ← scale·P + weight(vᵀPv)·(Pv)(Pv)ᵀ. */
export interface FactorRule {
  readonly keep: number;
  readonly scale: number;
  weight(vPv: number): number;
}

/** What is left of a row's square that a ring forgets: the resolution of fp16, in which the official code keeps its factors. */
const FORGOTTEN = 2 ** -11;

const isWhole = ({ shape }: Factor): boolean => shape[0] === shape[1];

function addToDiagonal(F: Tensor, x: number): void {
  const [values, n] = [hostView(F) as Float32Array | Float64Array, F.shape[0]!];
  for (let i = 0; i < n; i++) values[i * (n + 1)]! += x;
}

/** I of n rows; `ring` allows rows u in its place, which needs a rule of scale 1 that subtracts. */
export function identityFactor(n: number, dtype: Tensor["dtype"], { keep }: FactorRule, ring: boolean): Factor {
  const rows = Math.max(1, Math.ceil(Math.log(FORGOTTEN) / Math.log(keep)));
  if (ring && 2 * rows < n) return zeros([rows, n], dtype);
  const whole = zeros([n, n], dtype);
  addToDiagonal(whole, 1);
  return whole;
}

/** The rows of a ring that hold something after so many updates. */
const filled = (ring: Factor, updates: number): Tensor => slice(ring, 0, 0, Math.min(updates, ring.shape[0]!));

const product = (a: Tensor, b: Tensor): Tensor => into(empty([a.shape[0]!, b.shape[1]!], a.dtype), a, b);

/** out = alpha·a·b + beta·out, for an `out` in either layout. */
function into(out: Tensor, a: Tensor, b: Tensor, factors: { alpha?: number; beta?: number } = {}): Tensor {
  if (out.contiguous) gemmInto(out, a, b, factors);
  else gemmInto(transpose(out), transpose(b), transpose(a), factors);
  return out;
}

/** Update number `updates` (from 0) of a factor, by v [n, 1]. */
export async function absorb(F: Factor, v: Tensor, rule: FactorRule, updates: number): Promise<void> {
  const p = copyOf(v);
  if (isWhole(F)) gemmInto(p, F, v, { alpha: rule.keep, beta: 1 - rule.keep });
  else if (updates > 0) {
    const rows = filled(F, updates);
    gemmInto(p, transpose(rows), product(rows, v), { alpha: -rule.keep, beta: 1 });
  }
  const weight = rule.weight(await product(transpose(v), p).item());
  scaleInPlace(p, Math.sqrt(Math.abs(weight)));
  if (isWhole(F)) {
    gemmInto(F, p, transpose(p), { alpha: Math.sign(weight), beta: rule.scale * rule.keep });
    addToDiagonal(F, rule.scale * (1 - rule.keep));
  } else {
    if (updates > 0) scaleInPlace(filled(F, updates), Math.sqrt(rule.keep));
    const slot = updates % F.shape[0]!;
    overwrite(slice(F, 0, slot, slot + 1), p);
  }
}

/** F·x for an x given as blocks of rows, after so many updates; a ring works in the memory of the blocks. */
export function multiply(F: Factor, blocks: readonly Tensor[], updates: number): Tensor[] {
  let row = 0;
  const spans = blocks.map(({ shape }): [number, number] => [row, (row += shape[0]!)]);
  if (isWhole(F))
    return spans.map(([from, to], i) => {
      const { shape, contiguous: plain, dtype } = blocks[i]!;
      const out = plain ? empty(shape, dtype) : transpose(empty([shape[1]!, shape[0]!], dtype));
      return blocks.reduce((sum, block, j) => into(sum, slice(slice(F, 0, from, to), 1, ...spans[j]!), block, { beta: j === 0 ? 0 : 1 }), out);
    });
  if (updates === 0) return [...blocks];
  const parts = spans.map(([from, to]) => slice(filled(F, updates), 1, from, to));
  const seen = product(parts[0]!, blocks[0]!);
  for (const [i, part] of parts.entries()) if (i > 0) into(seen, part, blocks[i]!, { beta: 1 });
  return blocks.map((block, i) => into(block, transpose(parts[i]!), seen, { alpha: -1, beta: 1 }));
}
