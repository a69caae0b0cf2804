import { StrutError } from "../../errors.ts";
import { BINARY, UNARY } from "../backends/signatures-core.ts";
import { kernels } from "../engine.ts";
import type { Rng } from "../rng.ts";
import { needsGradient, record } from "../tape.ts";
import { collapse, copyOf, empty, full, outerLoop, Tensor } from "../tensor.ts";
import { broadcastShape, broadcastStrides, contiguous, sumTo } from "./shape.ts";

/** a ∘ b with broadcasting, unrecorded. */
function binary(op: keyof typeof BINARY, a: Tensor, b: Tensor): Tensor {
  if (a.dtype !== b.dtype) throw new StrutError("dtype", `${op} of ${a.dtype} and ${b.dtype}: cast one of them first`);
  const target = broadcastShape(a.shape, b.shape);
  const out = empty(target, a.dtype);
  const { shape, strides } = collapse(target, broadcastStrides(a, target), broadcastStrides(b, target));
  const [n0, n1, n2, n3] = shape.slice(-4) as [number, number, number, number];
  const [a0, a1, a2, a3] = strides[0]!.slice(-4) as [number, number, number, number];
  const [b0, b1, b2, b3] = strides[1]!.slice(-4) as [number, number, number, number];
  const at = (x: Tensor, offset: number) => ({ dtype: x.dtype, block: x.block, offset: x.offset + offset });
  outerLoop(shape, strides, (i, [fromA, fromB]) =>
    kernels().binary(BINARY[op], at(out, i * n0 * n1 * n2 * n3), at(a, fromA!), at(b, fromB!), n0, n1, n2, n3, a0, a1, a2, a3, b0, b1, b2, b3),
  );
  return out;
}

export const add = (a: Tensor, b: Tensor): Tensor => record(binary("add", a, b), [a, b], (g) => [sumTo(g, a.shape), sumTo(g, b.shape)]);
export const sub = (a: Tensor, b: Tensor): Tensor => record(binary("sub", a, b), [a, b], (g) => [sumTo(g, a.shape), sumTo(neg(g), b.shape)]);
export const mul = (a: Tensor, b: Tensor): Tensor =>
  record(binary("mul", a, b), [a, b], (g) => [needsGradient(a) ? sumTo(mul(g, b), a.shape) : null, needsGradient(b) ? sumTo(mul(g, a), b.shape) : null]);
export const div = (a: Tensor, b: Tensor): Tensor =>
  record(binary("div", a, b), [a, b], (g) => [sumTo(div(g, b), a.shape), needsGradient(b) ? sumTo(neg(div(mul(g, a), mul(b, b))), b.shape) : null]);

/** Elementwise maximum; equal elements share the gradient, half each, as in torch. */
export const maximum = (a: Tensor, b: Tensor): Tensor =>
  record(binary("maximum", a, b), [a, b], (g) => {
    const share = add(binary("greater", a, b), scale(binary("equal", a, b), 0.5));
    return [sumTo(mul(g, share), a.shape), sumTo(mul(g, affine(share, -1, 1)), b.shape)];
  });
export const minimum = (a: Tensor, b: Tensor): Tensor => neg(maximum(neg(a), neg(b)));

/** 1 where a > b, else 0; no gradient. */
export const greater = (a: Tensor, b: Tensor): Tensor => binary("greater", a, b);
/** 1 where a = b, else 0; no gradient. */
export const equal = (a: Tensor, b: Tensor): Tensor => binary("equal", a, b);

/** factor·x */
export function scale(x: Tensor, factor: number): Tensor {
  const out = empty(x.shape, x.dtype);
  kernels().axpby(out, factor, x.contiguous ? x : copyOf(x), 0, x.size);
  return record(out, [x], (g) => [scale(g, factor)]);
}

/** factor·x + constant */
export function affine(x: Tensor, factor: number, constant: number): Tensor {
  const out = full(x.shape, constant, x.dtype);
  kernels().axpby(out, factor, x.contiguous ? x : copyOf(x), 1, x.size);
  return record(out, [x], (g) => [scale(g, factor)]);
}

/** Whose slope is read off their value; that of the others off x alone, so that their value may be gone. */
const byValue: ReadonlySet<keyof typeof UNARY> = new Set(["exp", "sqrt", "rsqrt", "tanh", "sigmoid", "reciprocal"]);

function unary(op: keyof typeof UNARY, x: Tensor): Tensor {
  const source = contiguous(x);
  const out = empty(x.shape, x.dtype);
  kernels().unary(UNARY[op], out, source, x.size);
  return record(out, [source], (g) => {
    const dx = empty(x.shape, x.dtype);
    kernels().unary_backward(UNARY[op], dx, source, byValue.has(op) ? out : source, contiguous(g), x.size);
    return [dx];
  });
}

export const neg = (x: Tensor): Tensor => unary("neg", x);
export const exp = (x: Tensor): Tensor => unary("exp", x);
export const log = (x: Tensor): Tensor => unary("log", x);
export const sqrt = (x: Tensor): Tensor => unary("sqrt", x);
/** 1/√x */
export const rsqrt = (x: Tensor): Tensor => unary("rsqrt", x);
export const tanh = (x: Tensor): Tensor => unary("tanh", x);
export const sigmoid = (x: Tensor): Tensor => unary("sigmoid", x);
/** x·sigmoid(x) */
export const silu = (x: Tensor): Tensor => unary("silu", x);
/** x·Φ(x); `approximate: "tanh"` is GPT-2's gelu_new */
export const gelu = (x: Tensor, approximate: "none" | "tanh" = "none"): Tensor => unary(approximate === "tanh" ? "geluTanh" : "gelu", x);
export const relu = (x: Tensor): Tensor => unary("relu", x);
export const abs = (x: Tensor): Tensor => unary("abs", x);
/** −1, 0 or 1; its gradient is 0 */
export const sign = (x: Tensor): Tensor => unary("sign", x);
export const square = (x: Tensor): Tensor => unary("square", x);
export const reciprocal = (x: Tensor): Tensor => unary("reciprocal", x);

/** Zeroes elements with probability p and scales the rest by 1/(1−p); the stream decides which. Outside of training x itself. */
export function dropout(x: Tensor, p: number, rng: Rng, training = true): Tensor {
  if (!(p >= 0 && p < 1)) throw new StrutError("option", `dropout probability is ${p}; it must lie in [0, 1)`);
  if (p === 0 || !training) return x;
  const [key0, key1] = rng.key;
  const counter = rng.next();
  const apply = (value: Tensor): Tensor => {
    const out = empty(value.shape, value.dtype);
    kernels().dropout(out, contiguous(value), value.size, p, key0, key1, counter);
    return out;
  };
  return record(apply(x), [x], (g) => [apply(g)]);
}

/** silu(gate) ⊙ up */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  const [a, b] = [contiguous(gate), contiguous(up)];
  const out = empty(a.shape, a.dtype);
  kernels().swiglu(out, a, b, a.size);
  return record(out, [a, b], (g) => {
    const [da, db] = [empty(a.shape, a.dtype), empty(a.shape, a.dtype)];
    kernels().swiglu_backward(da, db, contiguous(g), a, b, a.size);
    return [da, db];
  });
}
