import { beforeAll, describe, expect, it } from "vitest";
import { checkGradients, leaf, sample } from "../../test/support/gradients.ts";
import { safetensorsBytes } from "../formats/safetensors-write.ts";
import { add, fromBytes, noGrad, packBits, Rng, start, tensor, toBytes, transpose, type Parameter, type Tensor } from "../tensor/index.ts";
import {
  applyTransposed,
  lookUp,
  blockDiagonal,
  coredLowRank,
  csr,
  dense,
  describeOperator,
  diagonal,
  flatSparse,
  isOperator,
  kronecker,
  lowRank,
  nOfM,
  operatorFrom,
  permutation,
  productOf,
  quantize,
  quantizeInBlocks,
  quantizeNf4,
  replacedRows,
  scaledColumns,
  scaledRows,
  seeded,
  sumOf,
  transposeOf,
  type LinearOperator,
  type OperatorDescriptor,
} from "./index.ts";

beforeAll(async () => {
  await start();
});

/** One kind of operator: its shape, its leaves in f64 and how it is built from them. */
interface Kind {
  shape: readonly [number, number];
  leaves: readonly (readonly number[])[];
  build(...leaves: Parameter[]): LinearOperator;
  /** Stored numbers that are not in the leaves. */
  codes?: number;
  /** Every element of W is 0, or its row 0 does not read x[0], so that NaN there need not come out. */
  quiet?: true;
}

const ids = (...values: number[]): Tensor => tensor(values, [values.length], "i32");

