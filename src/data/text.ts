import { StrutError } from "../errors.ts";
import type { Batch } from "../nn/contracts.ts";
import { Rng } from "../tensor/index.ts";
import { fingerprint, type BatchSource } from "./batches.ts";

/** Splits a stream of tokens into what is trained on and its last part, held out for evaluation. */
export function splitTail<T extends { slice(start: number, end?: number): T; readonly length: number }>(ids: T, fraction = 0.1): { train: T; heldOut: T } {
  if (!(fraction >= 0 && fraction < 1)) throw new StrutError("option", `the held-out share is ${fraction}; it must lie in [0, 1)`, { path: "heldOut" });
  const end = ids.length - Math.round(ids.length * fraction);
  return { train: ids.slice(0, end), heldOut: ids.slice(end) };
}

export interface TokenBatchOptions {
  /** Tokens in a row of a batch. */
  window: number;
  /** Rows of a batch. */
  rows: number;
  /** Defaults to 0. */
  seed?: number;
}

/**
 * Batches of windows from a stream of tokens. An epoch cuts the stream into windows that do not overlap, from a start of its
 * own, and takes them in random order; what is left over is in other epochs' windows. Batch k depends on the seed and k alone.
 *
 * @example
 * const data = tokenBatches(tokenizer.encode("Once upon a time. ".repeat(60)), { window: 32, rows: 4 });
 */
export function tokenBatches(ids: ArrayLike<number>, { window, rows, seed = 0 }: TokenBatchOptions): BatchSource {
  for (const [name, value, least] of [["window", window, 2], ["rows", rows, 1]] as const)
    if (!(Number.isInteger(value) && value >= least)) throw new StrutError("option", `${name} is ${value}; it must be a whole number of at least ${least}`, { path: name });
  if (ids.length < window * rows)
    throw new StrutError("data", `the text has ${ids.length} tokens; one batch of ${rows} windows of ${window} needs ${window * rows}`, { hint: "Use a longer text, shorter windows or fewer rows." });
  const tokens = Int32Array.from(ids);
  const root = new Rng(seed).fork("windows");
  // starts move by less than a window, so long as that leaves room for whole batches
  const perEpoch = Math.floor(Math.floor(tokens.length / window) / rows);
  const windows = perEpoch * rows;
  const room = Math.min(window - 1, tokens.length - windows * window);
  let made: { epoch: number; start: number; order: Int32Array } | undefined;
  const epochAt = (epoch: number) => {
    if (made?.epoch !== epoch) {
      const rng = root.fork(String(epoch));
      made = { epoch, start: rng.integer(room + 1), order: rng.permutation(windows) };
    }
    return made;
  };
  return {
    epochLength: perEpoch,
    fingerprint: `tokens ${fingerprint(tokens)}, ${rows} × ${window}, seed ${seed}`,
    batch(k): Batch {
      const { start, order } = epochAt(Math.floor(k / perEpoch));
      const first = (k % perEpoch) * rows;
      return {
        ids: Array.from({ length: rows }, (_, r) => {
          const at = start + order[first + r]! * window;
          return tokens.subarray(at, at + window);
        }),
      };
    },
  };
}

/** What separates texts in a plain file, as in the data sets of GPT-2 and TinyStories. */
const SEPARATOR = "<|endoftext|>";

/**
 * The texts of a .jsonl file (one object a line, the text under `field`), or of a plain one: the parts between <|endoftext|>, or the
 * whole. `path` stands in messages; .gz at its end says nothing of the content.
 */
export function textsOf(content: string, path: string, field = "text"): string[] {
  if (!/\.(jsonl|ndjson)(\.gz)?$/i.test(path)) {
    if (!content.includes(SEPARATOR)) return [content];
    const parts = content.split(SEPARATOR).map((part) => part.trim());
    return parts.filter((part) => part !== "");
  }
  const texts: string[] = [];
  for (const [index, line] of content.split("\n").entries()) {
    if (line.trim() === "") continue;
    const where = { path: `${path}:${index + 1}` };
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (cause) {
      throw new StrutError("data", `line ${index + 1} of ${path} is not valid JSON: ${(cause as Error).message}`, { ...where, cause, hint: "A .jsonl file holds one JSON object on each line." });
    }
    const text = typeof value === "object" && value !== null && Object.hasOwn(value, field) ? (value as Record<string, unknown>)[field] : undefined;
    if (typeof text !== "string")
      throw new StrutError("data", `line ${index + 1} of ${path} has no text under "${field}"`, { ...where, hint: typeof value === "object" && value ? `It has ${Object.keys(value).slice(0, 5).join(", ")}.` : "Each line must be an object." });
    texts.push(text);
  }
  if (texts.length === 0) throw new StrutError("data", `${path} holds no text`, { path });
  return texts;
}

/** What turns text into ids; `Tokenizer` of formats/ is one. */
export interface Encoder {
  encode(text: string, options?: { special?: boolean }): number[];
  readonly eos?: number | undefined;
}

/** Texts as one stream of tokens: a single text as it is, several with an end-of-sequence token after each. */
export function tokenStream(tokenizer: Encoder, texts: readonly string[]): Int32Array {
  if (texts.length === 1) return Int32Array.from(tokenizer.encode(texts[0]!, { special: false }));
  const end = tokenizer.eos === undefined ? tokenizer.encode("\n", { special: false }) : [tokenizer.eos];
  const parts = texts.map((text) => tokenizer.encode(text, { special: false }).concat(end));
  const out = new Int32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
