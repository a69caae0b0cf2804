import { StrutError, nearest } from "../errors.ts";
import { JsonScanner } from "./safetensors-json.ts";

/** Bits of one element for every dtype of the format, in the order in which the reference library ranks them. */
const bits = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

/** A dtype as safetensors spells it. */
export type FileDType = keyof typeof bits;

const dtypes = Object.keys(bits) as FileDType[];

/** Where the reference library ranks a dtype; it stores tensors of higher rank first. */
export const rankOf = (dtype: FileDType): number => dtypes.indexOf(dtype);

export const isFileDType = (name: string): name is FileDType => Object.hasOwn(bits, name);

export interface TensorEntry {
  readonly dtype: FileDType;
  readonly shape: readonly number[];
  /** First byte and the byte after the last, counted from the end of the header. */
  readonly begin: number;
  readonly end: number;
}

export interface SafetensorsHeader {
  readonly metadata: Readonly<Record<string, string>>;
  readonly entries: ReadonlyMap<string, TensorEntry>;
}

/** The error of this format; `problem` is a sentence without its full stop. */
export function refusal(path: string, problem: string, hint: string, cause?: unknown): StrutError {
  return new StrutError("safetensors", `${path}: ${problem}.`, { path, hint, cause });
}

/** Bytes that a tensor takes; throws a plain sentence through `fail` when there is no such number. */
export function byteLength(dtype: FileDType, shape: readonly number[], fail: (problem: string) => never): number {
  let total = 1;
  for (const size of shape) total = checked(total * size);
  total = checked(total * bits[dtype]);
  if (total % 8 !== 0) fail(`shape [${shape.join(", ")}] of ${dtype} takes ${total} bits, which is not a whole number of bytes`);
  return total / 8;

  function checked(value: number): number {
    if (!Number.isSafeInteger(value)) fail(`shape [${shape.join(", ")}] of ${dtype} has more elements than 2^53 - 1 bits can hold`);
    return value;
  }
}

const damaged = "The file is damaged or was not written by a safetensors library; download or export it again.";

/** Parses and checks the JSON header of a safetensors file whose data section has `dataSize` bytes. */
export function parseHeader(text: string, dataSize: number, path: string): SafetensorsHeader {
  const fail = (problem: string): never => {
    throw refusal(path, problem, damaged);
  };
  if (text.charCodeAt(0) === 0xfeff) fail("the header begins with a byte-order mark, expected {");
  if (text[0] !== "{") fail(`the header begins with ${JSON.stringify(text.slice(0, 10))}, expected {`);

  const scanner = new JsonScanner(text, (problem) => fail(`the header cannot be read: ${problem}`));
  const metadata: Record<string, string> = {};
  const entries = new Map<string, TensorEntry>();
  scanner.object("the header", (name) => {
    if (name === "__metadata__")
      scanner.object("__metadata__", (key) => {
        metadata[key] = scanner.string(`the value of ${JSON.stringify(key)} in __metadata__`);
      });
    else entries.set(name, readEntry(scanner, name));
  });
  scanner.end();
  checkRanges(entries, dataSize, fail);
  return { metadata, entries };
}

function readEntry(scanner: JsonScanner, name: string): TensorEntry {
  const quoted = JSON.stringify(name);
  const found: { dtype?: FileDType; shape?: number[]; range?: number[] } = {};
  scanner.object(`tensor ${quoted}`, (field) => {
    if (field === "dtype") found.dtype = readDType(scanner, quoted);
    else if (field === "shape") found.shape = scanner.integers(`the shape of ${quoted}`);
    else if (field === "data_offsets") found.range = scanner.integers(`the data_offsets of ${quoted}`);
    else scanner.fail(`tensor ${quoted} has the unknown field ${JSON.stringify(field)}, expected dtype, shape and data_offsets`);
  });
  const { dtype, shape, range } = found;
  if (dtype === undefined || shape === undefined || range === undefined) {
    const missing = dtype === undefined ? "dtype" : shape === undefined ? "shape" : "data_offsets";
    return scanner.fail(`tensor ${quoted} has no ${missing}`);
  }
  const [begin, end] = range;
  if (begin === undefined || end === undefined || range.length !== 2)
    return scanner.fail(`tensor ${quoted} has ${range.length} data_offsets, expected a first byte and a last one`);
  if (end < begin) scanner.fail(`tensor ${quoted} ends at byte ${end}, before its beginning at ${begin}`);
  const expected = byteLength(dtype, shape, (problem) => scanner.fail(`tensor ${quoted}: ${problem}`));
  if (expected !== end - begin)
    scanner.fail(`tensor ${quoted} of shape [${shape.join(", ")}] and ${dtype} needs ${expected} bytes, but its data_offsets hold ${end - begin}`);
  return { dtype, shape, begin, end };
}

function readDType(scanner: JsonScanner, quoted: string): FileDType {
  const dtype = scanner.string(`the dtype of ${quoted}`);
  if (isFileDType(dtype)) return dtype;
  const near = nearest(dtype, dtypes, 1)[0];
  return scanner.fail(`tensor ${quoted} has the unknown dtype ${JSON.stringify(dtype)}${near === undefined ? "" : ` (the nearest known one is ${near})`}`);
}

function checkRanges(entries: ReadonlyMap<string, TensorEntry>, dataSize: number, fail: (problem: string) => never): void {
  let covered = 0;
  let before = "the header";
  const ordered = [...entries].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  for (const [name, { begin, end }] of ordered) {
    const quoted = JSON.stringify(name);
    if (end > dataSize) fail(`tensor ${quoted} ends at byte ${end} of the data, but the file holds only ${dataSize}`);
    if (begin < covered) fail(`tensors ${before} and ${quoted} overlap: one ends at byte ${covered}, the other begins at ${begin}`);
    if (begin > covered) fail(`bytes ${covered} to ${begin} of the data, before tensor ${quoted}, belong to no tensor`);
    covered = end;
    before = quoted;
  }
  if (covered !== dataSize) fail(`${dataSize - covered} bytes follow the last tensor, expected none`);
}

export function findEntry(entries: ReadonlyMap<string, TensorEntry>, tensor: string, path: string): TensorEntry {
  const entry = entries.get(tensor);
  if (entry !== undefined) return entry;
  const near = nearest(tensor, entries.keys()).map((other) => JSON.stringify(other));
  throw refusal(
    path,
    `there is no tensor ${JSON.stringify(tensor)} among its ${entries.size}`,
    near.length > 0 ? `Did you mean ${near.join(" or ")}?` : "List the names with `entries`.",
  );
}