// A new structure adds one line.
const kinds: Record<string, Kind> = {
  dense: { shape: [5, 4], leaves: [[5, 4]], build: (w) => dense(w!) },
  "transposed dense": { shape: [3, 6], leaves: [[6, 3]], build: (w) => dense(w!, true) },
  "dense of one row": { shape: [1, 7], leaves: [[1, 7]], build: (w) => dense(w!) },
  "dense without columns": { shape: [3, 0], leaves: [[3, 0]], build: (w) => dense(w!), quiet: true },
  "low-rank": {
    shape: [6, 5],
    leaves: [
      [6, 3],
      [3, 5],
    ],
    build: (b, a) => lowRank(b!, a!, 0.5),
  },
  "low-rank of rank 0": {
    shape: [4, 3],
    leaves: [
      [4, 0],
      [0, 3],
    ],
    build: (b, a) => lowRank(b!, a!, 2),
    quiet: true,
  },
  "low-rank of full rank": {
    shape: [5, 4],
    leaves: [
      [5, 4],
      [4, 4],
    ],
    build: (b, a) => lowRank(b!, a!),
  },
  "low-rank of far above full rank": {
    shape: [4, 3],
    leaves: [
      [4, 20],
      [20, 3],
    ],
    build: (b, a) => lowRank(b!, a!, 0.5),
  },
  "low-rank of strided factors": {
    shape: [4, 6],
    leaves: [
      [3, 4],
      [6, 3],
    ],
    build: (b, a) => lowRank(transpose(b!), transpose(a!), -1.5),
  },
  "low-rank with a full core": {
    shape: [5, 6],
    leaves: [
      [5, 2],
      [2, 3],
      [3, 6],
    ],
    build: (b, c, a) => coredLowRank(b!, c!, a!, 0.5),
  },
  "low-rank with gates": { shape: [4, 7], leaves: [[4, 3], [3], [3, 7]], build: (b, c, a) => coredLowRank(b!, c!, a!, 2) },
  "low-rank with many gates": { shape: [4, 3], leaves: [[4, 20], [20], [20, 3]], build: (b, c, a) => coredLowRank(b!, c!, a!, 0.5) },
  diagonal: { shape: [6, 6], leaves: [[6]], build: (d) => diagonal(d!) },
  "scaled rows": { shape: [7, 2], leaves: [[7], [7, 2]], build: (d, w) => scaledRows(d!, dense(w!)) },
  "scaled rows of low-rank": { shape: [5, 4], leaves: [[5], [5, 2], [2, 4]], build: (d, b, a) => scaledRows(d!, lowRank(b!, a!, 3)) },
  "scaled rows of scaled rows": { shape: [4, 5], leaves: [[4], [4], [4, 5]], build: (d, e, w) => scaledRows(d!, scaledRows(e!, dense(w!))) },
  "scaled columns": { shape: [4, 6], leaves: [[6], [4, 6]], build: (d, w) => scaledColumns(dense(w!), d!) },
  sum: {
    shape: [6, 4],
    leaves: [
      [6, 4],
      [6, 2],
      [2, 4],
    ],
    build: (w, b, a) => sumOf(dense(w!), lowRank(b!, a!, 0.25)),
  },
  "sum of sums that share a leaf": {
    shape: [5, 3],
    leaves: [[5, 3], [3, 5], [5]],
    build: (w, v, d) => sumOf(sumOf(dense(w!), dense(v!, true)), scaledRows(d!, dense(w!))),
  },
  product: { shape: [6, 5], leaves: [[6, 2], [2], [2, 5]], build: (a, d, b) => productOf(dense(a!), scaledRows(d!, dense(b!))) },
  transpose: {
    shape: [4, 7],
    leaves: [
      [7, 2],
      [2, 4],
    ],
    build: (b, a) => transposeOf(lowRank(b!, a!, 0.5)),
  },
  "transpose through the dense form": {
    shape: [3, 5],
    leaves: [
      [5, 3],
      [2, 3],
    ],
    build: (w, t) => transposeOf(replacedRows(dense(w!), [3, 0], t!)),
  },
  "replaced rows": {
    shape: [5, 4],
    leaves: [
      [5, 4],
      [2, 4],
    ],
    build: (w, t) => replacedRows(dense(w!), [3, 0], t!),
  },
  "replaced rows of replaced rows": {
    shape: [6, 3],
    leaves: [
      [6, 3],
      [2, 3],
      [1, 3],
    ],
    build: (w, t, u) => replacedRows(replacedRows(dense(w!), [3, 0], t!), [1], u!),
  },
  "no rows replaced": {
    shape: [4, 4],
    leaves: [
      [4, 4],
      [0, 4],
    ],
    build: (w, t) => replacedRows(dense(w!), [], t!),
  },
  csr: { shape: [4, 5], leaves: [[6]], build: (v) => csr(v!, ids(0, 3, 1, 4, 2, 0), ids(0, 2, 2, 3, 6), 5) },
  "csr without elements": { shape: [3, 2], leaves: [[0]], build: (v) => csr(v!, ids(), ids(0, 0, 0, 0), 2), quiet: true },
  "flat sparse, one place twice": { shape: [3, 4], leaves: [[5]], build: (v) => flatSparse(v!, ids(9, 0, 3, 9, 6), [3, 4]) },
  "2 of 4": { shape: [3, 8], leaves: [[3, 4]], build: (v) => nOfM(v!, packBits(ids(0, 3, 1, 2, 2, 3, 0, 1, 0, 2, 1, 3), 2), [2, 4], 8) },
  "4 of 8": { shape: [2, 8], leaves: [[2, 4]], build: (v) => nOfM(v!, packBits(ids(0, 3, 6, 7, 2, 3, 4, 5), 3), [4, 8], 8) },
  "block diagonal": { shape: [6, 4], leaves: [[2, 3, 2]], build: (b) => blockDiagonal(b!) },
  "one block": { shape: [3, 2], leaves: [[1, 3, 2]], build: (b) => blockDiagonal(b!) },
  kronecker: {
    shape: [6, 8],
    leaves: [
      [2, 2, 4],
      [2, 3, 2],
    ],
    build: (a, b) => kronecker(a!, b!),
  },
  permutation: { shape: [5, 5], leaves: [], build: () => permutation(ids(0, 4, 3, 1, 2), "f64") },
  "permuted low-rank": {
    shape: [4, 5],
    leaves: [
      [4, 2],
      [2, 5],
    ],
    build: (b, a) => productOf(permutation(ids(2, 0, 3, 1), "f64"), lowRank(b!, a!)),
  },
  seeded: { shape: [130, 3], leaves: [], build: () => seeded(new Rng(3).fork("w"), [130, 3], { dtype: "f64" }) },
  "4 bits in groups": {
    shape: [5, 7],
    leaves: [],
    build: () => quantize(tensor(sample([5, 7], 4), [5, 7]), { bits: 4, group: 3 }),
    codes: 35,
  },
  "8 bits in groups with zeros": {
    shape: [3, 6],
    leaves: [],
    build: () => quantize(tensor(sample([3, 6], 4), [3, 6]), { bits: 8, group: 4, symmetric: false }),
    codes: 18,
  },
  "4-bit NormalFloat": { shape: [4, 5], leaves: [], build: () => quantizeNf4(tensor(sample([4, 5], 4), [4, 5]), 8), codes: 23 },
  "8-bit blocks": { shape: [4, 5], leaves: [], build: () => quantizeInBlocks(tensor(sample([4, 5], 4), [4, 5]), 8), codes: 20 },
};

