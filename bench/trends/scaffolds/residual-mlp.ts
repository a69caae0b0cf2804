import { qr } from "strut/linalg";
import { unfreeze } from "strut/models";
import { add, copyOf, embedding, linear, relu, Rng, scale, tensor, type Tensor } from "strut/tensor";
import { classification, train } from "strut/training";
import { accuracy, modelOf, type Scaffold } from "./model.ts";

const [WIDTH, CLASSES, CLUSTERS, ROWS] = [128, 10, 100, 64];
/** Noise around a cluster's centre, whose coordinates have standard deviation 1. */
const NOISE = 1.2;

const made = new Map<number, Promise<Scaffold>>();

/**
 * A residual MLP, h + relu(W·h) six times (or `depth` times) over 128 features and a head, trained on Gaussian clusters; the task is the
 * same clusters turned by a random rotation halfway and moved. The figure is accuracy on 4,000 points of the turned clusters.
 */
export function residualMlp(depth = 6): Promise<Scaffold> {
  if (!made.has(depth)) made.set(depth, build(depth));
  return made.get(depth)!;
}

async function build(depth: number): Promise<Scaffold> {
  const rng = new Rng(6_128);
  const centres = copyOf(rng.fork("centres").normal([CLUSTERS, WIDTH], 1));
  const labelOf = Int32Array.from({ length: CLUSTERS }, (_, i) => i % CLASSES);
  const rotation = (await qr(rng.fork("turn").normal([WIDTH, WIDTH], 1))).Q;
  const moved = copyOf(add(add(scale(centres, 0.6), scale(linear(centres, rotation), 0.8)), scale(rng.fork("move").normal([WIDTH], 1), 0.5)));
  const points = (stream: Rng, of: Tensor, rows: number): { x: Tensor; labels: Tensor } => {
    const cluster = Int32Array.from({ length: rows }, () => stream.integer(CLUSTERS));
    const labels = cluster.map((c) => labelOf[c]!);
    return { x: add(embedding(of, tensor(cluster, [rows], "i32")), stream.normal([rows, WIDTH], NOISE)), labels: tensor(labels, [rows], "i32") };
  };
  const weights = new Map<string, Tensor>(
    Array.from(
      { length: depth },
      (_, i) => [`layers.${i}.fc`, copyOf(rng.fork(`W${i}`).normal([WIDTH, WIDTH], (0.5 * Math.sqrt(6 / depth)) / Math.sqrt(WIDTH)))] as const,
    ),
  );
  weights.set("head", copyOf(rng.fork("head").normal([CLASSES, WIDTH], 1 / Math.sqrt(WIDTH))));
  function pass(apply: (path: string, x: Tensor) => Tensor, x: Tensor): Tensor {
    return Array.from({ length: depth }, (_, i) => i).reduce((h, i) => add(h, relu(apply(`layers.${i}.fc`, h))), x);
  }
  const blank = modelOf("residual-mlp", weights, pass);
  const { model: trained } = await train(unfreeze(blank), {
    task: classification,
    batches: (k) => ({ ids: [], inputs: points(rng.fork(`pretrain/${k}`), centres, ROWS) }),
    steps: 600,
    learningRate: 1e-3,
    weightDecay: 0.01,
  });
  const final = new Map<string, Tensor>([...trained.layers].map(([path, { weight }]) => [path, copyOf(weight)]));
  const base = modelOf("residual-mlp", final, pass);
  const drawn = points(rng.fork("test"), moved, 4000);
  const test = { x: copyOf(drawn.x), labels: copyOf(drawn.labels) };
  return {
    base,
    task: classification,
    batch: (seed, k) => ({ ids: [], inputs: points(rng.fork(`${seed}/${k}`), moved, ROWS) }),
    measure: (model) => accuracy(model, test),
  };
}
