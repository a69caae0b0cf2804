import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { StrutError } from "../errors.ts";
import { parseJsonObject } from "./huggingface.ts";
import { bytesSource, openSafetensors } from "./safetensors.ts";
import { parseIndex } from "./safetensors-folder.ts";
import { type TensorToWrite, safetensorsBytes } from "./safetensors-write.ts";

const tensor = (name: string, dtype: TensorToWrite["dtype"], shape: number[], bytes: number): TensorToWrite => ({
  name,
  dtype,
  shape,
  bytes: () => new Uint8Array(bytes).fill(65),
});
const tensors = [tensor("a.weight", "F32", [2, 3], 24), tensor("b", "BF16", [], 2), tensor("é😀", "F4", [4], 2), tensor("none", "U8", [0], 0)];
const fragments = [
  '"',
  "\\",
  "\\u",
  "\\ud800",
  "{",
  "}",
  "[",
  "]",
  ",",
  ":",
  "-",
  "1e9",
  "0",
  "9007199254740993",
  "null",
  '"__proto__":',
  '"__metadata__":{}',
  "[".repeat(5000),
  "\ufeff",
  "\0",
  "\ud800",
  '"dtype":"F32"',
  '"data_offsets":[0,0]',
  "  ",
];

/** Edits of a byte string: overwrite, insert, remove, repeat, and cut off. */
const edits = fc.array(
  fc.oneof(
    fc.record({ kind: fc.constant("set" as const), at: fc.nat(), value: fc.nat(255) }),
    fc.record({ kind: fc.constant("flip" as const), at: fc.nat(), value: fc.nat(7) }),
    fc.record({
      kind: fc.constant("splice" as const),
      at: fc.nat(),
      remove: fc.nat(12),
      text: fc.oneof(fc.constantFrom(...fragments), fc.string({ maxLength: 6 })),
    }),
    fc.record({ kind: fc.constant("copy" as const), at: fc.nat(), from: fc.nat(), length: fc.nat(60) }),
    fc.record({ kind: fc.constant("cut" as const), at: fc.nat() }),
  ),
  { minLength: 1, maxLength: 4 },
);
type Edit = (typeof edits extends fc.Arbitrary<infer T> ? T : never)[number];

function apply(start: Uint8Array, list: readonly Edit[]): Uint8Array {
  let bytes = [...start];
  for (const edit of list) {
    const at = edit.at % (bytes.length + 1);
    if (edit.kind === "set") bytes[at] = edit.value;
    else if (edit.kind === "flip") bytes[at] = (bytes[at] ?? 0) ^ (1 << edit.value);
    else if (edit.kind === "splice") bytes.splice(at, edit.remove, ...new TextEncoder().encode(edit.text));
    else if (edit.kind === "copy") {
      const from = edit.from % (bytes.length + 1);
      bytes.splice(at, 0, ...bytes.slice(from, from + edit.length));
    } else bytes = bytes.slice(0, at);
  }
  return Uint8Array.from(bytes);
}

const options = { seed: 20260101, numRuns: 6000, interruptAfterTimeLimit: 1500, markInterruptAsFailure: false };

/** A file that opens accounts for every byte, gives each tensor, and is written again byte-equal. */
async function opensConsistentlyOrRefuses(bytes: Uint8Array): Promise<boolean> {
  let file;
  try {
    file = await openSafetensors(bytesSource(bytes), "fuzz");
  } catch (error) {
    if (error instanceof StrutError && error.code === "safetensors") return false;
    throw error;
  }
  let total = 0;
  const copies: TensorToWrite[] = [];
  for (const [name, entry] of file.entries) {
    const content = await file.read(name);
    expect(content.length).toBe(entry.end - entry.begin);
    total += content.length;
    copies.push({ name, ...entry, bytes: () => content });
  }
  expect(8 + new TextEncoder().encode(file.headerText).length + total).toBe(bytes.length);
  expect(await safetensorsBytes(copies, "again", { template: file })).toEqual(bytes);
  return true;
}

const refusesOnlyWithSentences = (parse: (text: string) => unknown, bytes: Uint8Array): void => {
  try {
    parse(new TextDecoder().decode(bytes));
  } catch (error) {
    if (!(error instanceof StrutError)) throw error;
  }
};

describe("damaged files open consistently or are refused with a sentence", () => {
  let valid: Uint8Array;
  beforeAll(async () => void (valid = await safetensorsBytes(tensors, "valid", { metadata: { format: "pt", "k\n": "é" } })));

  it("safetensors, edited anywhere", async () => {
    let opened = 0;
    await fc.assert(
      fc.asyncProperty(edits, async (list) => void (opened += Number(await opensConsistentlyOrRefuses(apply(valid, list))))),
      options,
    );
    expect(opened).toBeGreaterThan(10);
  });

  it("safetensors, with the header edited and its length made right again", async () => {
    const length = Number(new DataView(valid.buffer).getBigUint64(0, true));
    await fc.assert(
      fc.asyncProperty(edits, async (list) => {
        const header = apply(valid.subarray(8, 8 + length), list);
        const bytes = new Uint8Array(8 + header.length + valid.length - 8 - length);
        new DataView(bytes.buffer).setBigUint64(0, BigInt(header.length), true);
        bytes.set(header, 8);
        bytes.set(valid.subarray(8 + length), 8 + header.length);
        await opensConsistentlyOrRefuses(bytes);
      }),
      options,
    );
  });

  it("bytes that never were a file", async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), async (bytes) => void (await opensConsistentlyOrRefuses(bytes))),
      options,
    );
  });

  it("config.json", () => {
    const start = new TextEncoder().encode('{"model_type":"llama","hidden_size":64,"nested":{"a":[1,2.5e-3,null]},"name":"é\\u00e9"}');
    fc.assert(
      fc.property(edits, (list) => refusesOnlyWithSentences((text) => parseJsonObject(text, "config.json"), apply(start, list))),
      options,
    );
  });

  it("an index", () => {
    const start = new TextEncoder().encode(
      '{"metadata":{"total_size":26},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}',
    );
    fc.assert(
      fc.property(edits, (list) => refusesOnlyWithSentences((text) => parseIndex(text, "index.json"), apply(start, list))),
      options,
    );
  });

  it("valid files of any names, dtypes and shapes come back as they were", async () => {
    const dtype = fc.constantFrom("U8", "F16", "F32", "F64", "F4", "BOOL", "I64") satisfies fc.Arbitrary<TensorToWrite["dtype"]>;
    const bits = { U8: 8, F16: 16, F32: 32, F64: 64, F4: 4, BOOL: 8, I64: 64 };
    const any = fc.record({ name: fc.string({ unit: "grapheme", maxLength: 8 }), dtype, shape: fc.array(fc.nat(4), { maxLength: 4 }) });
    await fc.assert(
      fc.asyncProperty(fc.uniqueArray(any, { selector: ({ name }) => name, maxLength: 8 }), async (list) => {
        const made = list
          .map(({ name, dtype: type, shape }) => ({ name, type, shape: type === "F4" ? [...shape, 2] : shape }))
          .filter(({ name }) => name !== "__proto__" && name !== "__metadata__")
          .map(({ name, type, shape }) => tensor(name, type, shape, (shape.reduce((a, b) => a * b, 1) * bits[type]) / 8));
        const bytes = await safetensorsBytes(made, "made");
        expect(await opensConsistentlyOrRefuses(bytes)).toBe(true);
      }),
      { ...options, numRuns: 300 },
    );
  });
});
