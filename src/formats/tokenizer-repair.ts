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
  config: { ignore_merges?: boolean; end_of_word_suffix?: string | null; continuing_subword_prefix?: string | null };
  unk_token?: string;
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

/** Where @huggingface/tokenizers 0.2.0 differs from the Rust library, it is brought in line here. */
export function repair(inner: LibraryTokenizer): void {
  const { model } = inner;
  if (model.merges !== undefined) {
    const split = safeSplit(model, model.merges);
    const fuse = model.fuse_unk;
    model._call = (words) => {
      const tokens: string[] = [];
      for (const word of words) {
        let unknown = false;
        for (const token of model.encode(split(word))) {
          const known = token !== model.unk_token;
          if (known || !unknown || !fuse) tokens.push(token);
          unknown = !known;
        }
      }
      return tokens;
    };
  }
  for (const decoder of decoders(inner.decoder)) if (decoder.config.type === "ByteFallback") decoder.decode_chain = byteFallback;
}

/**
 * Cuts a word where no merge can reach across: between characters x and y if no merged token contains xy.
 * The tokens stay the same, but long texts without a pre-tokenizer become short pieces that the library caches.
 */
function safeSplit({ config }: Model, merges: [string, string][]): (word: string) => string[] {
  if (config.ignore_merges || config.end_of_word_suffix || config.continuing_subword_prefix) return (word) => [word];
  const joined = new Set<string>();
  for (const [left, right] of merges) {
    const characters = [...left, ...right];
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
      texts.push(..."\ufffd".repeat(run.length));
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
