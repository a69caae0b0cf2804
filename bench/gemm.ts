import { engine, gemmInto, empty, noGrad, Rng, transpose, type Tensor } from "strut/tensor";
import { simdLimit } from "./limit.ts";
import { bench, type Options } from "./measure.ts";

const sizes: readonly (readonly [number, number, number])[] = [
  [64, 64, 64],
  [256, 256, 256],
  [512, 768, 3072],
  [1024, 1024, 1024],
  [2048, 2048, 2048],
  [4096, 4096, 4096],
];

/**
 * Matrix products into an existing output; M×K×N, and T where an operand is stored transposed. On WebAssembly each line has
 * the limit of 128-bit arithmetic, measured just before, and the share of it that the fastest run reached: both as undisturbed as
 * they were seen.
 */
export async function gemm(options: Options): Promise<void> {
  const rng = new Rng(20261125);
  const operand = (rows: number, cols: number, transposed: boolean): Tensor =>
    transposed ? transpose(rng.normal([cols, rows], 1)) : rng.normal([rows, cols], 1);
  for (const [m, k, n] of sizes) {
    const flops = 2 * m * k * n;
    const out = empty([m, n]);
    const { name, threads } = engine().backend;
    for (const kind of ["NN", "NT", "TN"]) {
      const [a, b] = [operand(m, k, kind[0] === "T"), operand(k, n, kind[1] === "T")];
      const limit = name === "wasm" ? await simdLimit(threads) : undefined;
      const rounded = (x: number): number => Math.round(x * 10) / 10;
      await bench(options, "gemm", `${m}x${k}x${n} ${kind}`, () => noGrad(() => gemmInto(out, a, b)), {
        runs: flops > 5e10 ? 5 : 15,
        warmup: flops > 5e10 ? 1 : 3,
        inner: Math.max(1, Math.floor(1e9 / flops)),
        extra: (s, fastest) => ({
          gflops: rounded(flops / s / 1e9),
          ...(limit && { limit: rounded(limit), share: `${Math.round(flops / fastest / limit / 1e7)} %` }),
        }),
      });
    }
  }
}
