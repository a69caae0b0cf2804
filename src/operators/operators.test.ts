import { beforeAll, describe, expect, it } from "vitest";
import { checkGradients, leaf, sample } from "../../test/support/gradients.ts";
import { add, bytesOf, noGrad, start, tensor, transpose, type Parameter, type Tensor } from "../tensor/index.ts";
import { dense, isOperator, lowRank, replacedRows, scaledRows, sumOf, type LinearOperator } from "./index.ts";

beforeAll(async () => {
  await start();
});

const [OUT, IN] = [5, 4];

/** One kind of operator: its leaves, how it is built from them, and what it costs beside its leaves. */
interface Kind {
  leaves: readonly (readonly number[])[];
  build(...leaves: Parameter[]): LinearOperator;
  /** Bytes of indices that are no tensors. */
  indexBytes?: number;
}

// A new structure adds one line.
const kinds: Record<string, Kind> = {
  dense: { leaves: [[OUT, IN]], build: (w) => dense(w!) },
  "transposed dense": { leaves: [[IN, OUT]], build: (w) => dense(w!, true) },
  "low-rank": {
    leaves: [
      [OUT, 3],
      [3, IN],
    ],
    build: (b, a) => lowRank(b!, a!, 0.5),
  },
  "low-rank of rank 0": {
    leaves: [
      [OUT, 0],
      [0, IN],
    ],
    build: (b, a) => lowRank(b!, a!, 2),
  },
  "low-rank of full rank": {
    leaves: [
      [OUT, IN],
      [IN, IN],
    ],
    build: (b, a) => lowRank(b!, a!),
  },
  "low-rank of strided factors": {
    leaves: [
      [3, OUT],
      [IN, 3],
    ],
    build: (b, a) => lowRank(transpose(b!), transpose(a!), -1.5),
  },
  "scaled rows": { leaves: [[OUT], [OUT, IN]], build: (d, w) => scaledRows(d!, dense(w!)) },
  "scaled rows of low-rank": { leaves: [[OUT], [OUT, 2], [2, IN]], build: (d, b, a) => scaledRows(d!, lowRank(b!, a!, 3)) },
  sum: {
    leaves: [
      [OUT, IN],
      [OUT, 2],
      [2, IN],
    ],
    build: (w, b, a) => sumOf(dense(w!), lowRank(b!, a!, 0.25)),
  },
  "sum of sums": { leaves: [[OUT, IN], [IN, OUT], [OUT]], build: (w, v, d) => sumOf(sumOf(dense(w!), dense(v!, true)), scaledRows(d!, dense(w!))) },
  "replaced rows": {
    leaves: [
      [OUT, IN],
      [2, IN],
    ],
    build: (w, t) => replacedRows(dense(w!), [3, 0], t!),
    indexBytes: 2 * 4,
  },
  "scaled rows of scaled rows": { leaves: [[OUT], [OUT], [OUT, IN]], build: (d, e, w) => scaledRows(d!, scaledRows(e!, dense(w!))) },
  "replaced rows of replaced rows": {
    leaves: [
      [OUT, IN],
      [2, IN],
      [1, IN],
    ],
    build: (w, t, u) => replacedRows(replacedRows(dense(w!), [3, 0], t!), [1], u!),
    indexBytes: 3 * 4,
  },
  "no rows replaced": {
    leaves: [
      [OUT, IN],
      [0, IN],
    ],
    build: (w, t) => replacedRows(dense(w!), [], t!),
  },
};

const operator = (kind: Kind, rng = 1): { leaves: Parameter[]; made: LinearOperator } => {
  const leaves = kind.leaves.map((shape, i) => leaf(shape, rng + i));
  return { leaves, made: kind.build(...leaves) };
};

const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);

/** x·Wᵀ in plain numbers. */
function product(x: readonly number[], w: readonly number[]): number[] {
  const rows = x.length / IN;
  return Array.from({ length: rows * OUT }, (_, at) => {
    let total = 0;
    for (let k = 0; k < IN; k++) total += x[Math.floor(at / OUT) * IN + k]! * w[(at % OUT) * IN + k]!;
    return total;
  });
}

const close = (found: readonly number[], expected: readonly number[]): void => {
  expect(found.length).toBe(expected.length);
  expected.forEach((value, i) => expect(Math.abs(found[i]! - value), `element ${i}: ${found[i]} for ${value}`).toBeLessThan(1e-12));
};

