/** The parts of a @huggingface/tokenizers `Tokenizer` that strut uses; the types it ships do not resolve in Node's module mode. */
export interface LibraryTokenizer {
  model: Model;
  decoder: Decoder | null;
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
  decode(ids: number[], options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean }): string;
  token_to_id(token: string): number | undefined;
}

interface Model {
  vocab: string[];
  config: { byte_fallback?: boolean; ignore_merges?: boolean; end_of_word_suffix?: string | null; continuing_subword_prefix?: string | null };
  unk_token?: string | null;
  tokens_to_ids: ReadonlyMap<string, number>;
  fuse_unk: boolean;
  /** Present in byte-pair models. */
  merges?: [string, string][];
  encode(words: string[]): string[];
  _call(words: string[]): string[];
}

interface Decoder {
  config: { type: string };
  decoders?: Decoder[];
  decode_chain(tokens: string[]): string[];
}

/**
 * Where byte-pair models and byte fallback of @huggingface/tokenizers 0.2.0 differ from the Rust library, they are brought in line:
 * unknown tokens fuse within a word and not across words, unknown characters of a vocabulary without an unknown token vanish
 * before merging instead of after, and byte tokens become text as described at `byteFallback`.
 */
export function repair(inner: LibraryTokenizer): void {
  const { model } = inner;
  if (model.merges !== undefined) {
    const split = safeSplit(model, model.merges);
    model._call = (words) => words.flatMap((word) => fuseUnknown(model.encode(split(known(word, model))), model));
  }
  for (const decoder of decoders(inner.decoder)) if (decoder.config.type === "ByteFallback") decoder.decode_chain = byteFallback;
}

const known = (word: string, { config, unk_token, tokens_to_ids }: Model): string =>
  unk_token || config.byte_fallback || affixed(config)
    ? word
    : Array.from(word)
        .filter((character) => tokens_to_ids.has(character))
        .join("");

const affixed = (config: Model["config"]): boolean => Boolean(config.end_of_word_suffix || config.continuing_subword_prefix);

const fuseUnknown = (tokens: string[], { fuse_unk, unk_token }: Model): string[] =>
  fuse_unk ? tokens.filter((token, i) => token !== unk_token || tokens[i - 1] !== unk_token) : tokens;

/**
 * Cuts a word where no merge can reach across: between characters x and y if no merged token contains xy.
 * The tokens stay the same, but long texts without a pre-tokenizer become short pieces that the library caches.
 */
function safeSplit({ config }: Model, merges: [string, string][]): (word: string) => string[] {
  if (config.ignore_merges || affixed(config)) return (word) => [word];
  const joined = new Set<string>();
  for (const [left, right] of merges) {
    const characters = Array.from(left + right);
    for (let i = 1; i < characters.length; i++) joined.add(characters[i - 1]! + characters[i]!);
  }
  return (word) => {
    if (word.length < 64) return [word];
    const pieces: string[] = [];
    let start = 0;
    let at = 0;
    let previous = "";
    for (const character of word) {
      if (at > start && !joined.has(previous + character)) {
        pieces.push(word.slice(start, at));
        start = at;
      }
      previous = character;
      at += character.length;
    }
    pieces.push(word.slice(start));
    return pieces;
  };
}

function decoders(decoder: Decoder | null): Decoder[] {
  if (decoder === null) return [];
  return decoder.decoders === undefined ? [decoder] : decoder.decoders.flatMap(decoders);
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Joins byte tokens into text; a run that is not UTF-8 becomes one replacement character a byte, and a byte-order mark stays. */
function byteFallback(tokens: string[]): string[] {
  const texts: string[] = [];
  let run: number[] = [];
  const flush = (): void => {
    if (run.length === 0) return;
    try {
      texts.push(utf8.decode(Uint8Array.from(run)));
    } catch {
      for (const _ of run) texts.push("\ufffd");
    }
    run = [];
  };
  for (const token of tokens) {
    const digits = /^<0x([0-9A-Fa-f]{2})>$/.exec(token)?.[1];
    if (digits !== undefined) run.push(Number.parseInt(digits, 16));
    else {
      flush();
      texts.push(token);
    }
  }
  flush();
  return texts;
}
