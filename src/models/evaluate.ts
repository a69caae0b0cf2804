import { z } from "zod";
import { StrutError } from "../errors.ts";
import type { Tokenizer } from "../formats/tokenizer.ts";
import { parseOptions } from "../nn/options.ts";
import { concat, free, noGrad, reshape, scope, slice, tensor, tokenLosses } from "../tensor/index.ts";
import { yieldToEvents } from "../nn/events.ts";
import { languageDimensions, applyLinear, hidden, type Model } from "./model.ts";

export const evaluationOptions = z.object({
  window: z.int().min(2).optional().describe("tokens that are fed together; the first of them is not scored; defaults to the model's context"),
});

export interface Evaluation {
  /** Mean of −log p over all scored tokens, in nats. */
  readonly loss: number;
  /** exp(loss) */
  readonly perplexity: number;
  /** How many tokens were scored. */
  readonly tokens: number;
  readonly seconds: number;
}

export interface EvaluationProgress {
  /** Scored so far, of `total`. */
  readonly tokens: number;
  readonly total: number;
  /** Mean so far. */
  readonly loss: number;
}

export interface EvaluateOptions extends z.input<typeof evaluationOptions> {
  readonly onProgress?: (progress: EvaluationProgress) => void;
  /** Throws its reason when it fires. */
  readonly signal?: AbortSignal;
}

/** Work of one pass, in floating-point operations: about a tenth of a second on one core. */
const PASS = 4e9;
/** Most tokens of one pass. */
const TOKENS = 8192;
/** Most logits held at once. */
const LOGITS = 2 ** 21;

/**
 * How well a model predicts a text: the mean of −log p over its tokens. The text is cut into windows that do not overlap;
 * each is fed alone, its first token is not scored, and the last may be shorter (a single token is left out). Every scored
 * token counts the same; sums are f64. Equal windows run together, so many that a pass stays short and its memory bounded.
 *
 * @example
 * const { loss, perplexity } = await evaluate(model, tokenizer.encode(text, { special: false }), { window: 256 });
 */
export async function evaluate(model: Model, ids: ArrayLike<number>, options: EvaluateOptions = {}): Promise<Evaluation> {
  const { onProgress, signal, ...rest } = options;
  const { context } = languageDimensions(model);
  const { window = context } = parseOptions({ id: "evaluate", options: evaluationOptions }, rest);
  if (window > context)
    throw new StrutError("context", `a window of ${window} tokens does not fit into the model's context of ${context}`, {
      path: "window",
      hint: `Use at most ${context}.`,
    });
  if (ids.length < 2) throw new StrutError("range", `the text has ${ids.length} tokens; the first is not scored, so at least 2 are needed`);
  const began = performance.now();
  const all = Int32Array.from(ids);
  const total = scored(all.length, window);
  let [sum, tokens] = [0, 0];
  for (const { rows, width, start } of passes(all.length, window, rowsOfPass(model, window))) {
    signal?.throwIfAborted();
    sum += await lossOf(model, all.subarray(start, start + rows * width), rows, width);
    tokens += rows * (width - 1);
    onProgress?.({ tokens, total, loss: sum / tokens });
    await yieldToEvents();
  }
  const loss = sum / tokens;
  return { loss, perplexity: Math.exp(loss), tokens, seconds: (performance.now() - began) / 1000 };
}

/** `evaluate` on a text, which is one string without special tokens. */
export const evaluateText = (model: Model, tokenizer: Tokenizer, text: string, options?: EvaluateOptions): Promise<Evaluation> =>
  evaluate(model, tokenizer.encode(text, { special: false }), options);

const scored = (length: number, window: number): number => Math.floor(length / window) * (window - 1) + Math.max(0, (length % window) - 1);

/** Fixed by sizes alone, so that the same numbers are added in the same order on every machine. */
function rowsOfPass(model: Model, window: number): number {
  const flops = model.sites.reduce((total, { kind, weight }) => total + (kind === "linear" ? weight.cost().flops : 0), 1);
  return Math.max(1, Math.floor(Math.min(PASS / flops, TOKENS) / window));
}

/** Runs of equal windows, then the shorter last one. */
function* passes(length: number, window: number, rows: number): Generator<{ rows: number; width: number; start: number }> {
  const whole = Math.floor(length / window);
  for (let first = 0; first < whole; first += rows) yield { rows: Math.min(rows, whole - first), width: window, start: first * window };
  const rest = length % window;
  if (rest > 1) yield { rows: 1, width: rest, start: whole * window };
}

/** Σ −log p of a few windows, their first tokens left out. */
async function lossOf(model: Model, ids: Int32Array, rows: number, width: number): Promise<number> {
  const targets = Int32Array.from(ids, (_, i) => ((i + 1) % width === 0 ? -1 : ids[i + 1]!));
  const losses = noGrad(() =>
    scope(() => {
      const states = reshape(hidden(model, tensor(ids, [rows, width], "i32")), [rows * width, -1]);
      const chunk = Math.max(64, Math.floor(LOGITS / languageDimensions(model).vocabularySize));
      const parts = Array.from({ length: Math.ceil(targets.length / chunk) }, (_, i) => {
        const [from, to] = [i * chunk, Math.min(targets.length, (i + 1) * chunk)];
        return scope(() =>
          tokenLosses(applyLinear(model, model.architecture.head, slice(states, 0, from, to), {}), tensor(targets.subarray(from, to), [to - from], "i32")),
        );
      });
      return concat(parts);
    }),
  );
  const values = await losses.data();
  free(losses);
  return (values as Float32Array).reduce((total, x) => total + x, 0);
}
