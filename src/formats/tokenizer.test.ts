import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { StrutError } from "../errors.ts";
import { checkVocabulary, createTokenizer, loadTokenizer } from "./tokenizer.ts";

/*
 * Golden ids and texts: Python's tokenizers 0.23.2, `Tokenizer.from_file("tokenizer.json")`, `encode(text).ids` and
 * `decode(ids, skip_special_tokens=…)`. The digests are SHA-256 over the ids as little-endian int32.
 * (transformers 5.18's AutoTokenizer rebuilds Llama tokenizers by its own rules and so differs from the file; strut follows the file.)
 */
const bundled = (path: string): string => fileURLToPath(new URL(`../../data/${path}`, import.meta.url));
const stories = await loadTokenizer(bundled("lm/stories260K"));
const baby = await loadTokenizer(bundled("lm/babyllama-tok105"));
const shakespeare = await readFile(bundled("text/tinyshakespeare.txt"), "utf8");
const digest = (ids: number[]): string =>
  createHash("sha256")
    .update(new Uint8Array(Int32Array.from(ids).buffer))
    .digest("hex");

type Encoded = [text: string, ids: number[], back: string];
type Decoded = [ids: number[], withoutSpecial: string, withSpecial: string];

const storiesEncoded: Encoded[] = [
  ["", [1], ""],
  ["\n", [1, 410, 13], "\n"],
  ["a", [1, 261], "a"],
  ["Hello world", [1, 346, 306, 414, 263, 304, 341], "Hello world"],
  ["a  b", [1, 261, 410, 268], "a  b"],
  ["trail ", [1, 259, 420, 412, 290, 410], "trail "],
  ["  x", [1, 410, 410, 410, 444], "  x"],
  ["a\tb\r\nc", [1, 261, 12, 430, 16, 13, 429], "a\tb\r\nc"],
  ["One\n\nTwo", [1, 385, 13, 13, 434, 424, 414], "One\n\nTwo"],
  [
    "I \ud83d\ude00 you \ud83d\udc69\u200d\ud83d\udc69\u200d\ud83d\udc67",
    [1, 359, 410, 243, 162, 155, 131, 364, 410, 243, 162, 148, 172, 229, 131, 144, 243, 162, 148, 172, 229, 131, 144, 243, 162, 148, 170],
    "I \ud83d\ude00 you \ud83d\udc69\u200d\ud83d\udc69\u200d\ud83d\udc67",
  ],
  ["\u4f60\u597d\uff0c\u4e16\u754c", [1, 410, 231, 192, 163, 232, 168, 192, 242, 191, 143, 231, 187, 153, 234, 152, 143], "\u4f60\u597d\uff0c\u4e16\u754c"],
  ["na\u00efve caf\u00e9 cafe\u0301", [1, 297, 412, 198, 178, 360, 280, 412, 431, 485, 280, 412, 431, 411, 207, 132], "na\u00efve caf\u00e9 cafe\u0301"],
  ["a\u0000b", [1, 261, 3, 430], "a\u0000b"],
  ["\ufeffx", [1, 410, 242, 190, 194, 444], "\ufeffx"],
  ["\u2581a\u2581 b", [1, 410, 261, 410, 268], " a  b"],
  ["<s>Once</s> upon", [1, 1, 403, 2, 410, 407], "Once  upon"],
  ["a <unk> b<s><s>", [1, 261, 410, 0, 410, 268, 1, 1], "a   b"],
  ["<0x0A>", [1, 410, 504, 477, 444, 477, 447, 505], "<0x0A>"],
  ["x\n\n\ud83d\ude00\ny", [1, 410, 444, 13, 13, 243, 162, 155, 131, 13, 422], "x\n\n\ud83d\ude00\ny"],
  [" ", [1, 410, 410], " "],
  ["     ", [1, 410, 410, 410, 410, 410, 410], "     "],
  [
    '"Don\'t," she said\u2026 \u201cno\u201d',
    [1, 313, 455, 289, 439, 413, 432, 436, 358, 336, 486, 410, 465, 416, 414, 466],
    '"Don\'t," she said\u2026 \u201cno\u201d',
  ],
];
const storiesDecoded: Decoded[] = [
  [[], "", ""],
  [[0], "", "<unk>"],
  [[1], "", "<s>"],
  [[1, 1, 403], "Once", "<s><s> Once"],
  [[13], "\n", "\n"],
  [[3], "\u0000", "\u0000"],
  [[243, 162], "\ufffd\ufffd", "\ufffd\ufffd"],
  [[243, 162, 155, 131], "\ud83d\ude00", "\ud83d\ude00"],
  [[243, 162, 403], "\ufffd\ufffd Once", "\ufffd\ufffd Once"],
  [[242, 190, 194], "\ufeff", "\ufeff"],
  [[231], "\ufffd", "\ufffd"],
  [[403, 2, 403], "Once Once", "Once</s> Once"],
  [[511], "\u200a", "\u200a"],
  [[1, 403, 407, 261, 378], "Once upon a time", "<s> Once upon a time"],
  [[2], "", "</s>"],
];
const babyEncoded: Encoded[] = [
  ["", [1], ""],
  ["\n", [1, 3, 0], ""],
  ["a", [1, 3, 5], "a"],
  ["Hello world", [1, 3, 33, 4, 14, 14, 7, 3, 17, 7, 13, 14, 11], "Hello world"],
  ["a  b", [1, 3, 5, 3, 3, 23], "a  b"],
  ["trail ", [1, 3, 6, 13, 5, 10, 14, 3], "trail "],
  ["  x", [1, 3, 3, 3, 37], "  x"],
  ["a\tb\r\nc", [1, 3, 5, 0, 23, 0, 22], "abc"],
  ["One\n\nTwo", [1, 3, 34, 9, 4, 0, 27, 17, 7], "OneTwo"],
  ["I \ud83d\ude00 you \ud83d\udc69\u200d\ud83d\udc69\u200d\ud83d\udc67", [1, 3, 35, 3, 0, 3, 15, 7, 18, 3, 0], "I  you "],
  ["\u4f60\u597d\uff0c\u4e16\u754c", [1, 3, 0], ""],
  ["na\u00efve caf\u00e9 cafe\u0301", [1, 3, 9, 5, 0, 28, 4, 3, 22, 5, 24, 78, 3, 22, 5, 24, 4, 0], "nave caf\u00e9 cafe"],
  ["a\u0000b", [1, 3, 5, 0, 23], "ab"],
  ["\ufeffx", [1, 3, 0, 37], "x"],
  ["\u2581a\u2581 b", [1, 3, 3, 5, 3, 3, 23], " a  b"],
  ["<s>Once</s> upon", [1, 1, 3, 34, 9, 22, 4, 2, 3, 3, 18, 20, 7, 9], "Once  upon"],
  ["a <unk> b<s><s>", [1, 3, 5, 3, 0, 3, 3, 23, 1, 1], "a   b"],
  ["<0x0A>", [1, 3, 97, 70, 37, 70, 40, 98], "<0x0A>"],
  ["x\n\n\ud83d\ude00\ny", [1, 3, 37, 0, 15], "xy"],
  [" ", [1, 3, 3], " "],
  ["     ", [1, 3, 3, 3, 3, 3, 3], "     "],
  [
    '"Don\'t," she said\u2026 \u201cno\u201d',
    [1, 3, 29, 48, 7, 9, 32, 6, 25, 29, 3, 12, 8, 4, 3, 12, 5, 10, 11, 79, 3, 58, 9, 7, 59],
    '"Don\'t," she said\u2026 \u201cno\u201d',
  ],
];
const babyDecoded: Decoded[] = [
  [[], "", ""],
  [[0], "", "<unk>"],
  [[1], "", "<s>"],
  [[3], "", ""],
  [[3, 3, 4], " e", " e"],
  [[1, 3, 4, 2], "e", "<s> e</s>"],
  [[104], "\u200a", "\u200a"],
  [[4, 0, 0, 5], "ea", "e<unk><unk>a"],
];

