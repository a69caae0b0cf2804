import { SCRATCH_FLOATS, signature, span } from "./signature.ts";

/** q qB qT qH | k kB kT kH | v vB vT vH | batch heads kvHeads tq tk dim | scale causal | scratch */
const attentionTypes = [
  ...(["real*", "i32", "i32", "i32", "real*", "i32", "i32", "i32", "real*", "i32", "i32", "i32"] as const),
  ...(["i32", "i32", "i32", "i32", "i32", "i32", "f64", "i32", "f32*"] as const),
] as const;

/** Elements of the output and of lse. */
const attentionOutput = (size: readonly number[]): [number, number] => {
  const [batch, heads, , tq, , dim] = size.slice(9) as [number, number, number, number, number, number];
  return [batch * tq * heads * dim, batch * heads * tq];
};

/** Elements that q, k, v and the scratch must have. */
const attentionInput = ([qB, qT, qH, kB, kT, kH, vB, vT, vH, batch, heads, kv, tq, tk, dim]: readonly number[]): number[] => [
  span([batch!, qB!], [tq!, qT!], [heads!, qH!], [dim!, 1]),
  span([batch!, kB!], [tk!, kT!], [kv!, kH!], [dim!, 1]),
  span([batch!, vB!], [tk!, vT!], [kv!, vH!], [dim!, 1]),
  SCRATCH_FLOATS,
];

