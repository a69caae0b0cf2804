import { qr } from "strut/linalg";
import { unfreeze, type Model } from "strut/models";
import type { Batch } from "strut/nn";
import { add, copyOf, embedding, linear, max, mul, relu, Rng, scope, tanh, tensor, type Tensor } from "strut/tensor";
import { modelOf } from "./model.ts";

const WIDTHS = [32, 64, 64, 10] as const;
const [FEATURES, SAMPLES, ROWS, CLASSES] = [32, 4096, 128, 10];
/** Of the teacher's first matrix: makes the task as hard as the sheet's, whose SGD needs 192 to 198 steps to a loss of .7. */
const GAIN = 3;

/** A perceptron from scratch, and its batches. */
export interface FromScratch {
  model(seed: number): Model;
  batch(seed: number, k: number): Batch;
}

/**
 * A perceptron 32-64-64-10 (ReLU, torch's start) on 4,096 samples labelled by a random tanh network of centred inputs. Inputs have
 * standard deviations from 1 down to 10^−1.5 along random directions and a mean of 0.5·N(0, 1); "isotropic" ones deviate by 1 around 0.
 */
export async function skewedInputs(inputs: "skewed" | "isotropic"): Promise<FromScratch> {
  const rng = new Rng(32_064);
  const turn = (await qr(rng.fork("turn").normal([FEATURES, FEATURES], 1))).Q;
  const [floor, shift] = inputs === "skewed" ? [-1.5, 0.5] : [0, 0];
  const made = scope(() => {
    const spread = tensor(
      Array.from({ length: FEATURES }, (_, i) => 10 ** ((floor * i) / (FEATURES - 1))),
      [FEATURES],
    );
    const centred = linear(mul(rng.fork("x").normal([SAMPLES, FEATURES], 1), spread), turn);
    const hidden = tanh(linear(centred, rng.fork("teacher/0").normal([64, FEATURES], GAIN / Math.sqrt(FEATURES))));
    return {
      x: copyOf(add(centred, rng.fork("mean").normal([FEATURES], shift))),
      labels: copyOf(max(linear(hidden, rng.fork("teacher/1").normal([CLASSES, 64], 1))).indices),
    };
  });
  const labels = (await made.labels.data()) as Int32Array;
  return {
    model(seed) {
      const drawn = (kind: string) =>
        new Map(
          WIDTHS.slice(1).map((out, i): [string, Tensor] => {
            const shape = kind === "weight" ? [out, WIDTHS[i]!] : [out];
            return [`fc${i}`, copyOf(rng.fork(`${seed}/${kind}/${i}`).uniform(shape, 1 / Math.sqrt(WIDTHS[i]!)))];
          }),
        );
      return unfreeze(modelOf("mlp", drawn("weight"), (apply, h) => relu(apply("fc1", relu(apply("fc0", h)))), drawn("bias")));
    },
    batch(seed, k) {
      const chosen = rng.fork(`${seed}/${k}`);
      const rows = Int32Array.from({ length: ROWS }, () => chosen.integer(SAMPLES));
      return {
        ids: [],
        inputs: {
          x: embedding(made.x, tensor(rows, [ROWS], "i32")),
          labels: tensor(
            rows.map((row) => labels[row]!),
            [ROWS],
            "i32",
          ),
        },
      };
    },
  };
}
