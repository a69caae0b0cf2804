import { z } from "zod";
import { StrutError } from "../errors.ts";
import { ldu, lu } from "../linalg/index.ts";
import { coredLowRank } from "../operators/index.ts";
import { affine, copyOf, full, hostNumbers, indexSelect, inverseOrder, mul, ones, slice, sub, tensor, zeros, type Tensor } from "../tensor/index.ts";
import { adapter, atEvery, type InitContext } from "./adapter.ts";

const starts = ["lu", "uniform", "normal", "constant", "s_uniform", "s_normal", "ones", "zeros"] as const;

const options = z.object({
  r: z.int().positive().default(4).describe("pivots that train, the first r; defaults to 4"),
  alpha: z.number().default(8).describe("the change is scaled by alpha / r; defaults to 8"),
  initMethod: z.enum(starts).default("lu").describe("start of z: the pivots, or numbers drawn around them (the first four) or without them; defaults to lu"),
  residual: z
    .enum(["z", "D"])
    .default("z")
    .describe(
      "what the change is counted from: z at the start, or the pivots D as the official code has it, whose output then moves at the start; defaults to z",
    ),
  trainScale: z.boolean().default(false).describe("train the scale too; defaults to false"),
  pivoting: z.enum(["partial", "rook"]).default("partial").describe("rook takes singular matrices and sorts pivots roughly by size; defaults to partial"),
  saveFactors: z.boolean().default(true).describe("store the triangular factors; else they are computed again on loading; defaults to true"),
});
type Options = z.output<typeof options>;
/** `order` is P: the row of W at each row of the factors. */
type Params = { z: Tensor; z0: Tensor; L: Tensor; U: Tensor; order: Tensor; scale?: Tensor };

/** Pivots below this share of the largest stay in the base: dividing by them would blow up their rows of U. */
const TINY = 1e-6;

const values = (x: Tensor): number[] => Array.from(hostNumbers(x) as Float64Array);

/** The first r of W = L·diag(D)·U, rows and columns in the order of W. Rows of U whose pivot is tiny are 0. */
async function factors(W: Tensor, { r, pivoting }: Options): Promise<{ L: Tensor; D: Tensor; U: Tensor; order: Tensor }> {
  const { P, Q, L, U, pivots } = pivoting === "rook" ? await rook(W) : await partial(W);
  const most = Math.max(...pivots.map(Math.abs));
  const factor = pivots.map((d) => (Math.abs(d) > TINY * most ? (pivoting === "rook" ? 1 : 1 / d) : 0)).slice(0, r);
  const rows = mul(slice(U, 0, 0, r), tensor(factor, [r, 1], W.dtype));
  return {
    order: P,
    L: indexSelect(slice(L, 1, 0, r), 0, inverse(P)),
    D: tensor(pivots.slice(0, r), [r], W.dtype),
    U: Q ? indexSelect(rows, 1, inverse(Q)) : copyOf(rows),
  };
}

const partial = async (W: Tensor) => {
  const { P, L, U } = await lu(W);
  const [entries, k] = [values(U), L.shape[1]!];
  const pivots = Array.from({ length: k }, (_, i) => entries[i * (W.shape[1]! + 1)]!);
  return { P, L, U, Q: undefined, pivots };
};

const rook = async (W: Tensor) => {
  const { D, ...rest } = await ldu(W, { pivoting: "rook" });
  return { ...rest, pivots: values(D) };
};

const inverse = (order: Tensor): Tensor => tensor(inverseOrder(values(order)), [order.size], "i32");

/** z at the start (init_method of the official code). */
function start(D: Tensor, { initMethod }: Options, context: InitContext): Tensor {
  const pivots = values(D);
  const mean = pivots.reduce((sum, x) => sum + x, 0) / pivots.length;
  const std = Math.sqrt(pivots.reduce((sum, x) => sum + (x - mean) ** 2, 0) / Math.max(1, pivots.length - 1));
  const [shape, { dtype }] = [[pivots.length], context];
  const starts: Record<Options["initMethod"], () => Tensor> = {
    lu: () => copyOf(D),
    uniform: () => context.rng.uniform(shape, Math.abs(mean) / 2, dtype),
    normal: () => affine(context.rng.normal(shape, 1, dtype), std, mean),
    constant: () => full(shape, mean, dtype),
    s_uniform: () => context.rng.uniform(shape, 1, dtype),
    s_normal: () => context.rng.normal(shape, 1, dtype),
    ones: () => ones(shape, dtype),
    zeros: () => zeros(shape, dtype),
  };
  return starts[initMethod]();
}

/**
 * LoLDU: ΔW = (α/r)·P·L_r·diag(z − z₀)·U_r with W = P·L·D·U by LU with pivoting; the r numbers z train, from the first r pivots.
 * Shi et al. 2024, arXiv:2410.13618. L and U are triangular, not orthogonal, so gradients of z are unevenly scaled.
 *
 * @example
 * const tuned = await adapt(model, loldu, { r: 16, alpha: 16 });
 */
export const loldu = adapter({
  id: "loldu",
  title: "LoLDU",
  paper: "arXiv:2410.13618",
  kinds: ["linear", "conv2d", "embedding"],
  options,
  async init(site, o, context): Promise<Params> {
    const { L, D, U, order } = await factors(site.weight.toDense(), o);
    const z0 = start(D, o, context);
    return {
      z: copyOf(z0),
      z0: o.residual === "D" ? D : z0,
      L,
      U,
      order,
      ...(o.trainScale ? { scale: full([1], o.alpha / o.r, context.dtype) } : {}),
    };
  },
  update({ z: own, z0, L, U, scale }: Params, _site, o) {
    const change = sub(own, z0);
    return scale ? coredLowRank(L, mul(change, scale), U) : coredLowRank(L, change, U, o.alpha / o.r);
  },
  verify({ L, order }, { path }) {
    const [rows, entries, r] = [values(order), values(L), L.shape[1]!];
    // row i of the factors is 1 in column i, and 0 behind
    const agrees = rows.slice(0, r).every((row, i) => entries.slice(row * r + i, (row + 1) * r).every((entry, j) => entry === Number(j === 0)));
    if (!agrees)
      throw new StrutError(
        "adapter",
        `the base's ${path} factors with other pivots than the matrix that was trained, so LoLDU's numbers do not belong to them`,
        {
          hint: "Load the base that the adapter was made on, or save it again with saveFactors.",
        },
      );
  },
  finish: ({ L, U, ...trained }, _site, o) => ({ params: (o.saveFactors ? { ...trained, L, U } : trained) as Params }),
  layout: {
    tensors: atEvery({ z: "loldu_z", z0: "loldu_z0", scale: "loldu_scale", L: "loldu_L", U: "loldu_U", order: "loldu_perm" }),
    frozen: ["z0", "L", "U"],
    derived: true,
  },
});
