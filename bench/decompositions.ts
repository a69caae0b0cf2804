import { eigh, lu, qr, randomizedSvd, svd } from "strut/linalg";
import { add, matmul, mul, noGrad, Rng, scale, scope, sub, sumSquares, tensor, transpose, type Tensor } from "strut/tensor";
import { bench, type Options } from "./measure.ts";

const norm = (x: Tensor): number => Math.sqrt(sumSquares([x]));

/** Decompositions of f32 matrices, with the names, shapes and options of the peer's lines. */
export async function decompositions(options: Options): Promise<void> {
  const rng = new Rng(20261125);
  for (const [m, n] of [
    [512, 512],
    [1024, 1024],
    [4096, 1024],
  ] as const) {
    const a = rng.normal([m, n], 1);
    await bench(options, "svd", `${m}x${n}`, () => scope(async () => void (await svd(a))), { runs: 3 });
  }
  const square = rng.normal([1024, 1024], 1);
  await bench(options, "lu", "1024x1024", () => scope(async () => void (await lu(square))));
  await bench(options, "qr", "1024x1024", () => scope(async () => void (await qr(square))));
  const symmetric = add(square, transpose(square));
  await bench(options, "eigh", "1024x1024", () => scope(async () => void (await eigh(symmetric))));
  // the peer keeps all of its 80 columns; signal of rank 64 with singular values 0.95^i, and noise of relative norm 1e-2
  const [n, rank, noise] = [4096, 64, 1e-2];
  const basis = async (): Promise<Tensor> => (await svd(rng.normal([n, rank], 1))).U;
  const powers = tensor(Array.from({ length: rank }, (_, i) => 0.95 ** i));
  const signal = matmul(mul(await basis(), powers), transpose(await basis()));
  const e = rng.normal([n, n], 1);
  const a = noGrad(() => add(signal, scale(e, (noise * norm(signal)) / norm(e))));
  // the peer's way first; then blocks of half the rank, which leave the residual of rank 64 where it is
  for (const [name, columns, way] of [
    [`${n}x${n} q=80 niter=2`, 80, { oversampling: 0, iterations: 2 }],
    [`${n}x${n} rank 64 by subspace`, 64, { oversampling: 16, iterations: 2 }],
    [`${n}x${n} rank 64 by krylov`, 64, { method: "krylov", block: 32, iterations: 2 }],
  ] as const) {
    const run = (): ReturnType<typeof randomizedSvd> => randomizedSvd(a, columns, way);
    const { U, S, Vh } = await run();
    const residual = norm(sub(matmul(mul(U, S), Vh), a)) / norm(a);
    await bench(options, "svd_lowrank", name, () => scope(async () => void (await run())), {
      extra: () => ({ rel_residual: Math.round(residual * 1e7) / 1e7, noise_rel: noise }),
    });
  }
}
