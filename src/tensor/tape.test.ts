import { beforeAll, describe, expect, it } from "vitest";
import { checkGradients, leaf } from "../../test/support/gradients.ts";
import { engine, kernels } from "./engine.ts";
import * as t from "./index.ts";

beforeAll(() => t.start());

const used = (): number => engine().pool.usedBytes;
const numbers = (x: t.Tensor): number[] => Array.from(t.hostNumbers(x) as Float32Array);
const parameter = (shape: readonly number[], name: string): t.Parameter => new t.Parameter(new t.Rng(1).fork(name).normal(shape, 0.5), name);

/** Twenty layers of 64×64 on 32 rows. */
const layers = (): t.Parameter[] => Array.from({ length: 20 }, (_, i) => parameter([64, 64], `layer ${i}`));
const layer = (x: t.Tensor, w: t.Tensor): t.Tensor => t.scale(t.gelu(t.linear(x, w)), 0.5);

/** Bytes of one 64×64 matrix: a size class of its own. */
const MATRIX = 64 * 64 * 4;

describe("backward", () => {
  it("frees the intermediates of a chain of 20 layers: gradients, parameters and the loss are left", () => {
    const weights = layers();
    const x = t.ones([32, 64]);
    const before = used();
    let loss = t.mean(t.square(weights.reduce<t.Tensor>(layer, x)));
    expect(used() - before).toBeGreaterThan(20 * 2 * 32 * 64 * 4);
    const gradients = t.backward(loss);
    expect(gradients.size).toBe(20);
    expect(used() - before).toBe(20 * MATRIX + 64);
    for (const gradient of gradients.values()) t.free(gradient);
    t.free(loss);
    loss = x;
    expect(used()).toBe(before);
  });

  it("gives a gradient only when nothing reads the parameter's memory any more, stopGradient's views included", async () => {
    const [v, w] = [parameter([4, 4], "v"), parameter([4, 4], "w")];
    const loss = (): t.Tensor => t.sum(t.linear(t.linear(t.linear(t.ones([3, 4]), v), t.stopGradient(w)), w));
    const expected = numbers(t.backward(loss()).get(v)!);
    const gradients = await t.backward(loss(), { onGradient: (parameter) => kernels().fill(parameter, 0, 16) });
    expect(numbers(gradients.get(v)!)).toEqual(expected);
  });

  it("adds into one buffer, and a tied embedding into the head's gradient, so that no second table is made", () => {
    const table = parameter([512, 64], "table");
    const ids = t.tensor([1, 5, 1], [3], "i32");
    const loss = (): t.Tensor => t.linearCrossEntropy(t.embedding(table, ids), table, t.tensor([2, 0, 7], [3], "i32"));
    const apart = (): t.Tensor => {
      const rows = new t.Parameter(t.copyOf(table), "rows");
      return t.linearCrossEntropy(t.embedding(rows, ids), table, t.tensor([2, 0, 7], [3], "i32"));
    };
    const [head, rows] = t.scope(() => [...t.backward(apart()).values()].map(numbers)) as [number[], number[]];
    const { pool } = engine();
    const total = t.scope(() => {
      const value = loss();
      pool.peakBytes = pool.usedBytes;
      const gradient = numbers(t.backward(value).get(table)!);
      // the forward pass made the gradient; backward adds less than another table
      expect(pool.peakBytes - pool.usedBytes).toBeLessThan(512 * 64 * 4);
      return gradient;
    });
    total.forEach((x, i) => expect(x).toBeCloseTo(head[i]! + rows[i]!, 6));
  });

  it("never holds much more than the forward pass did, when gradients are freed as they come", async () => {
    const { pool } = engine();
    const weights = layers();
    const before = used();
    const loss = t.mean(t.square(weights.reduce<t.Tensor>(layer, t.ones([32, 64]))));
    const forward = used();
    pool.peakBytes = forward;
    await t.backward(loss, { onGradient: (_, gradient) => t.free(gradient) });
    // one gradient, and the activations' gradients of one layer at a time
    expect(pool.peakBytes - forward).toBeLessThan(MATRIX + 6 * 32 * 64 * 4);
    expect(used() - before).toBeLessThan(64 + 32 * 64 * 4 + 1);
  });

  it("leaves kept intermediates, results used elsewhere and what was made outside alone", async () => {
    const w = parameter([3], "w");
    const outside = t.tensor([1, 2, 3]);
    const kept = t.keep(t.mul(w, outside));
    const loss = t.sum(t.square(kept));
    t.backward(loss);
    expect(await loss.item()).toBeGreaterThan(0);
    expect(numbers(kept)).toHaveLength(3);
    expect(numbers(outside)).toEqual([1, 2, 3]);
  });

  it("makes using a freed intermediate, or the same tape again, an error in a sentence", () => {
    const w = parameter([3], "w");
    const hidden = t.exp(w);
    const loss = t.sum(hidden);
    t.backward(loss);
    expect(() => t.add(hidden, hidden)).toThrow(/used after its memory was returned/);
    expect(() => t.backward(loss)).toThrow("no trainable parameter contributed to this loss");
  });

  it("refuses a loss of several elements without a seed, and one that nothing trainable reaches", () => {
    const w = parameter([3], "w");
    expect(() => t.backward(t.square(w))).toThrow(/starts from a loss with one element, this one has shape \[3\]/);
    w.trainable = false;
    expect(() => t.backward(t.sum(w))).toThrow(/no trainable parameter/);
    w.trainable = true;
    expect(numbers(t.backward(t.scale(w, 2), { seed: t.tensor([1, 10, 100]) }).get(w)!)).toEqual([2, 20, 200]);
  });

  it("gives frozen parameters no gradient, and does not follow parts that no parameter reaches", () => {
    const [w, frozen] = [parameter([3], "w"), parameter([3], "f")];
    frozen.trainable = false;
    const other = t.mul(frozen, frozen);
    expect(other.node).toBeUndefined();
    const gradients = t.backward(t.sum(t.mul(w, other)));
    expect([...gradients.keys()]).toEqual([w]);
  });
});

