import { forward, languageDimensions, type Model } from "../models/index.ts";
import { free, noGrad, scope, tensor, type TypedArray } from "../tensor/index.ts";

/** Token ids that only depend on the vocabulary and the context: spread over both, the same in every run. */
function probeIds(model: Model): { ids: Int32Array; shape: [number, number] } {
  const { vocabularySize, context } = languageDimensions(model);
  const width = Math.min(64, context);
  const ids = Int32Array.from({ length: 2 * width }, (_, i) => Math.imul(i + 1, 2654435761) >>> 1).map((x) => x % vocabularySize);
  return { ids, shape: [2, width] };
}

async function logits(model: Model, { ids, shape }: ReturnType<typeof probeIds>): Promise<TypedArray> {
  const out = noGrad(() => scope(() => forward(model, tensor(ids, shape, "i32"))));
  const values = await out.data();
  free(out);
  return values;
}

/** The largest difference between the logits of two models on a fixed probe; NaN if either has one. */
export async function largestDifference(a: Model, b: Model): Promise<{ difference: number; positions: number }> {
  const probe = probeIds(a);
  const [left, right] = [await logits(a, probe), await logits(b, probe)];
  let difference = 0;
  for (let i = 0; i < left.length; i++) {
    const distance = Math.abs(Number(left[i]) - Number(right[i]));
    if (!(distance <= difference)) difference = distance;
    if (Number.isNaN(difference)) break;
  }
  return { difference, positions: probe.ids.length };
}
