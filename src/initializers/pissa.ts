import { qr, randomizedSvd, svd } from "../linalg/index.ts";
import type { Site } from "../nn/contracts.ts";
import { concat, copyOf, matmul, mul, reshape, Rng, scale, slice, sqrt, transpose, type Tensor } from "../tensor/index.ts";
import type { Start, StartContext } from "./initializer.ts";

const root = (values: Tensor, factor: number): Tensor => sqrt(scale(values, factor));

/** PiSSA: B = U_r·√(S_r/s), A = √(S_r/s)·V_rᵀ of W; the base keeps the rest. Meng et al. 2024, arXiv:2404.02948. */
export async function pissaStart(site: Site, r: number, { scale: s }: Pick<StartContext, "scale">, iterations?: number): Promise<Start> {
  const W = site.weight.toDense();
  const { U, S, Vh } = iterations === undefined ? await svd(W) : await randomizedSvd(W, r, { iterations, oversampling: 0, rng: new Rng(0) });
  const roots = root(slice(S, 0, 0, r), 1 / s);
  return { B: copyOf(mul(slice(U, 1, 0, r), roots)), A: copyOf(mul(slice(Vh, 0, 0, r), reshape(roots, [r, 1]))), takes: true };
}

/** OLoRA: B = Q[:, :r], A = R[:r] of W = QR; the base keeps the rest. Büyükakyüz 2024, arXiv:2406.01775. */
export async function oloraStart(site: Site, r: number): Promise<Start> {
  const { Q, R } = await qr(site.weight.toDense());
  return { B: copyOf(slice(Q, 1, 0, r)), A: copyOf(slice(R, 0, 0, r)), takes: true };
}

/** Rows of a random orthogonal matrix, even ones for A and odd ones for B, so that B·A = 0 (PEFT's "orthogonal"); r must be even. */
export async function orthogonalStart(site: Site, r: number, { rng, dtype }: Pick<StartContext, "rng" | "dtype">): Promise<Start> {
  const { Q } = await qr(rng.normal([r, r], 1, dtype));
  const rows = (from: 0 | 1): Tensor =>
    concat(
      Array.from({ length: r / 2 }, (_, i) => slice(Q, 0, 2 * i + from, 2 * i + from + 1)),
      0,
    );
  const A = matmul(transpose(rows(0)), rng.fork("A").normal([r / 2, site.in], 0.1, dtype));
  const B = matmul(rng.fork("B").normal([site.out, r / 2], 0.1, dtype), rows(1));
  return { A: copyOf(A), B: copyOf(B) };
}