describe("onGradient", () => {
  /** x → w1 → shared → w2 → shared again; `shared` is read through a transposed view too. */
  const model = (x: t.Tensor, [w1, shared, w2]: readonly t.Parameter[]): t.Tensor =>
    t.mean(t.square(t.matmul(layer(layer(layer(x, w1!), shared!), w2!), t.transpose(shared!))));
  const three = (): t.Parameter[] => ["w1", "shared", "w2"].map((name) => parameter([8, 8], name));
  const input = (): t.Tensor => new t.Rng(5).normal([4, 8], 1);

  it("comes once a parameter, after the node of its last use, with the whole sum", async () => {
    const [plain, taken] = [three(), three()];
    const expected = t.backward(model(input(), plain));
    const order: string[] = [];
    await t.backward(model(input(), taken), {
      onGradient(p, gradient) {
        order.push(p.name);
        expect(numbers(gradient)).toEqual(numbers(expected.get(plain.find(({ name }) => name === p.name)!)!));
      },
    });
    expect(order).toEqual(["w2", "shared", "w1"]);
  });

  it("may update the parameter in place and free its gradient at once: the same weights as updating afterwards", async () => {
    const [plain, fused] = [three(), three()];
    const gradients = t.backward(model(input(), plain));
    for (const [p, gradient] of gradients) kernels().axpby(p, -0.1, gradient, 1, p.size);
    const left = await t.backward(model(input(), fused), {
      onGradient(p, gradient) {
        kernels().axpby(p, -0.1, gradient, 1, p.size);
        t.free(gradient);
      },
    });
    expect(left.size).toBe(0);
    expect(fused.map(numbers)).toEqual(plain.map(numbers));
  });

  it("is awaited before backward goes on", async () => {
    const events: string[] = [];
    await t.backward(model(input(), three()), {
      async onGradient({ name }) {
        events.push(`${name} begins`);
        await new Promise((resolve) => setTimeout(resolve, 2));
        events.push(`${name} ends`);
      },
    });
    expect(events).toEqual(["w2", "shared", "w1"].flatMap((name) => [`${name} begins`, `${name} ends`]));
  });

  it("may give another tensor in the gradient's place", async () => {
    const w = parameter([2], "w");
    const gradients = await t.backward(t.sum(t.scale(w, 3)), { onGradient: (_, gradient) => t.scale(gradient, 10) });
    expect(numbers(gradients.get(w)!)).toEqual([30, 30]);
  });

  it("ends backward with the error it throws", async () => {
    await expect(t.backward(model(input(), three()), { onGradient: () => Promise.reject(new Error("disk full")) })).rejects.toThrow("disk full");
    expect(t.gradientsFlow()).toBe(true);
  });
});

