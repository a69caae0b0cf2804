import { describe, expect, it } from "vitest";
import { StrutError } from "../errors.ts";
import { type SafetensorsFile, bytesSource, openSafetensors } from "./safetensors.ts";

/** A file from header text (or bytes) and data, built by hand. */
function build(header: string | Uint8Array, data = 0): Uint8Array {
  const text = typeof header === "string" ? new TextEncoder().encode(header) : header;
  const bytes = new Uint8Array(8 + text.length + data);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
  bytes.set(text, 8);
  return bytes;
}

const open = (header: string | Uint8Array, data = 0): Promise<SafetensorsFile> => openSafetensors(bytesSource(build(header, data)), "m.safetensors");

const entry = (dtype: string, shape: string, range: string): string => `{"dtype":"${dtype}","shape":[${shape}],"data_offsets":[${range}]}`;

async function refused(file: Promise<unknown>): Promise<StrutError> {
  const error = await file.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(StrutError);
  const refusal = error as StrutError;
  expect(refusal.code).toBe("safetensors");
  expect(refusal.path).toBe("m.safetensors");
  expect(refusal.hint).toBeTruthy();
  return refusal;
}

describe("reading safetensors", () => {
  it("reads entries, metadata and bytes", async () => {
    const bytes = build(`{"__metadata__":{"format":"pt"},"b":${entry("U8", "2", "4,6")},"a":${entry("F32", "1,1", "0,4")}}  `, 6);
    bytes.set([1, 2, 3, 4, 5, 6], bytes.length - 6);
    const file = await openSafetensors(bytesSource(bytes), "m");
    expect(file.metadata).toEqual({ format: "pt" });
    expect([...file.entries]).toEqual([
      ["b", { dtype: "U8", shape: [2], begin: 4, end: 6 }],
      ["a", { dtype: "F32", shape: [1, 1], begin: 0, end: 4 }],
    ]);
    expect([...(await file.read("a"))]).toEqual([1, 2, 3, 4]);
    expect([...(await file.read("b"))]).toEqual([5, 6]);
  });

  it("takes scalars, empty tensors anywhere, white space and escaped names", async () => {
    const file = await open(
      `{ "e" : ${entry("F32", "0,3", "0,0")},\n"s":${entry("U8", "", "0,1")},"m":${entry("I8", "2,0", "1,1")},"\\u00e9\\ud83d\\ude00\\n":${entry("I8", "1", "1,2")} }  \n`,
      2,
    );
    expect([...file.entries.keys()]).toEqual(["e", "s", "m", "é😀\n"]);
    expect(await file.read("e")).toEqual(new Uint8Array(0));
    expect((await open("{}")).entries.size).toBe(0);
  });

  it("knows every dtype of the format, those below a byte included", async () => {
    const sizes: Record<string, number> = {};
    for (const [size, names] of [
      [8, "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ"],
      [4, "F4"],
      [6, "F6_E2M3 F6_E3M2"],
      [16, "I16 U16 F16 BF16"],
      [32, "I32 U32 F32"],
      [64, "F64 I64 U64 C64"],
    ] as const)
      for (const name of names.split(" ")) sizes[name] = size;
    for (const [dtype, size] of Object.entries(sizes)) {
      const file = await open(`{"t":${entry(dtype, "4", `0,${size / 2}`)}}`, size / 2);
      expect((await file.read("t")).length, dtype).toBe(size / 2);
    }
  });

  it("names the nearest tensor when asked for one that is not there", async () => {
    const file = await open(`{"layer.weight":${entry("U8", "0", "0,0")}}`);
    expect((await refused(file.read("layer.wieght"))).hint).toContain('"layer.weight"');
  });
});

const one = entry("U8", "1", "0,1");

