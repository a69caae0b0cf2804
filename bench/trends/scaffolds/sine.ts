import { unfreeze } from "strut/models";
import { add, Rng, tanh, tensor, type Tensor } from "strut/tensor";
import { regression, train } from "strut/training";
import { frozen, modelOf, type Scaffold } from "./model.ts";

const [WIDTH, ROWS, NOISE] = [64, 50, 0.05];

const before = (x: number): number => Math.sin(2 * Math.PI * x);
const after = (x: number): number => before(x) + 0.3 * Math.cos(3 * Math.PI * x);

/** x and 1, and a function of x. */
const pairs = (xs: readonly number[], f: (x: number) => number): { x: Tensor; y: Tensor } => ({
  x: tensor(
    xs.flatMap((x) => [x, 1]),
    [xs.length, 2],
  ),
  y: tensor(xs.map(f), [xs.length, 1]),
});

function samples(rng: Rng, f: (x: number) => number): { x: Tensor; y: Tensor } {
  const { x, y } = pairs(
    Array.from({ length: ROWS }, () => rng.random()),
    f,
  );
  return { x, y: add(y, rng.fork("noise").normal([ROWS, 1], NOISE)) };
}

let made: Promise<Scaffold> | undefined;

/**
 * tanh(W·tanh(lift·[x, 1])) and a head, 64 wide, fitted to 50 noisy values of sin 2πx on [0, 1]; the task is another 50, of
 * sin 2πx + 0.3 cos 3πx, all in each batch. The figure is the mean squared error to the function without noise.
 */
export const sine = (): Promise<Scaffold> => (made ??= build());

async function build(): Promise<Scaffold> {
  const rng = new Rng(2_3);
  const drawn = (name: string, shape: readonly number[], std: number): [string, Tensor] => [name, rng.fork(name).normal(shape, std)];
  const weights = new Map([
    drawn("lift", [WIDTH, 2], 3),
    drawn("hidden", [WIDTH, WIDTH], 1 / Math.sqrt(WIDTH)),
    drawn("head", [1, WIDTH], 1 / Math.sqrt(WIDTH)),
  ]);
  const first = samples(rng.fork("first"), before);
  const { model } = await train(unfreeze(modelOf("sine", weights, (apply, x) => tanh(apply("hidden", tanh(apply("lift", x)))))), {
    task: regression,
    batches: () => ({ ids: [], inputs: first }),
    steps: 250,
    learningRate: 1e-3,
    weightDecay: 0,
  });
  const test = pairs(
    Array.from({ length: 401 }, (_, i) => i / 400),
    after,
  );
  const drawnBy = new Map<number, { x: Tensor; y: Tensor }>();
  const of = (seed: number) => drawnBy.get(seed) ?? drawnBy.set(seed, samples(rng.fork(`task/${seed}`), after)).get(seed)!;
  return {
    base: frozen(model),
    task: regression,
    batch: (seed) => ({ ids: [], inputs: of(seed) }),
    measure: (of) => regression.loss(of, { ids: [], inputs: test }).item(),
  };
}