describe("recompute", () => {
  it("gives equal gradients with less memory", () => {
    const { pool } = engine();
    const run = (block: (x: t.Tensor, w: t.Parameter) => t.Tensor): { peak: number; gradients: number[][]; loss: number } => {
      const weights = layers();
      const x = t.ones([32, 64]);
      const before = (pool.peakBytes = used());
      const loss = t.mean(t.square(weights.reduce<t.Tensor>((h, w) => block(h, w), x)));
      const gradients = t.backward(loss);
      return { peak: pool.peakBytes - before, gradients: weights.map((w) => numbers(gradients.get(w)!)), loss: numbers(loss)[0]! };
    };
    const deep = (x: t.Tensor, w: t.Tensor): t.Tensor => layer(layer(layer(x, w), w), w);
    const plain = run(deep);
    const again = run((x, w) => t.recompute((h) => deep(h, w), x));
    const asInput = run((x, w) => t.recompute((h, v) => deep(h, v), x, w));
    expect(again.loss).toBe(plain.loss);
    expect(again.gradients).toEqual(plain.gradients);
    expect(asInput.gradients).toEqual(plain.gradients);
    expect(again.peak).toBeLessThan(plain.peak / 2);
  });

  it("agrees with central differences, nested and with a parameter inside and outside", async () => {
    const inside = leaf([3, 3], 7);
    await checkGradients(
      (x, w) => {
        const once = t.recompute((h) => t.recompute((v) => t.tanh(t.linear(v, inside)), t.linear(h, w!)), x!);
        return t.add(once, t.linear(x!, inside));
      },
      [leaf([2, 3]), leaf([3, 3], 2), inside],
    );
  });

  it("uses the same dropout both times when its generator is made inside", async () => {
    await checkGradients((x) => t.recompute((h) => t.dropout(t.tanh(h), 0.5, new t.Rng(3)), x!), [leaf([10])]);
  });

  it("moves running statistics once, nested too", () => {
    const moved = (wrap: (body: (x: t.Tensor) => t.Tensor, x: t.Tensor) => t.Tensor): number[] => {
      const running = { mean: t.zeros([2]), variance: t.ones([2]) };
      const x = new t.Parameter(t.tensor([1, 5, 2, 9, 4, 3], [3, 2]), "x");
      t.backward(t.sum(t.square(wrap((h) => t.batchNorm(h, running, null, null, { training: true }), x))));
      return [...numbers(running.mean), ...numbers(running.variance)];
    };
    const plain = moved((body, x) => body(x));
    expect(plain[0]).toBeCloseTo(0.1 * (7 / 3), 6);
    expect(moved((body, x) => t.recompute(body, x))).toEqual(plain);
    expect(moved((body, x) => t.recompute((h) => t.recompute(body, h), x))).toEqual(plain);
  });

  it("is not recorded where no gradients flow", () => {
    const w = parameter([2], "w");
    expect(t.noGrad(() => t.recompute(() => t.exp(w))).node).toBeUndefined();
    expect(t.recompute(() => t.exp(t.ones([2]))).node).toBeUndefined();
    expect(t.recompute(() => t.exp(w)).node).toBeDefined();
  });

  it("leaves recording on when its body throws, in both passes", () => {
    const w = parameter([2], "w");
    const fail = (): t.Tensor => {
      throw new Error("body");
    };
    expect(() => t.recompute(fail, w)).toThrow("body");
    let passes = 0;
    const loss = t.sum(t.recompute((x) => (++passes === 1 ? t.exp(x) : fail()), w));
    expect(() => t.backward(loss)).toThrow("body");
    expect(t.gradientsFlow()).toBe(true);
    expect(t.exp(w).node).toBeDefined();
  });
});

describe("noGrad", () => {
  it("nests, and ends with its body, also by an exception or a rejection", async () => {
    const w = parameter([2], "w");
    t.noGrad(() => {
      expect(() =>
        t.noGrad(() => {
          throw new Error("inner");
        }),
      ).toThrow("inner");
      expect(t.gradientsFlow()).toBe(false);
      expect(t.exp(w).node).toBeUndefined();
    });
    expect(t.gradientsFlow()).toBe(true);
    await expect(
      t.noGrad(async () => {
        await Promise.resolve();
        expect(t.gradientsFlow()).toBe(false);
        throw new Error("later");
      }),
    ).rejects.toThrow("later");
    expect(t.gradientsFlow()).toBe(true);
    expect(t.exp(w).node).toBeDefined();
  });
});

