import { StrutError } from "../../errors.ts";
import { engine, kernels } from "../engine.ts";
import type { DType } from "../dtype.ts";
import { record } from "../tape.ts";
import { empty, hostNumbers, Tensor, tensor } from "../tensor.ts";
import { add, affine, mul, scale as scaled } from "./elementwise.ts";
import { matmul } from "./matmul.ts";
import { softmax } from "./nn.ts";
import { concat, contiguous, permute, reshape, slice } from "./shape.ts";

export interface AttentionOptions {
  /** Query i sees keys j ≤ i + tk − tq; defaults to true. */
  causal?: boolean;
  /** Factor of q·k; defaults to 1/√dim. */
  scale?: number;
  /** Added to the scores: [batch|1, heads|1, tq, tk]; differentiable. −∞ hides a key. */
  bias?: Tensor;
  /** Keys that are there, [batch, tk] of u8, bool or i32: 0 marks padding. A query that sees no key gives 0. */
  keyMask?: Tensor;
  /** Shown the probabilities [batch, heads, tq, tk], on the tape. */
  probabilities?: (p: Tensor) => void;
}

type Strides = [number, number, number];

/** Batch, token and head strides, for any tensor whose heads have unit stride within. */
const headStrides = (x: Tensor): Strides => [x.strides[0]!, x.strides[1]!, x.strides[2]!];
const withUnitHeads = (x: Tensor): Tensor => (x.strides[3] === 1 || x.shape[3] === 1 ? x : contiguous(x));

function run(q: Tensor, k: Tensor, v: Tensor, causal: boolean, scale: number) {
  const [batch, tq, heads, dim] = q.shape as [number, number, number, number];
  const [tk, kvHeads] = [k.shape[1]!, k.shape[2]!];
  const size = [batch, heads, kvHeads, tq, tk, dim, scale, causal ? 1 : 0] as const;
  const out = empty([batch, tq, heads, dim], q.dtype);
  const lse = empty([batch, heads, tq], q.dtype);
  kernels().attention(out, lse, q, ...headStrides(q), k, ...headStrides(k), v, ...headStrides(v), ...size, engine().scratch);
  const backward = (gradient: Tensor): [Tensor, Tensor, Tensor] => {
    const grads: [Tensor, Tensor, Tensor] = [empty(q.shape, q.dtype), empty(k.shape, q.dtype), empty(v.shape, q.dtype)];
    kernels().attention_backward(
      ...grads,
      contiguous(gradient),
      out,
      lse,
      q,
      ...headStrides(q),
      k,
      ...headStrides(k),
      v,
      ...headStrides(v),
      ...size,
      engine().scratch,
    );
    return grads;
  };
  return { out, lse, backward };
}

/**
 * softmax(scale·q·kᵀ)·v for q [batch, tq, heads, dim], k and v [batch, tk, kvHeads, dim]; kvHeads divides heads (GQA).
 * Without bias, mask and probabilities these are never stored.
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  const { causal = true, scale = 1 / Math.sqrt(q.shape[3]!) } = options;
  const heads = q.shape[2]!;
  if (
    q.shape.length !== 4 ||
    k.shape.length !== 4 ||
    String(k.shape) !== String(v.shape) ||
    q.shape[0] !== k.shape[0] ||
    q.shape[3] !== k.shape[3] ||
    heads % k.shape[2]! !== 0
  )
    throw new StrutError(
      "shape",
      `attention: q [${q.shape}], k [${k.shape}] and v [${v.shape}] must be [batch, tokens, heads, dim], with k and v alike and their heads dividing q's`,
    );
  if (options.bias || options.keyMask || options.probabilities) return composed(q, k, v, causal, scale, options);
  const [a, b, c] = [withUnitHeads(q), withUnitHeads(k), withUnitHeads(v)];
  const { out, lse, backward } = run(a, b, c, causal, scale);
  return record(out, [a, b, c], backward, [lse]);
}

/** Attention with its scores stored: batch × key heads × queries of one key head. */
function composed(q: Tensor, k: Tensor, v: Tensor, causal: boolean, factor: number, { bias, keyMask, probabilities }: AttentionOptions): Tensor {
  const [batch, tq, heads, dim] = q.shape as [number, number, number, number];
  const [tk, kvHeads] = [k.shape[1]!, k.shape[2]!];
  const queries = reshape(permute(q, [0, 2, 1, 3]), [batch, kvHeads, (heads / kvHeads) * tq, dim]);
  let scores = reshape(scaled(matmul(queries, permute(k, [0, 2, 3, 1])), factor), [batch, heads, tq, tk]);
  if (bias) scores = add(scores, bias);
  const seen = visible(batch, tq, tk, causal, keyMask, q.dtype);
  // finite, so that a query without keys has probabilities that can be made 0
  if (seen) scores = add(scores, affine(seen, HIDDEN, -HIDDEN));
  const p = seen ? mul(softmax(scores), seen) : softmax(scores);
  probabilities?.(p);
  const mixed = matmul(reshape(p, [batch, kvHeads, (heads / kvHeads) * tq, tk]), permute(v, [0, 2, 1, 3]));
  return permute(reshape(mixed, [batch, heads, tq, dim]), [0, 2, 1, 3]);
}

const HIDDEN = 2 ** 100; // exact in f32, so that scores which are seen stay as they are

/** 1 where a query sees a key, else 0: [batch|1, 1, tq|1, tk]; undefined where all see all. */
function visible(batch: number, tq: number, tk: number, causal: boolean, keyMask: Tensor | undefined, dtype: DType): Tensor | undefined {
  if (keyMask && (String(keyMask.shape) !== String([batch, tk]) || !["u8", "bool", "i32"].includes(keyMask.dtype)))
    throw new StrutError("shape", `attention: keyMask is ${keyMask.dtype}[${keyMask.shape}], expected u8, bool or i32 [${[batch, tk]}]`);
  const keys =
    keyMask &&
    tensor(
      Array.from(hostNumbers(keyMask) as Int32Array, (flag) => (flag === 0 ? 0 : 1)),
      [batch, 1, 1, tk],
      dtype,
    );
  if (!causal) return keys;
  const past = Float64Array.from({ length: tq * tk }, (_, at) => (at % tk <= Math.floor(at / tk) + tk - tq ? 1 : 0));
  const order = tensor(past, [1, 1, tq, tk], dtype);
  return keys ? mul(order, keys) : order;
}

/** Attention on a fused projection qkv [batch, tokens, 3·heads·dim], as GPT-2 has it; its gradient is one tensor too. */
export function attentionPacked(qkv: Tensor, heads: number, { causal = true, scale }: AttentionOptions = {}): Tensor {
  const source = contiguous(qkv);
  const [batch, tokens, width] = source.shape as [number, number, number];
  const dim = width / 3 / heads;
  const flat = new Tensor(source.handle, source.dtype, [batch, tokens, 3 * heads, dim], undefined, source.offset);
  const [q, k, v] = [0, 1, 2].map((i) => slice(flat, 2, i * heads, (i + 1) * heads)) as [Tensor, Tensor, Tensor];
  const { out, lse, backward } = run(q, k, v, causal, scale ?? 1 / Math.sqrt(dim));
  return record(out, [source], (g) => [reshape(concat(backward(g), 2), source.shape)], [lse]);
}