/** Products, elementwise and row kernels, attention, random numbers, AdamW, 16-bit storage. */
export const core = {
  /** c[b] = alpha·A[b]·B[b] + beta·c[b] (+ bias on every row). A m×k and B k×n with any strides, c row-major with row stride. */
  gemm: signature(
    // batch m n k alpha | a aBatch aRow aCol | b bBatch bRow bCol | beta c cBatch cRow | bias[n] | scratch
    ["i32", "i32", "i32", "i32", "f64", "real*", "i32", "i32", "i32", "real*", "i32", "i32", "i32", "f64", "real*", "i32", "i32", "real*?", "f32*"],
    (batch, m, n, k, _alpha, aB, aR, aC, bB, bR, bC, _beta, cB, cR) => [
      span([batch!, aB!], [m!, aR!], [k!, aC!]),
      span([batch!, bB!], [k!, bR!], [n!, bC!]),
      span([batch!, cB!], [m!, cR!], [n!, 1]),
      n!,
      SCRATCH_FLOATS,
    ],
    "wide",
  ),
  /** out = a ∘ b elementwise over n0×n1×n2×n3; out is contiguous, a and b have strides (0 broadcasts). op: BINARY. */
  binary: signature(
    // op out a b | n0..n3 | a0..a3 | b0..b3
    ["i32", "real*", "real*", "real*", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
    (_op, n0, n1, n2, n3, a0, a1, a2, a3, b0, b1, b2, b3) => [
      n0! * n1! * n2! * n3!,
      span([n0!, a0!], [n1!, a1!], [n2!, a2!], [n3!, a3!]),
      span([n0!, b0!], [n1!, b1!], [n2!, b2!], [n3!, b3!]),
    ],
  ),
  /** out contiguous = x strided. */
  copy: signature(["real*", "real*", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"], (n0, n1, n2, n3, s0, s1, s2, s3) => [
    n0! * n1! * n2! * n3!,
    span([n0!, s0!], [n1!, s1!], [n2!, s2!], [n3!, s3!]),
  ]),
  /** y = op(x), elementwise. op: UNARY. y may be x. */
  unary: signature(["i32", "real*", "real*", "i32"], (_op, n) => [n!, n!]),
  /** dx = g·op′(x), given x and y = op(x). dx may be g. */
  unary_backward: signature(["i32", "real*", "real*", "real*", "real*", "i32"], (_op, n) => [n!, n!, n!, n!]),
  /** x = value */
  fill: signature(["real*", "f64", "i32"], (_value, n) => [n!]),
  /** y = a·x + b·y (b = 0 does not read y) */
  axpby: signature(["real*", "f64", "real*", "f64", "i32"], (_a, _b, n) => [n!, n!]),
  /** out[o,i] = Σ_r x[o,r,i] */
  reduce_sum: signature(["real*", "real*", "i32", "i32", "i32"], (o, r, i) => [o! * i!, o! * r! * i!]),
  /** out[o,i] = max_r x[o,r,i], index[o,i] = the first r that reaches it; a NaN wins */
  reduce_max: signature(["real*", "i32*", "real*", "i32", "i32", "i32"], (o, r, i) => [o! * i!, o! * i!, o! * r! * i!]),
  /** out[0] = Σ x² in f64, blocks of 4096 added in order */
  sum_squares: signature(["f64*", "real*", "i32"], (n) => [1, n!]),
  /** softmax over the last axis */
  softmax: signature(["real*", "real*", "i32", "i32"], (rows, cols) => [rows! * cols!, rows! * cols!]),
  /** dx = y ⊙ (g − Σ g⊙y) */
  softmax_backward: signature(["real*", "real*", "real*", "i32", "i32"], (rows, cols) => [rows! * cols!, rows! * cols!, rows! * cols!]),
  /** y mean rstd | x w b? | rows cols eps */
  layer_norm: signature(["real*", "real*", "real*", "real*", "real*", "real*?", "i32", "i32", "f64"], (rows, cols) => [
    rows! * cols!,
    rows!,
    rows!,
    rows! * cols!,
    cols!,
    cols!,
  ]),
  /** dx dw? db? | g x mean rstd w | rows cols */
  layer_norm_backward: signature(["real*", "real*?", "real*?", "real*", "real*", "real*", "real*", "real*", "i32", "i32"], (rows, cols) => [
    rows! * cols!,
    cols!,
    cols!,
    rows! * cols!,
    rows! * cols!,
    rows!,
    rows!,
    cols!,
  ]),
  /** y rstd | x w | rows cols eps : y = w ⊙ x / √(mean x² + eps) */
  rms_norm: signature(["real*", "real*", "real*", "real*", "i32", "i32", "f64"], (rows, cols) => [rows! * cols!, rows!, rows! * cols!, cols!]),
  /** dx dw? | g x rstd w | rows cols */
  rms_norm_backward: signature(["real*", "real*?", "real*", "real*", "real*", "real*", "i32", "i32"], (rows, cols) => [
    rows! * cols!,
    cols!,
    rows! * cols!,
    rows! * cols!,
    rows!,
    cols!,
  ]),
  /** y = silu(gate) ⊙ up */
  swiglu: signature(["real*", "real*", "real*", "i32"], (n) => [n!, n!, n!]),
  /** dgate dup | g gate up | n */
  swiglu_backward: signature(["real*", "real*", "real*", "real*", "real*", "i32"], (n) => [n!, n!, n!, n!, n!]),
  /**
   * Rotary embedding in the rotate-half layout: y[r,h,:] from x[r,h,:], position r mod seq, cos and sin seq×(dim/2).
   * x has row stride xRow (heads contiguous within a row), y is contiguous. inverse = 1 rotates back (the gradient).
   */
  rotary: signature(
    // y x cos sin | rows seq heads dim xRow inverse
    ["real*", "real*", "real*", "real*", "i32", "i32", "i32", "i32", "i32", "i32"],
    (rows, seq, heads, dim, xRow) => [rows! * heads! * dim!, span([rows!, xRow!], [heads! * dim!, 1]), (seq! * dim!) / 2, (seq! * dim!) / 2],
  ),
  /**
   * out[b,i,h,:] = Σ_j softmax_j(scale·q·k)·v ; query head h reads key head ⌊h·kvHeads/heads⌋; causal: j ≤ i + tk − tq.
   * lse[b,h,i] = log Σ exp. q, k, v have batch, token and head strides and unit stride within a head; out is contiguous.
   * out lse | attentionTypes
   */
  attention: signature(["real*", "real*", ...attentionTypes], (...size) => [...attentionOutput(size), ...attentionInput(size)]),
  /** dq dk dv contiguous [b,t,h,d] | dout out lse | then as attention */
  attention_backward: signature(["real*", "real*", "real*", "real*", "real*", "real*", ...attentionTypes], (...size) => {
    const [, , , , , , , , , batch, , kv, , tk, dim] = size;
    const [out, lse] = attentionOutput(size);
    const keys = batch! * tk! * kv! * dim!;
    return [out, keys, keys, out, out, lse, ...attentionInput(size)];
  }),
  /** out[n,:] = table[ids[n],:]; ids are checked by the caller */
  gather_rows: signature(["real*", "real*", "i32*", "i32", "i32", "i32"], (n, dim, rows) => [n! * dim!, rows! * dim!, n!]),
  /** table[ids[n],:] += g[n,:], in order of n */
  scatter_add_rows: signature(["real*", "real*", "i32*", "i32", "i32", "i32"], (n, dim, rows) => [rows! * dim!, n! * dim!, n!]),
  /** losses[r] = lse[r] − logits[r, targets[r]], 0 where targets[r] < 0 */
  cross_entropy: signature(["real*", "real*", "real*", "i32*", "i32", "i32"], (rows, cols) => [rows!, rows!, rows! * cols!, rows!]),
  /** dlogits = scale[r]·(softmax − onehot), 0 where targets[r] < 0; dlogits may be logits */
  cross_entropy_backward: signature(["real*", "real*", "real*", "i32*", "real*", "i32", "i32"], (rows, cols) => [
    rows! * cols!,
    rows! * cols!,
    rows!,
    rows!,
    rows!,
  ]),
  /** Philox 4×32-10 uniforms in [low, high): out n | low high | key0 key1 counter */
  random_uniform: signature(["real*", "i32", "f64", "f64", "i32", "i32", "i32"], (n) => [n!]),
  /** Normals by Box–Muller on the same stream: out n | mean std | key0 key1 counter */
  random_normal: signature(["real*", "i32", "f64", "f64", "i32", "i32", "i32"], (n) => [n!]),
  /** y = x / (1−p) where the uniform is ≥ p, else 0: y x n | p key0 key1 counter. Its gradient is itself. */
  dropout: signature(["real*", "real*", "i32", "f64", "i32", "i32", "i32"], (n) => [n!, n!]),
  /**
   * One AdamW step in place, torch's order: w ·= 1−lr·decay; m, v averages of g·gradScale; w −= (lr/c1)·m/(√v/√c2 + eps).
   * w g m v n | lr beta1 beta2 eps decay c1 c2 gradScale   (c = 1−beta^t)
   */
  adamw: signature(["real*", "real*", "real*", "real*", "i32", "f64", "f64", "f64", "f64", "f64", "f64", "f64", "f64"], (n) => [n!, n!, n!, n!]),
  /**
   * Adam's direction (m/c1)/(√v/√c2 + eps), with m and v kept in blocks of 256 as quantize_blocks writes them.
   * out g | mCodes mLargest vCodes vLargest | mLevels vLevels | n beta1 beta2 eps c1 c2
   */
  adam_blocks: signature(["f32*", "f32*", "u8*", "f32*", "u8*", "f32*", "f32*", "f32*", "i32", "f64", "f64", "f64", "f64", "f64"], (n) => [
    n!,
    n!,
    n!,
    Math.ceil(n! / 256),
    n!,
    Math.ceil(n! / 256),
    256,
    256,
  ]),
  /** y = x on the grid of bf16, up or down at random so that the mean is x; what is no finite number stays: y x n | key0 key1 counter */
  random_round: signature(["real*", "real*", "i32", "i32", "i32", "i32"], (n) => [n!, n!]),
  /** 16-bit storage. Rounding to nearest even; NaN stays NaN. */
  f32_to_bf16: signature(["u16*", "f32*", "i32"], (n) => [n!, n!]),
  bf16_to_f32: signature(["f32*", "u16*", "i32"], (n) => [n!, n!]),
  f32_to_f16: signature(["u16*", "f32*", "i32"], (n) => [n!, n!]),
  f16_to_f32: signature(["f32*", "u16*", "i32"], (n) => [n!, n!]),
} as const;

/** Operation numbers of `binary`. */
export const BINARY = { add: 0, sub: 1, mul: 2, div: 3, maximum: 4, minimum: 5, greater: 6, equal: 7 } as const;

/** Operation numbers of `unary`; gelu is exact (erf), geluTanh is GPT-2's gelu_new. */
export const UNARY = {
  neg: 0,
  exp: 1,
  log: 2,
  sqrt: 3,
  rsqrt: 4,
  tanh: 5,
  sigmoid: 6,
  silu: 7,
  gelu: 8,
  geluTanh: 9,
  relu: 10,
  abs: 11,
  sign: 12,
  square: 13,
  reciprocal: 14,
} as const;
