import { qr } from "strut/linalg";
import { unfreeze, type Model } from "strut/models";
import type { Batch } from "strut/nn";
import { add, copyOf, embedding, linear, max, mul, relu, Rng, scope, tanh, tensor, type Tensor } from "strut/tensor";
import { modelOf } from "./model.ts";

const WIDTHS = [32, 64, 64, 10] as const;
const [FEATURES, SAMPLES, ROWS, CLASSES] = [32, 4096, 128, 10];

/**
 * A perceptron 32-64-64-10 (ReLU, torch's start) from scratch, on 4,096 samples labelled by a random tanh network 32-64-10. Inputs have
 * standard deviations from 1 down to 10^−1.5 along random directions and a mean of 0.5·N(0, 1); `isotropic` ones are centred, of deviation 1.
 */
export async function skewedInputs(inputs: "skewed" | "isotropic"): Promise<{ model(seed: number): Model; batch(seed: number, k: number): Batch }> {
  const rng = new Rng(32_064);
  const turn = (await qr(rng.fork("turn").normal([FEATURES, FEATURES], 1))).Q;
  const spread = tensor(
    Array.from({ length: FEATURES }, (_, i) => (inputs === "skewed" ? 10 ** ((-1.5 * i) / (FEATURES - 1)) : 1)),
    [FEATURES],
  );
  const made = scope(() => {
    const turned = linear(mul(rng.fork("x").normal([SAMPLES, FEATURES], 1), spread), turn);
    const points = inputs === "skewed" ? add(turned, rng.fork("mean").normal([FEATURES], 0.5)) : turned;
    const hidden = tanh(linear(points, rng.fork("teacher/0").normal([64, FEATURES], 1 / Math.sqrt(FEATURES))));
    const found = max(linear(hidden, rng.fork("teacher/1").normal([CLASSES, 64], 1))).indices;
    return { x: copyOf(points), labels: copyOf(found) };
  });
  const { x } = made;
  const labels = (await made.labels.data()) as Int32Array;
  const counts = new Map<number, number>();
  for (const l of labels) counts.set(l, (counts.get(l) ?? 0) + 1);
  console.error(inputs, [...counts].sort((a, b) => a[0] - b[0]).map(([, n]) => n).join(" "));
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
      return { ids: [], inputs: { x: embedding(x, tensor(rows, [ROWS], "i32")), labels: tensor(rows.map((row) => labels[row]!), [ROWS], "i32") } };
    },
  };
}
