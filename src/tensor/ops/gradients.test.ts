import { beforeAll, describe, expect, it } from "vitest";
import { checkGradients, leaf } from "../../../test/support/gradients.ts";
import * as t from "../index.ts";
import { indices } from "./nn.ts";

beforeAll(() => t.start());

const ids = (values: number[], shape: number[]) => t.tensor(values, shape, "i32");

/** Every differentiable operation: name → function and the inputs it is checked at. */
const cases: Record<string, [(...x: t.Parameter[]) => t.Tensor, () => t.Parameter[]]> = {
  "add broadcasts": [(a, b) => t.add(a!, b!), () => [leaf([3, 1, 4]), leaf([2, 1], 2)]],
  sub: [(a, b) => t.sub(a!, b!), () => [leaf([2, 3]), leaf([3], 2)]],
  mul: [(a, b) => t.mul(a!, b!), () => [leaf([2, 3]), leaf([2, 1], 2)]],
  div: [(a, b) => t.div(a!, t.affine(b!, 1, 3)), () => [leaf([2, 3]), leaf([3], 2)]],
  maximum: [(a, b) => t.maximum(a!, b!), () => [leaf([5]), leaf([5], 2)]],
  minimum: [(a, b) => t.minimum(a!, b!), () => [leaf([5]), leaf([2, 5], 2)]],
  scale: [(a) => t.scale(a!, -2.5), () => [leaf([4])]],
  affine: [(a) => t.affine(a!, 2, 1), () => [leaf([4])]],
  ...Object.fromEntries(
    (["neg", "exp", "tanh", "sigmoid", "silu", "gelu", "relu", "abs", "square"] as const).map((name) => [
      name,
      [(x: t.Parameter) => t[name](x), () => [leaf([7], 3, 2)]] as never,
    ]),
  ),
  ...Object.fromEntries(
    (["log", "sqrt", "rsqrt", "reciprocal"] as const).map((name) => [name, [(x: t.Parameter) => t[name](t.affine(x, 1, 2)), () => [leaf([7], 3)]] as never]),
  ),
  "gelu tanh": [(x) => t.gelu(x!, "tanh"), () => [leaf([7], 3, 2)]],
  "the same tensor twice": [(x) => t.add(t.mul(x!, x!), x!), () => [leaf([3])]],
  swiglu: [(a, b) => t.swiglu(a!, b!), () => [leaf([6], 1, 2), leaf([6], 2)]],
  dropout: [(x) => t.dropout(x!, 0.4, new t.Rng(5)), () => [leaf([20])]],
  "sum over axes": [(x) => t.sum(x!, { axes: [0, 2] }), () => [leaf([2, 3, 4])]],
  "mean keeps axes": [(x) => t.mean(x!, { axes: [-1], keepAxes: true }), () => [leaf([2, 3])]],
  "matmul, broadcast batch": [(a, b) => t.matmul(a!, b!), () => [leaf([2, 3, 4]), leaf([4, 5], 2)]],
  "matmul of transposed views": [(a, b) => t.matmul(t.transpose(a!), t.transpose(b!)), () => [leaf([2, 4, 3]), leaf([2, 5, 4], 2)]],
  linear: [(x, w, b) => t.linear(x!, w!, b!), () => [leaf([2, 3, 4]), leaf([5, 4], 2), leaf([5], 3)]],
  "addLinear accumulates": [(y, x, w) => t.addLinear(y!, x!, w!, 0.5), () => [leaf([3, 5]), leaf([3, 4], 2), leaf([5, 4], 3)]],
  reshape: [(x) => t.reshape(t.transpose(x!), [-1]), () => [leaf([2, 3])]],
  permute: [(x) => t.permute(x!, [2, 0, 1]), () => [leaf([2, 3, 2])]],
  slice: [(x) => t.slice(x!, 1, 1, 3), () => [leaf([2, 4, 2])]],
  concat: [(a, b) => t.concat([a!, b!, a!], 1), () => [leaf([2, 2]), leaf([2, 3], 2)]],
  indexCopy: [(x, v) => t.indexCopy(x!, 1, [2, 0], v!), () => [leaf([2, 3, 2]), leaf([2, 2, 2], 2)]],
  expand: [(x) => t.expand(x!, [3, 2, 4]), () => [leaf([2, 1])]],
  softmax: [(x) => t.softmax(x!), () => [leaf([3, 5], 1, 3)]],
  layerNorm: [(x, w, b) => t.layerNorm(x!, w!, b!, 1e-5), () => [leaf([3, 6]), leaf([6], 2), leaf([6], 3)]],
  "layerNorm without bias": [(x, w) => t.layerNorm(x!, w!, null, 1e-5), () => [leaf([3, 6]), leaf([6], 2)]],
  rmsNorm: [(x, w) => t.rmsNorm(x!, w!, 1e-5), () => [leaf([3, 6]), leaf([6], 2)]],
  rotary: [
    (x) => {
      const angles = t.tensor([0, 0, 0.3, 0.7, 0.6, 1.4], [3, 2], "f64");
      const cos = t.tensor([1, 1, Math.cos(0.3), Math.cos(0.7), Math.cos(0.6), Math.cos(1.4)], angles.shape, "f64");
      const sin = t.tensor([0, 0, Math.sin(0.3), Math.sin(0.7), Math.sin(0.6), Math.sin(1.4)], angles.shape, "f64");
      return t.rotary(x!, cos, sin);
    },
    () => [leaf([2, 3, 2, 4])],
  ],
  embedding: [(table) => t.embedding(table!, ids([1, 0, 1, 2], [2, 2])), () => [leaf([3, 4])]],
  crossEntropy: [(x) => t.crossEntropy(x!, ids([1, -1, 3], [3])), () => [leaf([3, 4], 1, 3)]],
  "linearCrossEntropy, several chunks": [
    (x, w) =>
      t.linearCrossEntropy(
        x!,
        w!,
        ids(
          Array.from({ length: 130 }, (_, i) => (i % 7 === 0 ? -1 : i % 5)),
          [130],
        ),
      ),
    () => [leaf([130, 2]), leaf([5, 2], 2)],
  ],
  meanSquaredError: [(x, y) => t.meanSquaredError(x!, y!), () => [leaf([4]), leaf([4], 2)]],
  "causal attention with grouped heads": [(q, k, v) => t.attention(q!, k!, v!), () => [leaf([2, 3, 4, 2]), leaf([2, 3, 2, 2], 2), leaf([2, 3, 2, 2], 3)]],
  "attention to a longer past": [
    (q, k, v) => t.attention(q!, k!, v!, { scale: 0.3 }),
    () => [leaf([1, 2, 1, 3]), leaf([1, 5, 1, 3], 2), leaf([1, 5, 1, 3], 3)],
  ],
  "full attention": [(q, k, v) => t.attention(q!, k!, v!, { causal: false }), () => [leaf([1, 3, 2, 2]), leaf([1, 4, 2, 2], 2), leaf([1, 4, 2, 2], 3)]],
  attentionPacked: [(x) => t.attentionPacked(x!, 2), () => [leaf([2, 3, 12])]],
  customGradient: [
    (x, y) =>
      t.customGradient(
        [x!, y!],
        (a, b) => t.mul(a, b),
        (g) => [t.mul(g, t.stopGradient(y!)), t.mul(g, t.stopGradient(x!))],
      ),
    () => [leaf([4]), leaf([4], 2)],
  ],
  recompute: [(x, w) => t.recompute((h) => t.tanh(t.linear(t.silu(h), w!)), t.mul(x!, x!)), () => [leaf([3, 4]), leaf([5, 4], 2)]],
};

describe("gradients agree with central differences in f64", () => {
  for (const [name, [f, inputs]] of Object.entries(cases)) it(name, () => checkGradients(f as never, inputs()));
  it("cast passes them on", async () => {
    const x = new t.Parameter(t.tensor([1, 2], [2], "f32"), "x");
    const gradient = t.backward(t.sum(t.mul(t.cast(x, "f64"), t.tensor([3, 4], [2], "f64")))).get(x)!;
    if (gradient.dtype !== "f32" || String(await gradient.data()) !== "3,4") throw new Error(`got ${gradient.dtype} ${await gradient.data()}`);
  });
  it("ids outside the table end in a sentence", () => {
    expect(() => indices([0, 5], 2)).toThrow("id 5 at position 1 does not lie in 0…1");
  });
});
