import { beforeAll, describe, expect, it } from "vitest";
import { start } from "../tensor/index.ts";
import { cycled, splitTail, textsOf, tokenBatches, tokenStream } from "./index.ts";

beforeAll(() => start());

const stream = Int32Array.from({ length: 1003 }, (_, i) => i);
const rowsOf = (data: ReturnType<typeof tokenBatches>, k: number) => [...(data.batch(k) as { ids: readonly ArrayLike<number>[] }).ids].map((row) => Array.from(row));

describe("token batches", () => {
  it("are windows of the text, none twice in an epoch", () => {
    const data = tokenBatches(stream, { window: 10, rows: 4 });
    const starts = new Set<number>();
    for (let k = 0; k < data.epochLength!; k++)
      for (const row of rowsOf(data, k)) {
        expect(row).toEqual(Array.from({ length: 10 }, (_, i) => row[0]! + i));
        for (const token of row) {
          expect(starts.has(token)).toBe(false);
          starts.add(token);
        }
      }
    expect(starts.size).toBe(1000);
  });

  it("depend on seed and number alone, not on what was asked before", () => {
    const [a, b] = [tokenBatches(stream, { window: 10, rows: 4, seed: 3 }), tokenBatches(stream, { window: 10, rows: 4, seed: 3 })];
    const forward = Array.from({ length: 60 }, (_, k) => rowsOf(a, k));
    for (let k = 59; k >= 0; k--) expect(rowsOf(b, k)).toEqual(forward[k]);
    expect(rowsOf(tokenBatches(stream, { window: 10, rows: 4, seed: 4 }), 0)).not.toEqual(forward[0]);
    expect(forward[0]).not.toEqual(forward[a.epochLength!]);
  });

  it("never hold a token that was held out", () => {
    const { train, heldOut } = splitTail(stream, 0.1);
    expect([train.length, heldOut.length]).toEqual([903, 100]);
    const data = tokenBatches(train, { window: 7, rows: 3 });
    for (let k = 0; k < 3 * data.epochLength!; k++) for (const row of rowsOf(data, k)) expect(Math.max(...row)).toBeLessThan(heldOut[0]!);
  });

  it("say when the text is too short", () => {
    expect(() => tokenBatches(stream, { window: 600, rows: 2 })).toThrow("the text has 1003 tokens; one batch of 2 windows of 600 needs 1200");
  });

  it("tell data apart by their fingerprint", () => {
    const prints = [tokenBatches(stream, { window: 10, rows: 4 }), tokenBatches(stream, { window: 20, rows: 2 }), tokenBatches(stream.map((x) => (x === 500 ? 1 : x)), { window: 10, rows: 4 })].map(({ fingerprint }) => fingerprint);
    expect(new Set(prints).size).toBe(3);
    expect(cycled([{ ids: [[1, 2]], labels: [[3, 4]] }]).fingerprint).not.toBe(cycled([{ ids: [[1, 2], [3, 4]] }]).fingerprint);
  });
});

describe("text files", () => {
  const encoder = { encode: (text: string) => Array.from(text, (c) => c.charCodeAt(0)), eos: 0 };

  it("give one text, or one a line with an end after each", () => {
    expect(textsOf('{"text":"a"}\nb', "x.txt")).toEqual(['{"text":"a"}\nb']);
    expect(textsOf("one\n<|endoftext|>\n two\n<|endoftext|>\n", "x.txt.gz")).toEqual(["one", "two"]);
    const texts = textsOf('{"text":"ab"}\n\n{"text":"c","n":1}\n', "x.jsonl");
    expect([...tokenStream(encoder, texts)]).toEqual([97, 98, 0, 99, 0]);
    expect(textsOf('{"body":"ab"}', "x.jsonl", "body")).toEqual(["ab"]);
  });

  it("name the line that is wrong", () => {
    expect(() => textsOf('{"text":"a"}\n{"text":', "x.jsonl")).toThrow("line 2 of x.jsonl is not valid JSON");
    expect(() => textsOf('{"body":"a"}', "x.jsonl")).toThrow('line 1 of x.jsonl has no text under "text"');
  });
});
