import { StrutError } from "../errors.ts";
import type { Tokenizer } from "../formats/tokenizer.ts";
import type { KvCache } from "../nn/contracts.ts";
import { contiguous, free, noGrad, Rng, scope, slice, tensor, type TypedArray } from "../tensor/index.ts";
import { yieldToEvents } from "../nn/events.ts";
import { fullCache } from "./blocks.ts";
import { languageDimensions, applyLinear, hidden, type Model } from "./model.ts";
import { chooseToken, readGenerationOptions, type GenerationOptions, type Sampling } from "./sampling.ts";

/** Why a text ended: its end token, a stop string, no room (maxNewTokens or the model's context), or the signal. */
export type Reason = "eos" | "stop" | "length" | "abort";

export interface Generation {
  /** All new tokens, with those of the end token or stop string. */
  readonly ids: number[];
  /** Text that follows the prompt's, without special tokens, cut before a stop string; there if a tokenizer was given. */
  readonly text?: string;
  readonly reason: Reason;
}

/** One new token of the prompt number `row`. The texts of a row add up to its Generation's. */
export interface TokenEvent {
  readonly row: number;
  readonly id: number;
  /** What may be shown now: incomplete characters and what may become a stop string wait for later tokens. */
  readonly text?: string;
}

export interface GenerateOptions extends GenerationOptions {
  readonly tokenizer?: Tokenizer;
  /** Tokens that end a text; defaults to config.json's `eos_token_id`, null for none. */
  readonly eos?: number | readonly number[] | null;
  readonly onToken?: (event: TokenEvent) => void;
  /** Ends all texts where they are, with the reason "abort"; nothing is thrown. */
  readonly signal?: AbortSignal;
}

interface Row {
  readonly index: number;
  readonly prompt: readonly number[];
  /** Prompt and new tokens. */
  readonly ids: number[];
  readonly seen: Set<number>;
  readonly rng: Rng;
  readonly text: TextStream | undefined;
  reason: Reason | undefined;
}

interface Settings extends Sampling {
  readonly eos: ReadonlySet<number>;
  readonly onToken: GenerateOptions["onToken"];
  readonly signal: AbortSignal | undefined;
}

/**
 * Continues a prompt, or each of several, token by token. Greedy unless `doSample`, `temperature`, `topK` or `topP` says
 * otherwise; unlike transformers there is no hidden topK of 50. Prompts of equal length run as one batch. The numbers
 * drawn for a prompt depend on the seed and its place in the list only. A full context ends the text with the reason
 * "length". As in vLLM, a stop string ends the text at its first occurrence and is cut off, and `ids` keeps its tokens;
 * transformers keeps it in the text too.
 *
 * @example
 * const { text } = await generate(model, tokenizer.encode("Once upon a time"), { tokenizer, temperature: 0.8, stopStrings: ["\n"] });
 */
export function generate(model: Model, prompt: ArrayLike<number>, options?: GenerateOptions): Promise<Generation>;
export function generate(model: Model, prompts: readonly ArrayLike<number>[], options?: GenerateOptions): Promise<Generation[]>;
export async function generate(
  model: Model,
  prompts: ArrayLike<number> | readonly ArrayLike<number>[],
  options: GenerateOptions = {},
): Promise<Generation | Generation[]> {
  const { tokenizer, eos = model.config["eos_token_id"] as number | number[] | null | undefined, onToken, signal, ...rest } = options;
  const settings: Settings = { ...readGenerationOptions(rest), eos: new Set([eos ?? []].flat()), onToken, signal };
  if (settings.stopStrings.length > 0 && !tokenizer)
    throw new StrutError("option", "stopStrings need a tokenizer to read the text", { path: "stopStrings", hint: "Give the model's as `tokenizer`." });
  const many = typeof prompts[0] === "object";
  const list = (many ? prompts : [prompts]) as readonly ArrayLike<number>[];
  const rng = new Rng(settings.seed).fork("generate");
  const rows = list.map((given, index): Row => {
    const prompt = Array.from(given);
    checkPrompt(prompt, model, many ? `prompt ${index}` : "the prompt");
    const text = tokenizer && textStream(tokenizer, prompt, settings.stopStrings);
    return { index, prompt, ids: [...prompt], seen: new Set(prompt), rng: rng.fork(String(index)), text, reason: undefined };
  });
  for (const length of new Set(rows.map(({ prompt }) => prompt.length)))
    await continueRows(
      model,
      rows.filter(({ prompt }) => prompt.length === length),
      settings,
    );
  const made = rows.map(({ ids, prompt, text, reason }): Generation => ({
    ids: ids.slice(prompt.length),
    ...(text ? { text: text.all() } : {}),
    reason: reason!,
  }));
  return many ? made : made[0]!;
}

function checkPrompt(prompt: readonly number[], model: Model, what: string): void {
  const { context, vocabularySize } = languageDimensions(model);
  if (prompt.length === 0) throw new StrutError("range", `${what} has no tokens`, { hint: "Begin with the tokenizer's bos token, or with a word." });
  if (prompt.length > context)
    throw new StrutError("context", `${what} has ${prompt.length} tokens, more than the model's context of ${context}`, { hint: "Shorten it." });
  const strange = prompt.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocabularySize));
  if (strange !== undefined)
    throw new StrutError("range", `${what} holds the id ${strange}, which does not lie in 0…${vocabularySize - 1}`, {
      hint: "Is this the tokenizer of another model?",
    });
}