describe.each([
  [
    "stories260K",
    stories,
    storiesEncoded,
    storiesDecoded,
    12683,
    "8f20f442c073a32936369b7a5a2c5cafcb15279cbe1a34046856d3f29ed0662b",
    693364,
    "e8aa5db962327fd55c516d6457a0624ab50eef8c91a81065bb731106af314cc9",
  ],
  [
    "babyllama-tok105",
    baby,
    babyEncoded,
    babyDecoded,
    20329,
    "d1595a6f97e0f6105133e30f51fe2f21bc57f102bfa5c80ef546351a24c40b28",
    1108173,
    "e4bc7c8a4b71d2960e00945ae3257f12cfa9ad8c465ce5bbfa82528485ce6970",
  ],
] as const)("the tokenizer of %s", (_name, tokenizer, encoded, decoded, length20k, digest20k, length, digestAll) => {
  it.each(encoded)("encodes %j as Python does, and back", (text, ids, back) => {
    expect(tokenizer.encode(text)).toEqual(ids);
    expect(tokenizer.encode(text, { special: false })).toEqual(ids.slice(1));
    expect(tokenizer.decode(ids, { skipSpecial: true })).toBe(back);
  });

  it.each(decoded)("decodes %j as Python does", (ids, withoutSpecial, withSpecial) => {
    expect(tokenizer.decode(ids, { skipSpecial: true })).toBe(withoutSpecial);
    expect(tokenizer.decode(ids)).toBe(withSpecial);
  });

  it("encodes the first 20 KB of tinyshakespeare, and all of it within seconds, as Python does", () => {
    const start = tokenizer.encode(shakespeare.slice(0, 20480));
    expect([start.length, digest(start)]).toEqual([length20k, digest20k]);
    const before = performance.now();
    const all = tokenizer.encode(shakespeare);
    expect(performance.now() - before).toBeLessThan(10_000);
    expect([all.length, digest(all)]).toEqual([length, digestAll]);
  });

  it("knows its special tokens", () => {
    expect([tokenizer.bos, tokenizer.eos, tokenizer.token(1)]).toEqual([1, 2, "<s>"]);
  });
});

