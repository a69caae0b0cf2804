import { randomModel, unfreeze } from "strut/models";
import { add, Rng, tensor, type Tensor } from "strut/tensor";
import { classification, train } from "strut/training";
import { accuracy, frozen, type Scaffold } from "./model.ts";

const [CLASSES, SIDE, ROWS, SHOTS] = [8, 8, 32, 512];
/** The gratings as the base learns them, and as the task has them: turned and in other colours. */
const learnt = { turn: 0, colours: [1, 0.6, 0.2] };
const shifted = { turn: 0.25, colours: [-0.3, 0.5, -1] };
const NOISE = 2;

let made: Promise<Scaffold> | undefined;

/**
 * A ResNet of five 3×3 convolutions (16 and 32 channels), trained on gratings of four orientations and two frequencies under noise; the
 * task is the same gratings turned and in other colours, from 512 images a seed. The figure is accuracy on 1,000 others.
 */
export const textures = (): Promise<Scaffold> => (made ??= build());

function images(rng: Rng, rows: number, { turn, colours }: typeof learnt): { x: Tensor; labels: Tensor } {
  const labels = Int32Array.from({ length: rows }, () => rng.integer(CLASSES));
  const phases = Array.from(labels, () => 2 * Math.PI * rng.random());
  const values = Float32Array.from({ length: rows * 3 * SIDE * SIDE }, (_, at) => {
    const [row, colour, y, x] = [Math.floor(at / (3 * SIDE * SIDE)), Math.floor(at / (SIDE * SIDE)) % 3, Math.floor(at / SIDE) % SIDE, at % SIDE];
    const [angle, frequency] = [(Math.PI * (labels[row]! % 4)) / 4 + turn, labels[row]! < 4 ? 0.9 : 1.6];
    return colours[colour]! * Math.sin(frequency * (x * Math.cos(angle) + y * Math.sin(angle)) + phases[row]!);
  });
  const shape = [rows, 3, SIDE, SIDE];
  return { x: add(tensor(values, shape), rng.normal(shape, NOISE)), labels: tensor(labels, [rows], "i32") };
}

async function build(): Promise<Scaffold> {
  const rng = new Rng(3_316);
  const blank = randomModel({ model_type: "resnet-cifar", blocks_per_stage: [1, 1], widths: [16, 32], num_labels: CLASSES }, (name, shape) =>
    rng.fork(name).normal(shape, Math.sqrt(2 / shape.slice(1).reduce((product, n) => product * n, 1))),
  );
  const { model } = await train(unfreeze(blank), {
    task: classification,
    batches: (k) => ({ ids: [], inputs: images(rng.fork(`pretrain/${k}`), ROWS, learnt) }),
    steps: 150,
    learningRate: 2e-3,
  });
  const test = images(rng.fork("test"), 1000, shifted);
  return {
    base: frozen(model),
    task: classification,
    batch: (seed, k) => ({ ids: [], inputs: images(rng.fork(`${seed}/${k % (SHOTS / ROWS)}`), ROWS, shifted) }),
    measure: (model) => accuracy(model, test),
  };
}