describe("refused safetensors files", () => {
  it.each<[what: string, message: RegExp, header: string | Uint8Array, data: number]>([
    ["a byte-order mark", /byte-order mark/, `\ufeff{"a":${one}}`, 1],
    ["a header that does not begin with {", /expected \{/, ` {"a":${one}}`, 1],
    ["a list as header", /expected \{/, "[]", 0],
    ["an empty header", /expected \{/, "", 0],
    ["invalid UTF-8", /not valid UTF-8/, new Uint8Array([0x7b, 0x22, 0xff, 0x22]), 0],
    ["a surrogate encoded as UTF-8", /not valid UTF-8/, new Uint8Array([0x7b, 0x22, 0xed, 0xa0, 0x80, 0x22]), 0],
    ["text after the object", /nothing after the JSON object/, `{"a":${one}}x`, 1],
    ["zero bytes as padding", /nothing after the JSON object/, `{"a":${one}}\0`, 1],
    ["a cut-off object", /found the end of the text/, `{"a":${one}`, 1],
    ["a comma before the end", /expected a string/, `{"a":${one},}`, 1],
    ["a name used twice", /"a" appears twice/, `{"a":${one},"a":${one}}`, 1],
    ["a name used twice in two spellings", /"a" appears twice/, `{"a":${one},"\\u0061":${one}}`, 1],
    ["a field given twice", /"dtype" appears twice/, `{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1],
    ["a metadata key given twice", /"k" appears twice/, `{"__metadata__":{"k":"1","k":"2"}}`, 0],
    ["metadata given twice", /"__metadata__" appears twice/, `{"__metadata__":{},"__metadata__":{}}`, 0],
    ["__proto__ as a name", /__proto__/, `{"__proto__":${one}}`, 1],
    ["__proto__ in an entry", /__proto__/, `{"a":{"__proto__":1}}`, 1],
    ["__proto__ in the metadata", /__proto__/, `{"__metadata__":{"__proto__":"x"}}`, 0],
    ["a negative number", /found -1/, `{"a":${entry("U8", "-1", "0,1")}}`, 1],
    ["minus zero", /found -0/, `{"a":${entry("U8", "-0", "0,0")}}`, 0],
    ["a fraction", /found 1\.0/, `{"a":${entry("U8", "1.0", "0,1")}}`, 1],
    ["an exponent", /found 1e0/, `{"a":${entry("U8", "1e0", "0,1")}}`, 1],
    ["a leading zero", /found 01/, `{"a":${entry("U8", "01", "0,1")}}`, 1],
    ["a number beyond 2^53", /beyond 2\^53/, `{"a":${entry("U8", "9007199254740993", "0,1")}}`, 1],
    ["a string as a number", /whole number/, `{"a":${entry("U8", '"1"', "0,1")}}`, 1],
    ["a range that runs backwards", /before its beginning/, `{"a":${entry("U8", "1", "1,0")}}`, 1],
    ["overlapping ranges", /overlap/, `{"a":${entry("U8", "2", "0,2")},"b":${entry("U8", "2", "1,3")}}`, 3],
    ["the same range twice", /overlap/, `{"a":${one},"b":${one}}`, 1],
    ["a gap", /belong to no tensor/, `{"a":${one},"b":${entry("U8", "1", "2,3")}}`, 3],
    ["a gap at the front", /belong to no tensor/, `{"a":${entry("U8", "1", "1,2")}}`, 2],
    ["an empty tensor inside of another", /overlap/, `{"a":${entry("U8", "2", "0,2")},"e":${entry("U8", "0", "1,1")}}`, 2],
    ["a range beyond the data", /holds only 3/, `{"a":${entry("F32", "1", "0,4")}}`, 3],
    ["bytes after the last tensor", /2 bytes follow/, `{"a":${one}}`, 3],
    ["bytes without a tensor", /3 bytes follow/, "{}", 3],
    ["a shape that overflows", /2\^53/, `{"a":${entry("U8", "4294967296,4294967296", "0,0")}}`, 0],
    ["a shape that overflows before its zero", /2\^53/, `{"a":${entry("U8", "4294967296,4294967296,0", "0,0")}}`, 0],
    ["a shape that disagrees with its range", /needs 8 bytes/, `{"a":${entry("F32", "2", "0,4")}}`, 4],
    ["half a byte", /whole number of bytes/, `{"a":${entry("F4", "3", "0,1")}}`, 1],
    ["an unknown dtype", /unknown dtype "F33" \(the nearest known one is F3?/, `{"a":${entry("F33", "1", "0,4")}}`, 4],
    ["a dtype in lower case", /unknown dtype "f32"/, `{"a":${entry("f32", "1", "0,4")}}`, 4],
    ["a dtype named as a property of objects", /unknown dtype/, `{"a":${entry("constructor", "1", "0,4")}}`, 4],
    ["an unknown field", /unknown field "stride"/, `{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"stride":[1]}}`, 1],
    ["a missing dtype", /no dtype/, `{"a":{"shape":[1],"data_offsets":[0,1]}}`, 1],
    ["a missing shape", /no shape/, `{"a":{"dtype":"U8","data_offsets":[0,1]}}`, 1],
    ["a missing range", /no data_offsets/, `{"a":{"dtype":"U8","shape":[1]}}`, 1],
    ["three data_offsets", /3 data_offsets/, `{"a":${entry("U8", "1", "0,1,1")}}`, 1],
    ["a tensor that is a list", /where tensor "a" begins/, `{"a":["U8",[1],[0,1]]}`, 1],
    ["metadata that is not a string", /expected a string as the value of "k"/, `{"__metadata__":{"k":1}}`, 0],
    ["metadata that is null", /where __metadata__ begins/, `{"__metadata__":null}`, 0],
    ["deep nesting", /expected a string as the dtype/, `{"a":{"dtype":${"[".repeat(200_000)}}}`, 0],
    ["deep nesting in a shape", /whole number/, `{"a":{"shape":${"[".repeat(200_000)}}}`, 0],
    ["half a surrogate pair", /surrogate/, `{"\\ud800":${one}}`, 1],
    ["surrogates in the wrong order", /surrogate/, `{"\\ude00\\ud83d":${one}}`, 1],
    ["an invalid escape", /invalid escape/, `{"\\x41":${one}}`, 1],
    ["an escape of a prototype's name", /invalid escape/, `{"\\v":${one}}`, 1],
    ["a short unicode escape", /invalid escape/, `{"\\u12":${one}}`, 1],
    ["a control character", /control character/, `{"a\n":${one}}`, 1],
    ["a string without its end", /does not end/, `{"a`, 1],
  ])("%s", async (_what, message, header, data) => {
    expect((await refused(open(header, data))).message).toMatch(message);
  });

  it("shorter than 8 bytes", async () => {
    for (const length of [0, 7])
      expect((await refused(openSafetensors(bytesSource(new Uint8Array(length)), "m.safetensors"))).message).toContain(`found ${length}`);
  });

  it("a header longer than the file, or than 100 MB, before anything of it is read", async () => {
    const bytes = build("{}");
    bytes[0] = 3;
    expect((await refused(openSafetensors(bytesSource(bytes), "m.safetensors"))).message).toContain("only 2 follow");
    bytes.fill(255, 0, 8);
    expect((await refused(openSafetensors(bytesSource(bytes), "m.safetensors"))).message).toContain("at most 100000000");
  });
});
