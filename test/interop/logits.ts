import { forward, type Model } from "../../src/models/index.ts";
import { noGrad, tensor } from "../../src/tensor/index.ts";

export type Inputs = Record<string, number[][]>;
/** Of the last two positions of each row. */
export type Logits = Record<string, number[][][]>;

/** Largest difference from the stored logits of the last two positions. */
export async function logitDifference(model: Model, inputs: Inputs, logits: Logits): Promise<number> {
  let most = 0;
  for (const [key, rows] of Object.entries(inputs)) {
    const [batch, length] = [rows.length, rows[0]!.length];
    const out = noGrad(() => forward(model, tensor(rows.flat(), [batch, length], "i32")));
    const [data, vocabulary] = [await out.data(), out.shape[2]!];
    logits[key]!.forEach((row, b) =>
      row.forEach((position, p) =>
        position.forEach((value, v) => (most = Math.max(most, Math.abs(value - Number(data[(b * length + length - 2 + p) * vocabulary + v]))))),
      ),
    );
  }
  return most;
}