describe("sizes of vocabularies", () => {
  it("are one more than the largest id", () => {
    expect([stories.vocabularySize, baby.vocabularySize]).toEqual([512, 105]);
  });

  it("may be smaller than the model's, not larger", () => {
    checkVocabulary(stories, 512);
    checkVocabulary(stories, 600);
    expect(() => checkVocabulary(stories, 510)).toThrow(StrutError);
    expect(() => checkVocabulary(stories, 510)).toThrow(/510 rows in its vocabulary, but 2 of the tokenizer's ids lie beyond: "~" is 510/);
  });
});

interface Parts {
  vocab?: string[];
  merges?: string[];
  model?: object;
  rest?: object;
}
const bytePair = ({ vocab = [], merges = [], model = {}, rest = {} }: Parts): ReturnType<typeof createTokenizer> =>
  createTokenizer(
    {
      added_tokens: [],
      normalizer: null,
      pre_tokenizer: null,
      post_processor: null,
      decoder: null,
      model: { type: "BPE", vocab: Object.fromEntries(vocab.map((token, id) => [token, id])), merges, ...model },
      ...rest,
    },
    {},
  );

/** Byte-pair encoding as its definition says it: join the pair of lowest rank, leftmost first, until none is left. */
function slowly(text: string, vocab: string[], merges: string[]): number[] {
  let parts = Array.from(text);
  for (;;) {
    const ranks = parts.map((part, i) => merges.indexOf(`${part} ${parts[i + 1]}`));
    const best = Math.min(...ranks.filter((rank) => rank >= 0));
    if (best === Infinity) return parts.map((part) => vocab.indexOf(part));
    const at = ranks.indexOf(best);
    parts = [...parts.slice(0, at), parts[at]! + parts[at + 1]!, ...parts.slice(at + 2)];
  }
}

describe("byte-pair models", async () => {
  it("give the same tokens for long texts, which are cut where no merge can reach, as by the definition", async () => {
    const merges = ["a b", "b a", "ab ab", "ba ba", "c c", "cc ab", "a a", "aa aa", "😀 a", "abab cc"];
    const vocab = ["a", "b", "c", "d", "😀", ...merges.map((pair) => pair.replace(" ", ""))];
    const tokenizer = await bytePair({ vocab, merges });
    let seed = 1;
    const random = (n: number): number => (seed = (seed * 48271) % 2147483647) % n;
    for (let trial = 0; trial < 40; trial++) {
      const text = Array.from({ length: 60 + random(200) }, () => ["a", "a", "b", "c", "d", "😀"][random(6)]!).join("");
      expect(tokenizer.encode(text)).toEqual(slowly(text, vocab, merges));
    }
  });

  it("fuse unknown characters within a word, not across words, as the Rust library does", async () => {
    const tokenizer = await bytePair({
      vocab: ["<unk>", "a"],
      model: { unk_token: "<unk>", fuse_unk: true },
      rest: { pre_tokenizer: { type: "WhitespaceSplit" } },
    });
    expect(tokenizer.encode("xx yay zz z a")).toEqual([0, 0, 1, 0, 0, 0, 1]);
    expect((await bytePair({ vocab: ["<unk>", "a"], model: { unk_token: "<unk>" } })).encode("xxa")).toEqual([0, 0, 1]);
  });

  it("without an unknown token drop what they do not know before they merge", async () => {
    expect((await bytePair({ vocab: ["a", "b", "ab"], merges: ["a b"] })).encode("a?b")).toEqual([2]);
  });

  it("leave ids out of the text that no token has", () => {
    expect(stories.decode([403, 9999, 403])).toBe("Once Once");
    expect(stories.decode([9999])).toBe("");
  });
});

describe("loadTokenizer", () => {
  it("says what is wrong with a folder", async () => {
    const folder = await mkdtemp(join(tmpdir(), "strut-tokenizer-"));
    const problem = async (): Promise<unknown> => loadTokenizer(folder).catch((error: unknown) => error);
    try {
      expect(await problem()).toMatchObject({
        name: "StrutError",
        message: expect.stringContaining("has no tokenizer.json"),
        hint: expect.stringContaining("save_pretrained"),
      });
      await writeFile(join(folder, "tokenizer.json"), "{");
      expect(await problem()).toMatchObject({ name: "StrutError", message: expect.stringContaining("not valid JSON") });
      await writeFile(join(folder, "tokenizer.json"), '{"model":{"type":"Nonsense"}}');
      expect(await problem()).toMatchObject({ name: "StrutError", code: "tokenizer" });
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it("does without tokenizer_config.json", async () => {
    const folder = await mkdtemp(join(tmpdir(), "strut-tokenizer-"));
    try {
      await writeFile(join(folder, "tokenizer.json"), await readFile(bundled("lm/stories260K/tokenizer.json")));
      const tokenizer = await loadTokenizer(folder);
      expect(tokenizer.encode("a")).toEqual([1, 261]);
      expect(tokenizer.bos).toBeUndefined();
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});
