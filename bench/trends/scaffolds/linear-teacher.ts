import { ldu, qr, svd } from "strut/linalg";
import { forward, type Model } from "strut/models";
import {
  add,
  copyOf,
  embedding,
  inverseOrder,
  linear,
  matmul,
  mul,
  noGrad,
  norm,
  Rng,
  scale,
  sub,
  sumSquares,
  tensor,
  transpose,
  type Tensor,
} from "strut/tensor";
import { regression } from "strut/training";
import { modelOf, type Scaffold } from "./model.ts";

const [OUT, IN, ROWS] = [48, 64, 128];

export interface Teacher {
  /** What the target is beside the base: of full rank, the same in all directions (orthogonal rows), of rank 4, other singular values, or another diagonal of LDU. */
  target: "full" | "orthogonal" | "rank4" | "singular-values" | "ldu-diagonal";
  /** Flat: every direction of the input alike; anisotropic: standard deviations fall as 1/√i; mild: as i^−¼; steep: as 1/i. */
  inputs: "flat" | "anisotropic" | "mild" | "steep";
}

const powers = { flat: 0, mild: -0.25, anisotropic: -0.5, steep: -1 } as const;
const numbers = (n: number, value: (i: number) => number): Tensor => tensor(Array.from({ length: n }, (_, i) => value(i)));
const made = new Map<string, Promise<Scaffold>>();

/**
 * A linear teacher: one 48×64 matrix with singular values 2/√i, a target as far from it as half of its norm. The figure is the error of
 * the output, relative to the base's: 1 at the start, 0 when the target is found.
 */
export function linearTeacher(teacher: Teacher): Promise<Scaffold> {
  const key = JSON.stringify(teacher);
  if (!made.has(key)) made.set(key, build(teacher));
  return made.get(key)!;
}

async function build({ target, inputs }: Teacher): Promise<Scaffold> {
  const rng = new Rng(48_64);
  const basis = async (name: string, n: number): Promise<Tensor> => (await qr(rng.fork(name).normal([n, OUT], 1))).Q;
  const [left, right] = [await basis("left", OUT), await basis("right", IN)];
  const sigma = numbers(OUT, (i) => 2 / Math.sqrt(i + 1));
  const W = matmul(mul(left, sigma), transpose(right));
  const factor = numbers(OUT, (i) => Math.sin(1 + 1.7 * i));
  const changes: Record<Teacher["target"], () => Promise<Tensor>> = {
    full: async () => rng.fork("full").normal([OUT, IN], 1),
    orthogonal: async () => transpose(await basis("orthogonal", IN)),
    rank4: async () => matmul(rng.fork("B").normal([OUT, 4], 1), rng.fork("A").normal([4, IN], 1)),
    "singular-values": async () => {
      const { U, S, Vh } = await svd(W);
      return matmul(mul(U, mul(S, factor)), Vh);
    },
    "ldu-diagonal": async () => {
      const { P, L, D, U } = await ldu(W);
      return embedding(matmul(mul(L, mul(D, factor)), U), tensor(inverseOrder((await P.data()) as Int32Array), [OUT], "i32"));
    },
  };
  const change = await changes[target]();
  const size = async (x: Tensor): Promise<number> => Math.sqrt(sumSquares([copyOf(x)]));
  const goal = copyOf(add(W, scale(change, (0.5 * (await size(W))) / (await size(change)))));
  const std = numbers(IN, (i) => (i + 1) ** powers[inputs]);
  const draw = (stream: Rng, rows: number): Tensor => mul(stream.normal([rows, IN], 1), std);
  const base = modelOf("linear-teacher", new Map([["linear", copyOf(W)]]), (_apply, x) => x);
  const test = copyOf(draw(rng.fork("test"), 4096));
  const errorOf = async (model: Model): Promise<number> => Number((await noGrad(() => norm(sub(forward(model, test), linear(test, goal)))).data())[0]);
  const start = await errorOf(base);
  return {
    base,
    task: regression,
    batch(seed, k) {
      const x = draw(rng.fork(`${seed}/${k}`), ROWS);
      return { ids: [], inputs: { x, y: linear(x, goal) } };
    },
    measure: async (model) => (await errorOf(model)) / start,
  };
}