describe.each(Object.entries(kinds))("%s", (_, kind) => {
  it("is an operator of its shape", () => {
    const { made } = operator(kind);
    expect(isOperator(made)).toBe(true);
    expect([made.out, made.in]).toEqual([OUT, IN]);
    expect(made.toDense().shape).toEqual([OUT, IN]);
  });

  it("applies as x·Wᵀ, for any leading axes and none", async () => {
    const { made } = operator(kind);
    const w = await numbers(made.toDense());
    for (const lead of [[3], [2, 3], [1], [0], []]) {
      const shape = [...lead, IN];
      const x = sample(shape, 8);
      const y = made.apply(tensor(x, shape, "f64"));
      expect(y.shape).toEqual([...lead, OUT]);
      close(await numbers(y), product(x, w));
    }
  });

  it("adds to y what it applies, and leaves y alone", async () => {
    const { made } = operator(kind);
    if (!made.addTo) return;
    const [x, y] = [tensor(sample([2, 3, IN], 8), [2, 3, IN], "f64"), tensor(sample([2, 3, OUT], 9), [2, 3, OUT], "f64")];
    const before = await numbers(y);
    close(await numbers(made.addTo(y, x)), await numbers(add(y, made.apply(x))));
    expect(await numbers(y)).toEqual(before);
  });

  it("gives with a bias what it applies, plus the bias, in each row", async () => {
    const { made } = operator(kind);
    if (!made.withBias) return;
    const [x, bias] = [tensor(sample([2, 3, IN], 8), [2, 3, IN], "f64"), tensor(sample([OUT], 9), [OUT], "f64")];
    close(await numbers(made.withBias(x, bias)), await numbers(add(made.apply(x), bias)));
  });

  it("gives the rows of its matrix by id, repeated and in any order", async () => {
    const { made } = operator(kind);
    expect(made.rows).toBeDefined();
    const w = await numbers(made.toDense());
    const ids = [4, 0, 3, 3, 1, 2];
    const rows = made.rows!(tensor(ids, [2, 3], "i32"));
    expect(rows.shape).toEqual([2, 3, IN]);
    close(
      await numbers(rows),
      ids.flatMap((id) => w.slice(id * IN, (id + 1) * IN)),
    );
    expect(made.rows!(tensor([], [0], "i32")).shape).toEqual([0, IN]);
  });

  it("counts what it stores: the numbers and bytes of its parts, indices too", () => {
    const { made } = operator(kind);
    const parts = Object.values(made.parts);
    const { params, bytes, flops } = made.cost();
    expect(params).toBe(parts.reduce((total, part) => total + part.size, 0));
    expect(bytes).toBe(parts.reduce((total, part) => total + part.size * bytesOf(part.dtype), kind.indexBytes ?? 0));
    expect(flops).toBeGreaterThanOrEqual(0);
  });

  it("has gradients in x and in every leaf that match finite differences, in each form", async () => {
    const { leaves } = operator(kind);
    const x = leaf([2, IN], 20);
    const y = leaf([2, OUT], 21);
    await checkGradients((input, ...rest) => kind.build(...rest).apply(input!), [x, ...leaves]);
    await checkGradients((...rest) => kind.build(...rest).toDense(), leaves);
    await checkGradients((...rest) => kind.build(...rest).rows!(tensor([1, 3, 3], [3], "i32")), leaves);
    if (kind.build(...leaves).withBias) await checkGradients((b, input, ...rest) => kind.build(...rest).withBias!(input!, b!), [leaf([OUT], 22), x, ...leaves]);
    if (kind.build(...leaves).addTo) await checkGradients((onto, input, ...rest) => kind.build(...rest).addTo!(onto!, input!), [y, x, ...leaves]);
  });

  it("passes NaN on and does not invent it", async () => {
    const { made } = operator(kind);
    const y = await numbers(noGrad(() => made.apply(tensor([NaN, 1, 1, 1, 1, 1, 1, 1], [2, IN], "f64"))));
    if (made.cost().params > 0) expect(y.slice(0, OUT).some(Number.isNaN)).toBe(true);
    expect(y.slice(OUT).every(Number.isFinite)).toBe(true);
  });
});

describe("operators", () => {
  it("apply to f32 with the same matrix", async () => {
    const w = tensor(sample([OUT, IN], 1), [OUT, IN]);
    const y = await numbers(dense(w).apply(tensor(sample([2, IN], 8), [2, IN])));
    const exact = product(sample([2, IN], 8), sample([OUT, IN], 1));
    exact.forEach((value, i) => expect(Math.abs(y[i]! - value)).toBeLessThan(1e-6));
  });

  it("refuses rows that are not there", () => {
    const { leaves } = operator(kinds["replaced rows"]!);
    expect(() => replacedRows(dense(leaves[0]!), [0, OUT], leaves[1]!)).toThrow(/row 5 does not lie in 0…4/);
    expect(() => replacedRows(dense(leaves[0]!), [-1, 0], leaves[1]!)).toThrow(/row -1/);
  });
});
