import { describe, expect, it } from "vitest";
import { sample } from "../../test/support/gradients.ts";
import { engine, hostNumbers, noGrad, scope, solve, start, stop, tensor, type Tensor } from "../tensor/index.ts";
import { choleskyFactor, choleskyQr2, ldu, leastSquares, lu, qr, qrBackward, solvePositive, solveTriangular } from "./index.ts";

/** Values of a symmetric matrix with a dominant diagonal, and of one of half the rank. */
const dominant = (n: number): Tensor =>
  tensor(
    Array.from({ length: n * n }, (_, at) => (at % (n + 1) === 0 ? 3 : 1 / (1 + Math.abs(Math.floor(at / n) - (at % n))) ** 2)),
    [n, n],
    "f64",
  );
const halfRank = (n: number): Tensor =>
  tensor(
    Array.from({ length: n * n }, (_, at) => Math.cos((at % n) * Math.floor(at / n / 2))),
    [n, n],
    "f64",
  );

const calls: Record<string, (n: number) => Promise<Tensor[]>> = {
  qr: async (n) => Object.values(await qr(dominant(n))),
  choleskyFactor: async (n) => [await choleskyFactor(dominant(n))],
  choleskyQr2: async (n) => Object.values(await choleskyQr2(dominant(n))),
  solvePositive: async (n) => [await solvePositive(dominant(n), dominant(n))],
  solveTriangular: async (n) => [await solveTriangular(dominant(n), dominant(n), { left: false })],
  lu: async (n) => Object.values(await lu(dominant(n))),
  ldu: async (n) => Object.values(await ldu(dominant(n), { pivoting: "rook" })),
  leastSquares: async (n) => [(await leastSquares(halfRank(n), dominant(n))).solution],
  qrBackward: async (n) => {
    const factors = await qr(dominant(n));
    return [qrBackward(factors, factors.Q, factors.R)];
  },
  solve: async (n) => [noGrad(() => solve(tensor(sample([1, n, n]), [1, n, n]), tensor(sample([n, 2]), [n, 2])))],
};

/** What every call gives in a fresh WebAssembly engine, whose memory may be made to grow with each allocation. */
async function results(name: string, growing: boolean): Promise<Float64Array[]> {
  stop();
  await start({ backend: "wasm" });
  const { backend } = engine();
  const allocate = backend.allocate.bind(backend);
  if (growing) backend.allocate = (bytes) => allocate(Math.max(bytes, 2 ** 16 + 64));
  return scope(async () => (await calls[name]!(70)).map((x) => Float64Array.from(hostNumbers(x) as Float64Array)));
}

describe("linear algebra in WebAssembly", () => {
  it.each(Object.keys(calls))("%s holds no view of memory over an allocation that moves it", async (name) => {
    const moved = await results(name, true);
    expect(moved).toEqual(await results(name, false));
  });
});