/** Runs rows with prompts of one length until each has its reason. */
async function continueRows(model: Model, rows: readonly Row[], settings: Settings): Promise<void> {
  const start = rows[0]!.prompt.length;
  // the last token need not fit: nothing is read after it
  const most = Math.min(settings.maxNewTokens, languageDimensions(model).context - start + 1);
  const caches = settings.useCache ? Array.from({ length: model.dimensions.depth }, () => fullCache(start + most - 1)) : undefined;
  let open = most > 0 ? rows : [];
  let pause = performance.now();
  try {
    while (open.length > 0 && !settings.signal?.aborted) {
      const logits = await nextLogits(model, open, caches);
      const width = logits.length / open.length;
      open.forEach((row, i) =>
        accept(
          row,
          chooseToken(logits.subarray(i * width, (i + 1) * width) as Float32Array, row.seen, settings, () => row.rng.random()),
          most,
          settings,
        ),
      );
      const left = open.flatMap((row, i) => (row.reason ? [] : [i]));
      if (left.length < open.length) {
        open = left.map((i) => open[i]!);
        for (const cache of caches ?? []) cache.reorder(left);
      }
      if (performance.now() - pause < 20) continue;
      await yieldToEvents();
      pause = performance.now();
    }
  } finally {
    for (const cache of caches ?? []) cache.free();
  }
  for (const row of rows) {
    if (row.reason) continue;
    row.reason = most > 0 ? "abort" : "length";
    row.text?.end();
  }
}

/** Logits after the last token of each row; with caches only what they do not hold is computed. */
async function nextLogits(model: Model, rows: readonly Row[], caches: readonly KvCache[] | undefined): Promise<TypedArray> {
  const fed = rows.map(({ ids }) => ids.slice(caches?.[0]?.length ?? 0));
  const tokens = fed[0]!.length;
  const logits = noGrad(() =>
    scope(() => {
      const run = caches ? { caches } : {};
      const states = hidden(model, tensor(fed.flat(), [rows.length, tokens], "i32"), run);
      return applyLinear(model, model.architecture.head, contiguous(slice(states, 1, tokens - 1, tokens)), run);
    }),
  );
  const values = await logits.data();
  free(logits);
  return values;
}

function accept(row: Row, id: number, most: number, { eos, onToken }: Settings): void {
  row.ids.push(id);
  row.seen.add(id);
  const ended = eos.has(id);
  const last = ended || row.ids.length - row.prompt.length === most;
  const text = row.text?.push(ended ? [] : [id], last);
  row.reason = row.text?.stopped() ? "stop" : ended ? "eos" : last ? "length" : undefined;
  onToken?.({ row: row.index, id, ...(text === undefined ? {} : { text }) });
}

/** Text of tokens as they come, up to the first stop string. */
interface TextStream {
  /** Takes tokens and gives the text that may be shown now; `last` gives out all that waits. */
  push(ids: readonly number[], last: boolean): string;
  end(): void;
  all(): string;
  stopped(): boolean;
}

/**
 * Decodes only the newest tokens and those shown just before them, because the text of a token depends on its neighbours
 * (spaces, characters of several tokens), and decoding everything for each token would take quadratic time.
 */
function textStream(tokenizer: Tokenizer, prompt: readonly number[], stops: readonly string[]): TextStream {
  const decode = (ids: readonly number[]): string => tokenizer.decode(ids, { skipSpecial: true });
  /** Without a character that later tokens may complete. */
  const complete = (part: string): string => part.replace(/\uFFFD+$/, "");
  const longest = stops.reduce((most, { length }) => Math.max(most, length), 0);
  let recent = prompt.slice(-6);
  let taken = recent.length;
  let known = complete(decode(recent));
  let [text, shown, stopped] = ["", 0, false];

  const take = (last: boolean): void => {
    const now = decode(recent);
    if (now.length <= known.length || (now.endsWith("\uFFFD") && !last)) return;
    const before = text.length;
    text += now.slice(known.length);
    recent = recent.slice(taken);
    taken = recent.length;
    known = decode(recent);
    const found = stops.map((stop) => text.indexOf(stop, Math.max(0, before - longest + 1))).filter((at) => at >= 0);
    if (found.length === 0) return;
    stopped = true;
    text = text.slice(0, Math.min(...found));
  };
  /** How much of the text's end may be the beginning of a stop string. */
  const waiting = (): number => {
    for (let n = Math.min(longest - 1, text.length - shown); n > 0; n--) if (stops.some((stop) => stop.startsWith(text.slice(-n)))) return n;
    return 0;
  };
  return {
    push(ids, last) {
      recent.push(...ids);
      take(last);
      const from = shown;
      shown = text.length - (last || stopped ? 0 : waiting());
      return text.slice(from, shown);
    },
    end: () => take(true),
    all: () => text,
    stopped: () => stopped,
  };
}
