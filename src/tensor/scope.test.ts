import { beforeEach, describe, expect, it } from "vitest";
import { engine } from "./engine.ts";
import * as t from "./index.ts";

const wait = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const used = (): number => engine().pool.usedBytes;
const alive = (x: t.Tensor): boolean => x.handle.block !== undefined;

let start = 0;
// a new engine each time, so that the garbage collector cannot return what earlier tests left
beforeEach(async () => {
  t.stop();
  await t.start();
  start = used();
});

describe("scope", () => {
  it("returns temporaries and keeps results, in arrays, objects, maps and sets", () => {
    const temporaries: t.Tensor[] = [];
    const made = (): t.Tensor => t.full([4], 1);
    const { list, object, map, set } = t.scope(() => {
      temporaries.push(made(), t.add(made(), made()));
      return { list: [made(), [made()]], object: { a: { b: made() }, n: 3, none: null, text: "x" }, map: new Map([["k", made()]]), set: new Set([made()]) };
    });
    const results = [list[0] as t.Tensor, (list[1] as t.Tensor[])[0]!, object.a.b, map.get("k")!, [...set][0]!];
    expect(temporaries.map(alive)).toEqual([false, false]);
    expect(results.map(alive)).toEqual([true, true, true, true, true]);
    for (const result of results) t.free(result);
    expect(used()).toBe(start);
  });

  it("a view among the results keeps the memory it looks at", async () => {
    const view = t.scope(() => t.transpose(t.tensor([1, 2, 3, 4], [2, 2])));
    expect(await view.data()).toEqual(Float32Array.of(1, 3, 2, 4));
    t.free(view);
  });

  it("nests: results of the inner scope end with the outer one", () => {
    const seen = t.scope(() => {
      const inner = t.scope(() => t.ones([3]));
      expect(alive(inner)).toBe(true);
      return { inner: () => inner };
    });
    expect(alive(seen.inner())).toBe(false);
    expect(used()).toBe(start);
  });

  it("does not return parameters, kept tensors or what was made outside", () => {
    const outside = t.ones([2]);
    const held: t.Tensor[] = [];
    t.scope(() => {
      t.scope(() => {
        held.push(new t.Parameter(t.ones([2])), t.keep(t.ones([2])), outside);
        const parameter = new t.Parameter(t.zeros([2]));
        parameter.assign(t.ones([5]));
        held.push(parameter);
      });
    });
    expect(held.map(alive)).toEqual([true, true, true, true]);
    for (const x of held) t.free(x);
  });

  it("a parameter made of a view keeps a copy of its own", async () => {
    const [parameter, source] = t.scope(() => {
      const source = t.tensor([1, 2, 3, 4], [2, 2]);
      return [new t.Parameter(t.transpose(source)), () => source] as const;
    });
    expect(alive(source())).toBe(false);
    expect(await parameter.data()).toEqual(Float32Array.of(1, 3, 2, 4));
    t.free(parameter);
  });

  it("returns everything when the body throws or rejects", async () => {
    expect(() =>
      t.scope(() => {
        t.ones([100]);
        t.scope(() => {
          t.ones([200]);
          throw new Error("inside");
        });
      }),
    ).toThrow("inside");
    await expect(
      t.scope(async () => {
        t.ones([100]);
        await wait(1);
        t.ones([100]);
        throw new Error("later");
      }),
    ).rejects.toThrow("later");
    expect(used()).toBe(start);
    expect(t.scope(() => 5, { exclusive: true })).toBe(5);
  });

  it("stays open over the awaits of an asynchronous body", async () => {
    let early: t.Tensor | undefined;
    const result = await t.scope(async () => {
      early = t.full([3], 2);
      await wait(1);
      expect(alive(early)).toBe(true);
      const late = t.mul(early, early);
      await wait(1);
      return { sum: t.add(late, early) };
    });
    expect(alive(early!)).toBe(false);
    expect(await result.sum.data()).toEqual(Float32Array.of(6, 6, 6));
    t.free(result.sum);
    expect(used()).toBe(start);
  });

  it("asynchronous scopes nest", async () => {
    const kept = await t.scope(async () => {
      const inner = await t.scope(async () => {
        await wait(1);
        return t.ones([3]);
      });
      await wait(1);
      return t.scale(inner, 2);
    });
    expect(await kept.data()).toEqual(Float32Array.of(2, 2, 2));
    t.free(kept);
    expect(used()).toBe(start);
  });
});

describe("an exclusive scope", () => {
  it("is refused while any scope is open, in a sentence, and leaves that one usable", () => {
    const x = t.scope(() => {
      const before = t.ones([2]);
      expect(() => t.scope(() => 1, { exclusive: true })).toThrow("a training step was started while another scope is open");
      return t.add(before, before);
    });
    expect(alive(x)).toBe(true);
    t.free(x);
  });

  it("refuses a second training step that starts while the first awaits", async () => {
    const first = t.scope(() => wait(5).then(() => "done"), { exclusive: true });
    expect(() => t.scope(() => wait(1), { exclusive: true })).toThrow(/another scope is open/);
    expect(await first).toBe("done");
    await t.scope(() => wait(1), { exclusive: true });
  });

  it("may hold ordinary scopes", () => {
    expect(t.scope(() => t.scope(() => 7), { exclusive: true })).toBe(7);
  });
});

describe("scopes of two tasks at once", () => {
  it("end in a sentence when they close out of order", async () => {
    const first = t.scope(() => wait(2));
    const second = t.scope(() => wait(20));
    await expect(first).rejects.toThrow("scopes were not closed in the order they were opened");
    await second;
  });
});

describe("a scope closed out of order", () => {
  it("does not stay open", async () => {
    const first = t.scope(() => wait(2));
    const second = t.scope(() => wait(10));
    await first.catch(() => undefined);
    await second;
    expect(t.scope(() => 1, { exclusive: true })).toBe(1);
  });
});
