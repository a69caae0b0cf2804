import { forward, type Model } from "strut/models";
import { add, concat, copyOf, linear, matmul, noGrad, norm, Rng, scale, sub, tensor, zeros, type Tensor } from "strut/tensor";
import { regression } from "strut/training";
import { modelOf, type Scaffold } from "./model.ts";

const [WIDTH, ROWS, RANK] = [32, 64, 6];
const names = ["first", "second", "third", "fourth"] as const;

let made: Promise<Scaffold> | undefined;

/**
 * Four linear layers side by side on the same input. The change that the first two must learn has rank 6, the last two need none. The
 * figure is the mean relative error of the two changes.
 */
export const fourLinears = (): Promise<Scaffold> => (made ??= build());

async function build(): Promise<Scaffold> {
  const rng = new Rng(4_32);
  const weights = new Map(names.map((name) => [name as string, copyOf(rng.fork(name).normal([WIDTH, WIDTH], 1 / Math.sqrt(WIDTH)))]));
  const change = (name: string, i: number): Tensor => {
    if (i > 1) return zeros([WIDTH, WIDTH]);
    const factor = (side: string, shape: readonly number[]): Tensor => rng.fork(`${name}/${side}`).normal(shape, 1);
    return scale(matmul(factor("B", [WIDTH, RANK]), factor("A", [RANK, WIDTH])), 1 / WIDTH);
  };
  const changes = names.map((name, i) => copyOf(change(name, i)));
  const goals = names.map((name, i) => copyOf(add(weights.get(name)!, changes[i]!)));
  const identity = (n: number): Tensor =>
    tensor(
      Array.from({ length: n * n }, (_, at) => Number(at % (n + 1) === 0)),
      [n, n],
    );
  const base = modelOf("four-linears", new Map([...weights, ["head", identity(4 * WIDTH)]]), (apply, x) =>
    concat(
      names.map((name) => apply(name, x)),
      1,
    ),
  );
  const basis = identity(WIDTH);
  return {
    base,
    task: regression,
    batch(seed, k) {
      const x = rng.fork(`${seed}/${k}`).normal([ROWS, WIDTH], 1);
      return {
        ids: [],
        inputs: {
          x,
          y: concat(
            goals.map((goal) => linear(x, goal)),
            1,
          ),
        },
      };
    },
    async measure(model: Model) {
      const outputs = (await noGrad(() => forward(model, basis)).data()) as Float32Array;
      let total = 0;
      for (const i of [0, 1]) {
        const own = tensor(
          Array.from({ length: WIDTH * WIDTH }, (_, at) => outputs[Math.floor(at / WIDTH) * 4 * WIDTH + i * WIDTH + (at % WIDTH)]!),
          [WIDTH, WIDTH],
        );
        const error = Number((await norm(sub(own, linear(basis, goals[i]!))).data())[0]);
        total += error / Number((await norm(changes[i]!).data())[0]) / 2;
      }
      return total;
    },
  };
}