describe("gradients that meet", () => {
  const cases: Record<string, [(...x: t.Parameter[]) => t.Tensor, number]> = {
    "x + x": [(x) => t.add(x!, x!), 1],
    "x + x + x": [(x) => t.add(t.add(x!, x!), x!), 1],
    "x − x·x": [(x) => t.sub(x!, t.mul(x!, x!)), 1],
    "three ways out of one node": [(x) => ((y) => t.add(t.mul(y, y), t.add(t.exp(y), y)))(t.tanh(x!)), 1],
    "one gradient for three inputs": [
      (a, b, c) =>
        t.customGradient(
          [a!, b!, c!],
          (x, y, z) => t.add(t.add(x, y), z),
          (g) => [g, g, g],
        ),
      3,
    ],
    "one gradient for the same input three times": [
      (x) =>
        t.customGradient(
          [x!, x!, x!],
          (a, b, c) => t.add(t.add(a, b), c),
          (g) => [g, g, g],
        ),
      1,
    ],
    "one gradient for three inputs used again": [
      (a, b, c) => {
        const [x, y, z] = [t.exp(a!), t.exp(b!), t.exp(c!)];
        const sum = t.customGradient(
          [x, y, z],
          (u, v, w) => t.add(t.add(u, v), w),
          (g) => [g, g, g],
        );
        return t.add(t.mul(sum, x), t.add(y, t.mul(z, z)));
      },
      3,
    ],
    "an expanded view and its source": [(x) => t.add(t.expand(t.sum(x!, { axes: [0], keepAxes: true }), [2, 3]), t.mul(x!, x!)), 1],
    "expanded twice": [(x) => ((y) => t.mul(t.expand(y, [4, 2, 3]), t.affine(t.expand(y, [4, 2, 3]), 1, 1)))(t.tanh(x!)), 1],
    "gradients that are views of one another": [(x) => t.add(t.reshape(t.transpose(x!), [6]), t.reshape(x!, [6])), 1],
    "slices that overlap": [(x) => t.add(t.slice(x!, 1, 0, 2), t.slice(x!, 1, 1, 3)), 1],
  };

  it.each(Object.entries(cases))("%s", async (_, [f, count]) => {
    await checkGradients(
      f,
      Array.from({ length: count }, (_, i) => leaf([2, 3], i + 1)),
    );
  });

  it("do not write into a seed, nor free it", () => {
    const w = parameter([3], "w");
    const seed = t.tensor([1, 2, 3]);
    const gradients = t.backward(t.add(w, t.add(w, w)), { seed });
    expect(numbers(gradients.get(w)!)).toEqual([3, 6, 9]);
    expect(numbers(seed)).toEqual([1, 2, 3]);
  });

  it("are contiguous when they come, also where the backward returned a broadcast view", () => {
    const w = parameter([2, 3], "w");
    const gradient = t.backward(t.sum(w)).get(w)!;
    expect(gradient.contiguous).toBe(true);
    expect(numbers(gradient)).toEqual([1, 1, 1, 1, 1, 1]);
  });
});

describe("customGradient", () => {
  it("passes its own gradient on, and none where it returns null", () => {
    const [a, b] = [parameter([2], "a"), parameter([2], "b")];
    const out = t.customGradient(
      [a, b],
      (x, y) => t.mul(x, y),
      (g, output) => [t.mul(g, output), null],
    );
    const product = numbers(out);
    const gradients = t.backward(t.sum(out));
    expect(numbers(gradients.get(a)!)).toEqual(product);
    expect(gradients.has(b)).toBe(false);
  });

  it("may return an input unchanged: a straight-through estimator", () => {
    const w = parameter([2], "w");
    expect(
      numbers(
        t
          .backward(
            t.sum(
              t.customGradient(
                [w],
                (x) => x,
                (g) => [t.scale(g, 5)],
              ),
            ),
          )
          .get(w)!,
      ),
    ).toEqual([5, 5]);
  });

  it("refuses as many gradients as it has no inputs for", () => {
    const w = parameter([2], "w");
    expect(() =>
      t.backward(
        t.sum(
          t.customGradient(
            [w],
            (x) => t.exp(x),
            () => [],
          ),
        ),
      ),
    ).toThrow("a backward function returned 0 gradients for 1 inputs");
  });
});

describe("a gradient given to onGradient", () => {
  it("is memory of its own: writing it changes no other gradient", async () => {
    const [p, q] = [new t.Parameter(t.tensor([1, 2]), "p"), new t.Parameter(t.tensor([3, 4]), "q")];
    const loss = t.sum(t.mul(t.add(t.mul(q, q), p), t.tensor([5, 7])));
    const gradients = await t.backward(loss, { onGradient: (w, g) => void (w === p && t.engine().backend.kernels.fill(g, 0, g.size)) });
    expect([...(await gradients.get(p)!.data())]).toEqual([0, 0]);
    expect([...(await gradients.get(q)!.data())]).toEqual([30, 56]);
  });
});
