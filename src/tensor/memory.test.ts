import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { arrayBufferMemory } from "./backends/reference.ts";
import type { Handle } from "./memory.ts";
import { Pool } from "./memory.ts";
import * as t from "./index.ts";
import { engine, kernels } from "./engine.ts";

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as () => void;

/** Lets finalizers run: they are called from the event loop after a collection. */
async function collected(done: () => boolean): Promise<boolean> {
  for (let turn = 0; turn < 50 && !done(); turn++) {
    collect();
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  return done();
}

const backend = { ...arrayBufferMemory, name: "reference" as const, variant: "", threads: 1, kernels: {} as never, stop() {} };

describe("the pool", () => {
  let pool: Pool;
  beforeEach(() => {
    pool = new Pool(backend);
  });

  it("hands a returned block out again for a size of the same class, and takes no more from the backend", () => {
    const first = pool.allocate(1000);
    const block = first.block;
    pool.free(first);
    expect(pool.usedBytes).toBe(0);
    const bytes = pool.pooledBytes;
    expect(pool.allocate(990).block).toBe(block);
    expect(pool.pooledBytes).toBe(bytes);
  });

  it("never hands out one block twice", () => {
    const seen = new Set(Array.from({ length: 100 }, () => pool.allocate(64).block));
    expect(seen.size).toBe(100);
  });

  it("wastes at most an eighth of a block beyond the smallest size", () => {
    for (let bytes = 0; bytes < 5000; bytes += 7) {
      const { block } = pool.allocate(bytes);
      expect(block!.bytes).toBeGreaterThanOrEqual(bytes);
      expect(block!.bytes).toBeLessThanOrEqual(Math.max(64, bytes + Math.max(64, bytes / 8)));
    }
    for (const bytes of [2 ** 20, 2 ** 20 + 1, 3 * 2 ** 28 + 5]) {
      const class_ = new Pool({ ...backend, allocate: (size) => ({ bytes: size, address: 0 }) }).allocate(bytes).block!.bytes;
      expect(class_ / bytes).toBeLessThanOrEqual(1.125);
      expect(class_ / bytes).toBeGreaterThanOrEqual(1);
    }
  });

  it("freeing twice returns the block once", () => {
    const handle = pool.allocate(64);
    pool.free(handle);
    pool.free(handle);
    expect(pool.usedBytes).toBe(0);
    const [a, b] = [pool.allocate(64), pool.allocate(64)];
    expect(a.block).not.toBe(b.block);
  });

  it("closing a scope returns what did not survive, once, also what was freed inside", () => {
    const scope = pool.open();
    const [gone, freed, survivor] = [pool.allocate(64), pool.allocate(64), pool.allocate(64)];
    pool.free(freed);
    pool.close(scope, new Set([survivor]));
    expect(pool.usedBytes).toBe(64);
    expect([gone.block, freed.block]).toEqual([undefined, undefined]);
    expect(survivor.block).toBeDefined();
  });

  it("moves survivors to the scope around, which returns them", () => {
    const outer = pool.open();
    const inner = pool.open();
    const handle = pool.allocate(64);
    pool.close(inner, new Set([handle]));
    expect(handle.block).toBeDefined();
    pool.close(outer, new Set());
    expect(handle.block).toBeUndefined();
  });

  it("keeps the peak of bytes in use, to be set anew", () => {
    const a = pool.allocate(640);
    const b = pool.allocate(64);
    pool.free(a);
    expect(pool.peakBytes).toBe(704);
    pool.peakBytes = pool.usedBytes;
    pool.free(b);
    pool.allocate(64);
    expect(pool.peakBytes).toBe(64);
  });

  it("gets unscoped blocks back from the garbage collector", async () => {
    (() => {
      for (let i = 0; i < 50; i++) pool.allocate(1024);
    })();
    expect(pool.usedBytes).toBe(50 * 1024);
    expect(await collected(() => pool.usedBytes === 0)).toBe(true);
    for (let i = 0; i < 50; i++) pool.allocate(1024);
    expect(pool.pooledBytes).toBe(50 * 1024);
  });

  it("gets kept blocks and survivors of the outermost scope back from the garbage collector, and freed ones only once", async () => {
    (() => {
      const scope = pool.open();
      const [kept, survivor, freed] = [pool.allocate(1024), pool.allocate(1024), pool.allocate(1024)];
      pool.keep(kept);
      pool.keep(freed);
      pool.close(scope, new Set([survivor]));
      expect(pool.usedBytes).toBe(3 * 1024);
      pool.free(freed);
      expect(pool.usedBytes).toBe(2 * 1024);
    })();
    expect(await collected(() => pool.usedBytes === 0)).toBe(true);
    await collected(() => false);
    expect(pool.usedBytes).toBe(0);
  });

  it("leaves blocks alone while somebody holds the handle", async () => {
    const held: Handle[] = Array.from({ length: 10 }, () => pool.allocate(64));
    await collected(() => pool.usedBytes === 0);
    expect(pool.usedBytes).toBe(640);
    expect(held.every(({ block }) => block !== undefined)).toBe(true);
  });
});

describe("tensors", () => {
  beforeAll(() => t.start());

  it("share memory with their views: freeing one ends all, in a sentence", async () => {
    const x = t.tensor([1, 2, 3, 4, 5, 6], [2, 3]);
    const views = [t.transpose(x), t.reshape(x, [6]), t.slice(x, 1, 1, 3), t.expand(t.slice(x, 0, 0, 1), [4, 3])];
    expect(await views[0]!.data()).toEqual(Float32Array.of(1, 4, 2, 5, 3, 6));
    expect(await views[2]!.data()).toEqual(Float32Array.of(2, 3, 5, 6));
    t.free(x);
    for (const view of [x, ...views]) await expect(view.data()).rejects.toThrow(/was used after its memory was returned/);
    expect(() => t.add(x, x)).toThrow(/shape \[2,3\] was used after/);
  });

  it("a thousand training steps take no more memory than the first few", async () => {
    const rng = new t.Rng(1);
    const [w1, b1, w2] = [new t.Parameter(rng.normal([32, 16], 0.1)), new t.Parameter(t.zeros([32])), new t.Parameter(rng.normal([8, 32], 0.1))];
    const parameters = [w1, b1, w2];
    const moments = parameters.map((p) => ({ m: t.keep(t.zeros(p.shape)), v: t.keep(t.zeros(p.shape)) }));
    const targets = t.tensor(
      Array.from({ length: 24 }, (_, i) => i % 8),
      [24],
      "i32",
    );
    const x = rng.normal([24, 16], 1);
    const step = (number: number): number =>
      t.scope(
        () => {
          const hidden = t.gelu(t.linear(t.dropout(x, 0.1, rng), w1, b1));
          const loss = t.linearCrossEntropy(hidden, w2, targets);
          const gradients = t.backward(loss);
          const [c1, c2] = [1 - 0.9 ** number, 1 - 0.999 ** number];
          parameters.forEach((p, i) => kernels().adamw(p, gradients.get(p)!, moments[i]!.m, moments[i]!.v, p.size, 0.003, 0.9, 0.999, 1e-8, 0, c1, c2, 1));
          return (t.hostNumbers(loss) as Float32Array)[0]!;
        },
        { exclusive: true },
      );
    const { pool } = engine();
    const losses: number[] = [];
    let early = [0, 0];
    for (let number = 1; number <= 1000; number++) {
      losses.push(step(number));
      if (number === 20) early = [pool.pooledBytes, pool.usedBytes];
    }
    expect([pool.pooledBytes, pool.usedBytes]).toEqual(early);
    expect(losses.at(-1)!).toBeLessThan(losses[0]! / 2);
    expect(await w1.data()).toHaveLength(512);
  });
});

describe("WebAssembly memory", () => {
  afterAll(() => t.stop());

  it("grows under tensors, views and parameters without losing them, also in the middle of operations", async () => {
    t.stop();
    const { backend: wasm } = await t.start({ backend: "wasm" });
    const small = t.tensor(
      Array.from({ length: 1000 }, (_, i) => i),
      [10, 100],
    );
    const view = t.transpose(small);
    const parameter = new t.Parameter(t.full([70_000], 3));
    const before = wasm.locate(small.block).buffer.byteLength;
    const big = Array.from({ length: 12 }, (_, i) => t.full([1 << 21], i));
    expect(wasm.locate(small.block).buffer.byteLength).toBeGreaterThan(before + 60 * 2 ** 20);
    expect([...((await small.data()) as Float32Array)].every((value, i) => value === i)).toBe(true);
    expect(((await view.data()) as Float32Array)[1]).toBe(100);
    expect(((await parameter.data()) as Float32Array).every((value) => value === 3)).toBe(true);
    for (const [i, tensor] of big.entries()) expect(await t.mean(tensor).item()).toBeCloseTo(i);
    expect(await t.sum(t.matmul(t.ones([3, 100]), view)).item()).toBe(3 * 499_500);
  });
});
