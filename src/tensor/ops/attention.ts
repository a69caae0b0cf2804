import { StrutError } from "../../errors.ts";
import { engine, kernels } from "../engine.ts";
import { record } from "../tape.ts";
import { empty, Tensor } from "../tensor.ts";
import { concat, contiguous, reshape, slice } from "./shape.ts";

export interface AttentionOptions {
  /** Query i sees keys j ≤ i + tk − tq; defaults to true. */
  causal?: boolean;
  /** Factor of q·k; defaults to 1/√dim. */
  scale?: number;
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
 * The probabilities are never stored.
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, { causal = true, scale = 1 / Math.sqrt(q.shape[3]!) }: AttentionOptions = {}): Tensor {
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
  const [a, b, c] = [withUnitHeads(q), withUnitHeads(k), withUnitHeads(v)];
  const { out, lse, backward } = run(a, b, c, causal, scale);
  return record(out, [a, b, c], backward, [lse]);
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
