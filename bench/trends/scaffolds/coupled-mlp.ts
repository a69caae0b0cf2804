import { makeModel, unfreeze, type Architecture, type Model } from "strut/models";
import type { Batch } from "strut/nn";
import { add, copyOf, embedding, hostNumbers, relu, Rng, scale, tensor, type Tensor } from "strut/tensor";
import { classification, train } from "strut/training";
import { accuracy, frozen, modelOf, type Scaffold } from "./model.ts";

const [WIDTH, HIDDEN, DEPTH, CLASSES, CLUSTERS, ROWS, SAMPLES] = [64, 256, 4, 10, 40, 64, 600];
/** Noise around a cluster's centre, whose coordinates have standard deviation 1. */
const NOISE = 1.2;

/** Clusters to learn again, the old ones: what alignment trains on. */
export interface CoupledMlp extends Scaffold {
  readonly old: { batch(seed: number, k: number): Batch };
}

/**
 * A residual MLP, h + down·relu(up·h) in four blocks of 256 neurons over 64 features, trained on Gaussian clusters, whose neurons can be
 * cut; the task is 600 samples of the same classes around centres mixed with new ones, of which `share` is new (in amplitude, at
 * unchanged size). The figure is accuracy on 4,000 other points.
 */
export async function coupledMlp(shares: readonly number[]): Promise<CoupledMlp[]> {
  const rng = new Rng(4_064);
  const normal = (name: string, shape: readonly number[], spread = 1): Tensor => copyOf(rng.fork(name).normal(shape, spread));
  const points = (stream: Rng, centres: Tensor, rows: number): { x: Tensor; labels: Tensor } => {
    const cluster = Int32Array.from({ length: rows }, () => stream.integer(CLUSTERS));
    const x = add(embedding(centres, tensor(cluster, [rows], "i32")), stream.normal([rows, WIDTH], NOISE));
    return {
      x,
      labels: tensor(
        cluster.map((c) => c % CLASSES),
        [rows],
        "i32",
      ),
    };
  };
  const held = ({ x, labels }: { x: Tensor; labels: Tensor }) => ({ x: copyOf(x), labels: copyOf(labels) });
  const centres = normal("centres", [CLUSTERS, WIDTH]);
  const old = { batch: (seed: number, k: number) => ({ ids: [], inputs: points(rng.fork(`old/${seed}/${k}`), centres, ROWS) }) };
  const { model } = await train(unfreeze(blank(normal)), {
    task: classification,
    batches: (k) => old.batch(0, k),
    steps: 1500,
    learningRate: 1e-3,
    weightDecay: 0.01,
  });
  const base = frozen(model);
  return shares.map((share, i): CoupledMlp => {
    const size = Math.hypot(share, 1 - share);
    const moved = copyOf(add(scale(centres, (1 - share) / size), scale(normal("new", [CLUSTERS, WIDTH]), share / size)));
    const test = held(points(rng.fork(`test/${i}`), moved, 4000));
    const samples = new Map<number, ReturnType<typeof held>>();
    const batch = (seed: number, k: number) => {
      if (!samples.has(seed)) samples.set(seed, held(points(rng.fork(`samples/${i}/${seed}`), moved, SAMPLES)));
      const { x, labels } = samples.get(seed)!;
      const order = rng.fork(`order/${seed}/${k}`);
      const chosen = Int32Array.from({ length: ROWS }, () => order.integer(SAMPLES));
      const own = hostNumbers(labels);
      return {
        ids: [],
        inputs: {
          x: embedding(x, tensor(chosen, [ROWS], "i32")),
          labels: tensor(
            chosen.map((sample) => Number(own[sample])),
            [ROWS],
            "i32",
          ),
        },
      };
    };
    return { base, old, task: classification, batch, measure: (tuned) => accuracy(tuned, test) };
  });
}

/** Random weights; `coupled` says that neuron i is row i of up and column i of down. */
function blank(normal: (name: string, shape: readonly number[], spread?: number) => Tensor): Model {
  const blocks = Array.from({ length: DEPTH }, (_, depth) => `layers.${depth}`);
  const weights = new Map<string, Tensor>(
    blocks.flatMap((path) => [
      [`${path}.up`, normal(`${path}.up`, [HIDDEN, WIDTH], 1 / Math.sqrt(WIDTH))] as const,
      [`${path}.down`, normal(`${path}.down`, [WIDTH, HIDDEN], 0.5 / Math.sqrt(HIDDEN))] as const,
    ]),
  );
  weights.set("head", normal("head", [CLASSES, WIDTH], 1 / Math.sqrt(WIDTH)));
  const pass = (apply: (path: string, x: Tensor) => Tensor, x: Tensor): Tensor =>
    blocks.reduce((h, path) => add(h, apply(`${path}.down`, relu(apply(`${path}.up`, h)))), x);
  const model = modelOf("coupled-mlp", weights, pass);
  const coupled: NonNullable<Architecture["coupled"]> = () =>
    blocks.map((path, depth) => ({
      kind: "neurons",
      depth,
      units: HIDDEN,
      members: [
        { path: `${path}.up`, side: "out", size: 1, roles: ["up"] },
        { path: `${path}.down`, side: "in", size: 1, roles: ["down"] },
      ],
    }));
  return makeModel({ ...model, architecture: { ...model.architecture, coupled } });
}
