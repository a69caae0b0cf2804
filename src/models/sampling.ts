import { z } from "zod";
import { StrutError } from "../errors.ts";
import { parseOptions } from "../nn/options.ts";

/** How the next token is chosen. Names are those of transformers' `GenerationConfig`, in camelCase. */
export const generationOptions = z.object({
  maxNewTokens: z.int().nonnegative().default(100).describe("most tokens that are made; defaults to 100"),
  doSample: z.boolean().optional().describe("draw tokens instead of taking the likeliest; defaults to true if temperature, topK or topP is given"),
  temperature: z.number().nonnegative().optional().describe("divides the logits before a token is drawn, 0 takes the likeliest; defaults to 1"),
  topK: z.int().nonnegative().optional().describe("draw from the k likeliest tokens and those equal to the last of them; defaults to 0, all"),
  topP: z.number().gt(0).max(1).optional().describe("draw from the fewest likeliest tokens whose probabilities reach p together; defaults to 1, all"),
  repetitionPenalty: z
    .number()
    .positive()
    .default(1)
    .describe("divides positive and multiplies negative logits of tokens that occurred, the prompt included; defaults to 1"),
  seed: z.int().default(0).describe("where the random numbers start; defaults to 0"),
  stopStrings: z.array(z.string().min(1)).default([]).describe("end the text before the first of these; defaults to none"),
  useCache: z.boolean().default(true).describe("keep keys and values of earlier tokens instead of computing them anew; defaults to true"),
});

export type GenerationOptions = z.input<typeof generationOptions>;
export type Sampling = z.output<typeof generationOptions>;

/** Checks the options and fills in what they default to. */
export const readGenerationOptions = (given: GenerationOptions): Sampling => parseOptions({ id: "generate", options: generationOptions }, given);

/** Whether these options draw tokens, rather than take the likeliest. */
export const samples = ({ doSample, temperature, topK, topP }: Sampling): boolean =>
  temperature !== 0 && (doSample ?? (temperature ?? topK ?? topP) !== undefined);

/** Makes tokens that occurred less likely: x/penalty if x > 0, x·penalty if not, each token once. Keskar et al. 2019, arXiv:1909.05858. */
export function penalizeRepetition(scores: Float64Array, seen: ReadonlySet<number>, penalty: number): void {
  for (const id of seen) scores[id] = scores[id]! < 0 ? scores[id]! * penalty : scores[id]! / penalty;
}

/** Leaves the k largest scores; those equal to the k-th stay, as in torch. Fan et al. 2018, arXiv:1805.04833. */
function keepTopK(scores: Float64Array, k: number): void {
  if (k === 0 || k >= scores.length) return;
  const least = scores.toSorted().at(-k)!;
  for (let i = 0; i < scores.length; i++) if (scores[i]! < least) scores[i] = -Infinity;
}

/**
 * Leaves the nucleus: the likeliest tokens up to the one that takes their sum to p. Holtzman et al. 2020, arXiv:1904.09751.
 * As in transformers, sums run upwards from the unlikeliest, which are removed up to 1 − p; of equal ones the first go first.
 */
function keepTopP(scores: Float64Array, p: number): void {
  if (p >= 1) return;
  const probabilities = softmax(scores);
  const sorted = probabilities.toSorted();
  let removed = 0;
  for (let sum = sorted[0]!; removed < sorted.length - 1 && sum <= 1 - p; sum += sorted[removed]!) removed++;
  const least = sorted[removed]!;
  let equal = removed - sorted.indexOf(least);
  for (let i = 0; i < scores.length; i++) if (probabilities[i]! < least || (probabilities[i] === least && equal-- > 0)) scores[i] = -Infinity;
}

function softmax(scores: Float64Array): Float64Array {
  const top = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = scores.map((x) => Math.exp(x - top));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => w / total);
}

/**
 * Probabilities of the next token, in f64: repetition penalty, temperature, top-k, top-p, in transformers' order.
 * `scores` is overwritten.
 *
 * @example
 * const p = distribution(Float64Array.of(2, 1, 0), new Set(), readGenerationOptions({ topK: 2 }));
 */
export function distribution(
  scores: Float64Array,
  seen: ReadonlySet<number>,
  { temperature = 1, topK = 0, topP = 1, repetitionPenalty }: Sampling,
): Float64Array {
  penalizeRepetition(scores, seen, repetitionPenalty);
  // from the largest score down, so that no temperature is too small for f64
  const top = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  for (let i = 0; i < scores.length; i++) scores[i] = (scores[i]! - top) / temperature;
  keepTopK(scores, topK);
  keepTopP(scores, topP);
  return softmax(scores);
}

/** The index at which the sum of probabilities passes u in [0, 1). */
function draw(probabilities: Float64Array, u: number): number {
  let sum = 0;
  let last = 0;
  for (let id = 0; id < probabilities.length; id++) {
    if (probabilities[id] === 0) continue;
    sum += probabilities[id]!;
    last = id;
    if (u < sum) return id;
  }
  return last; // rounding left the sum below u
}

/** The next token from its logits: the likeliest (the first of equal ones), or drawn with a random number in [0, 1). */
export function chooseToken(logits: ArrayLike<number>, seen: ReadonlySet<number>, options: Sampling, random: () => number): number {
  const scores = new Float64Array(logits);
  const top = scores.reduce((a, b) => Math.max(a, b), -Infinity); // NaN if there is one
  if (!Number.isFinite(top))
    throw new StrutError("nan", `the model's logits are not finite (their maximum is ${top})`, {
      hint: "Its weights or an adapter's may have diverged: evaluate it on a text it should know.",
    });
  if (samples(options)) return draw(distribution(scores, seen, options), random());
  penalizeRepetition(scores, seen, options.repetitionPenalty);
  return scores.reduce((best, x, id) => (x > scores[best]! ? id : best), 0);
}