const operator = (kind: Kind, rng = 1): { leaves: Parameter[]; made: LinearOperator } => {
  const leaves = kind.leaves.map((shape, i) => leaf(shape, rng + i));
  return { leaves, made: kind.build(...leaves) };
};

const numbers = async (t: Tensor): Promise<number[]> => [...(await t.data())].map(Number);

/** x·Wᵀ in plain numbers, W out×in. */
function product(x: readonly number[], w: readonly number[], out: number, inner: number, rows: number): number[] {
  return Array.from({ length: rows * out }, (_, at) => {
    let total = 0;
    for (let k = 0; k < inner; k++) total += x[Math.floor(at / out) * inner + k]! * w[(at % out) * inner + k]!;
    return total;
  });
}

const turned = (w: readonly number[], out: number, inner: number): number[] =>
  Array.from({ length: w.length }, (_, at) => w[(at % out) * inner + Math.floor(at / out)]!);

const close = (found: readonly number[], expected: readonly number[]): void => {
  expect(found.length).toBe(expected.length);
  expected.forEach((value, i) => expect(Math.abs(found[i]! - value), `element ${i}: ${found[i]} for ${value}`).toBeLessThan(1e-12));
};

/** A safetensors file of an operator's tensors, its descriptor in the metadata. */
async function saved(made: LinearOperator): Promise<{ bytes: Uint8Array; stored: number }> {
  const { descriptor, tensors } = describeOperator(made);
  const list = Object.entries(tensors).map(([name, t]) => ({
    name,
    dtype: t.dtype.toUpperCase() as "F32",
    shape: t.shape as number[],
    bytes: () => toBytes(t),
  }));
  const bytes = await safetensorsBytes(list, "operator", { metadata: { operator: JSON.stringify(descriptor) } });
  const header = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  return { bytes, stored: bytes.length - 8 - header };
}

async function loaded(bytes: Uint8Array): Promise<LinearOperator> {
  const header = Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const { __metadata__: metadata, ...entries } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + header))) as Record<
    string,
    { operator: string; dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors = Object.entries(entries).map(
    ([
      name,
      {
        dtype,
        shape,
        data_offsets: [from, to],
      },
    ]) => [name, fromBytes(bytes.subarray(8 + header + from, 8 + header + to), shape, dtype.toLowerCase() as "f32")],
  );
  return operatorFrom(JSON.parse(metadata!.operator) as OperatorDescriptor, Object.fromEntries(tensors) as Record<string, Tensor>);
}

