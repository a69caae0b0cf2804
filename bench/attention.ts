import { attention as attend, backward, engine, noGrad, Parameter, Rng, scope } from "strut/tensor";
import { bench, type Options } from "./measure.ts";

const [heads, dim] = [12, 64];

/** Causal attention, forward and backward, for growing numbers of tokens. */
export async function attention(options: Options): Promise<void> {
  const rng = new Rng(20261125);
  for (const n of [1024, 2048, 4096, 8192]) {
    const draw = (name: string): Parameter => new Parameter(rng.fork(`${name}/${n}`).normal([1, n, heads, dim], 1), name);
    const [q, k, v] = [draw("q"), draw("k"), draw("v")];
    const seed = noGrad(() => rng.fork(`gradient/${n}`).normal([1, n, heads, dim], 1));
    const { pool } = engine();
    const before = (pool.peakBytes = pool.usedBytes);
    await bench(options, "attention", `n=${n} ${heads}x${dim} fwd+bwd`, () => scope(() => void backward(attend(q, k, v), { seed })), {
      runs: n > 2048 ? 3 : 10,
      warmup: n > 2048 ? 1 : 2,
      extra: (s) => ({
        dense_gflops: Math.round((12 * heads * n * n * dim) / s / 1e8) / 10,
        // beside q, k, v and the gradient of the output
        own_mib: Math.round((pool.peakBytes - before) / 2 ** 18) / 4,
      }),
    });
  }
}