describe.each(Object.entries(kinds))("%s", (_, kind) => {
  const [out, inner] = kind.shape;

  it("is an operator of its shape", () => {
    const { made } = operator(kind);
    expect(isOperator(made)).toBe(true);
    expect([made.out, made.in]).toEqual([out, inner]);
    expect(made.toDense().shape).toEqual([out, inner]);
  });

  it("applies as x·Wᵀ, and transposed as x·W, for any leading axes and none", async () => {
    const { made } = operator(kind);
    const w = await numbers(made.toDense());
    for (const lead of [[3], [2, 3], [1], [0], []]) {
      const rows = lead.reduce((a, b) => a * b, 1);
      const [x, z] = [sample([...lead, inner], 8), sample([...lead, out], 9)];
      const y = made.apply(tensor(x, [...lead, inner], "f64"));
      expect(y.shape).toEqual([...lead, out]);
      close(await numbers(y), product(x, w, out, inner, rows));
      const back = applyTransposed(made, tensor(z, [...lead, out], "f64"));
      expect(back.shape).toEqual([...lead, inner]);
      close(await numbers(back), product(z, turned(w, out, inner), inner, out, rows));
    }
  });

  it("adds to y what it applies, and leaves y alone", async () => {
    const { made } = operator(kind);
    if (!made.addTo) return;
    const [x, y] = [tensor(sample([2, 3, inner], 8), [2, 3, inner], "f64"), tensor(sample([2, 3, out], 9), [2, 3, out], "f64")];
    const before = await numbers(y);
    close(await numbers(made.addTo(y, x)), await numbers(add(y, made.apply(x))));
    expect(await numbers(y)).toEqual(before);
  });

  it("gives with a bias what it applies, plus the bias, in each row", async () => {
    const { made } = operator(kind);
    if (!made.withBias) return;
    const [x, bias] = [tensor(sample([2, 3, inner], 8), [2, 3, inner], "f64"), tensor(sample([out], 9), [out], "f64")];
    close(await numbers(made.withBias(x, bias)), await numbers(add(made.apply(x), bias)));
  });

  it("gives the rows of its matrix by id, repeated and in any order", async () => {
    const { made } = operator(kind);
    const w = await numbers(made.toDense());
    const wanted = [out - 1, 0, Math.min(3, out - 1), Math.min(3, out - 1), 0, 0];
    const rows = lookUp(made, tensor(wanted, [2, 3], "i32"));
    expect(rows.shape).toEqual([2, 3, inner]);
    close(
      await numbers(rows),
      wanted.flatMap((id) => w.slice(id * inner, (id + 1) * inner)),
    );
    expect(lookUp(made, tensor([], [0], "i32")).shape).toEqual([0, inner]);
  });

  it("counts what it stores, each leaf once: the bytes of its file, and the numbers of its leaves and codes", async () => {
    const { made } = operator(kind);
    const { params, bytes, flops } = made.cost();
    const real = [...new Set(Object.values(made.parts))].filter(({ dtype }) => dtype === "f32" || dtype === "f64");
    expect(params).toBe(real.reduce((total, part) => total + part.size, kind.codes ?? 0));
    expect(bytes).toBe((await saved(made)).stored);
    expect(flops).toBeGreaterThanOrEqual(0);
  });

  it("is written, read and written again to the same bytes, and is the same matrix", async () => {
    const { made } = operator(kind);
    const { bytes } = await saved(made);
    const again = await loaded(bytes);
    expect(again.kind).toBe(made.kind);
    expect(Buffer.compare((await saved(again)).bytes, bytes)).toBe(0);
    expect(await numbers(again.toDense())).toEqual(await numbers(made.toDense()));
  });

  it("has gradients in x and in every leaf that match finite differences, in each form", async () => {
    const { leaves } = operator(kind);
    const [x, z, y] = [leaf([2, inner], 20), leaf([2, out], 23), leaf([2, out], 21)];
    await checkGradients((input, ...rest) => kind.build(...rest).apply(input!), [x, ...leaves]);
    await checkGradients((input, ...rest) => applyTransposed(kind.build(...rest), input!), [z, ...leaves]);
    const made = kind.build(...leaves);
    if (leaves.length > 0) {
      await checkGradients((...rest) => kind.build(...rest).toDense(), leaves);
      await checkGradients((...rest) => lookUp(kind.build(...rest), tensor([0, out - 1, out - 1], [3], "i32")), leaves);
    }
    if (made.withBias) await checkGradients((b, input, ...rest) => kind.build(...rest).withBias!(input!, b!), [leaf([out], 22), x, ...leaves]);
    if (made.addTo) await checkGradients((onto, input, ...rest) => kind.build(...rest).addTo!(onto!, input!), [y, x, ...leaves]);
  });

  it("passes NaN on and does not invent it", async () => {
    const { made } = operator(kind);
    const x = Array.from({ length: 2 * inner }, (__, i) => (i === 0 ? NaN : 1));
    const y = await numbers(noGrad(() => made.apply(tensor(x, [2, inner], "f64"))));
    if (!kind.quiet) expect(y.slice(0, out).some(Number.isNaN)).toBe(true);
    expect(y.slice(out).every(Number.isFinite)).toBe(true);
  });
});

describe("operators", () => {
  it("apply to f32 with the same matrix", async () => {
    const w = tensor(sample([5, 4], 1), [5, 4]);
    const y = await numbers(dense(w).apply(tensor(sample([2, 4], 8), [2, 4])));
    const exact = product(sample([2, 4], 8), sample([5, 4], 1), 5, 4, 2);
    exact.forEach((value, i) => expect(Math.abs(y[i]! - value)).toBeLessThan(1e-6));
  });

  it("refuses rows that are not there", () => {
    const { leaves } = operator(kinds["replaced rows"]!);
    expect(() => replacedRows(dense(leaves[0]!), [0, 5], leaves[1]!)).toThrow(/row 5 does not lie in 0…4/);
    expect(() => replacedRows(dense(leaves[0]!), [-1, 0], leaves[1]!)).toThrow(/row -1/);
  });
});
