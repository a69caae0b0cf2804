import { referenceKernels } from "../../src/tensor/backends/reference.ts";
import { signatures } from "../../src/tensor/backends/signatures.ts";
import { bytesOf, viewOf } from "../../src/tensor/dtype.ts";
import { equalBytes } from "../support/bytes.ts";
import type { Argument, Call, Piece, Values } from "./draw.ts";
import type { Machine } from "./machines.ts";

export type Results = ReadonlyMap<Piece, Values>;

/** Fills fresh outputs of the reference: where it still stands afterwards, a kernel must not write either. */
const UNWRITTEN = -7.25e77;
const GUARD = 32;
const GUARD_BYTE = 0xa5;

const isPiece = (arg: Argument): arg is Piece => typeof arg === "object" && arg !== null;
export const piecesOf = (call: Call): Piece[] => [...new Set(call.args.filter(isPiece))];
const outputsOf = (call: Call): Piece[] => piecesOf(call).filter(({ role }) => role !== "in");
const isReal = ({ dtype }: Piece): boolean => dtype === "f32" || dtype === "f64";

/** The reference kernel on f64 copies of the same numbers, so that its own rounding does not matter; `real*` only. */
export function expectedOf(call: Call): Results {
  const widened = signatures[call.kernel].types.some((type) => type.startsWith("real"));
  const results = new Map<Piece, Values>();
  for (const piece of piecesOf(call)) {
    const values = widened && isReal(piece) ? Float64Array.from(piece.values) : piece.values.slice();
    if (piece.role === "out" && isReal(piece)) values.fill(UNWRITTEN);
    results.set(piece, values);
  }
  (referenceKernels[call.kernel] as (...args: unknown[]) => void)(...call.args.map((arg) => (isPiece(arg) ? results.get(arg) : arg)));
  return results;
}

/** Runs a call and returns what it wrote; throws if it wrote anything else. */
export function runOn(machine: Machine, call: Call): Results {
  machine.reset();
  const places = new Map(
    piecesOf(call).map((piece) => {
      const size = bytesOf(piece.dtype);
      const bytes = (piece.values.length + piece.offset + 2 * GUARD) * size;
      return [piece, { bytes, block: machine.block(bytes), offset: GUARD + piece.offset, dtype: piece.dtype }];
    }),
  );
  const bytesAt = (piece: Piece): Uint8Array => {
    const { block, bytes } = places.get(piece)!;
    const { buffer, byteOffset } = machine.backend.locate(block);
    return new Uint8Array(buffer, byteOffset, bytes);
  };
  const before = new Map(
    piecesOf(call).map((piece) => {
      const bytes = bytesAt(piece).fill(GUARD_BYTE);
      if (piece.role !== "out")
        viewOf(piece.dtype, bytes.buffer, bytes.byteOffset + places.get(piece)!.offset * bytesOf(piece.dtype), piece.values.length).set(piece.values as never);
      else if (isReal(piece))
        viewOf(piece.dtype, bytes.buffer, bytes.byteOffset + places.get(piece)!.offset * bytesOf(piece.dtype), piece.values.length).fill(NaN as never);
      return [piece, bytes.slice()];
    }),
  );
  const kernel = machine.backend.kernels[call.kernel] as (...values: unknown[]) => void;
  kernel(...call.args.map((arg) => (isPiece(arg) ? places.get(arg) : arg === "scratch" ? machine.scratch : arg)));
  const results = new Map<Piece, Values>();
  for (const piece of piecesOf(call)) {
    const [was, is] = [before.get(piece)!, bytesAt(piece)];
    const size = bytesOf(piece.dtype);
    const start = places.get(piece)!.offset * size;
    const end = start + piece.values.length * size;
    const touched = (from: number, to: number): boolean => !equalBytes(was.subarray(from, to), is.subarray(from, to));
    const argument = call.args.indexOf(piece);
    if (piece.role === "in" && touched(start, end)) throw new Error(`argument ${argument} is an input and was changed`);
    if (touched(0, start)) throw new Error(`memory before argument ${argument} was changed`);
    if (touched(end, is.length)) throw new Error(`memory after argument ${argument} was changed`);
    const bytes = is.slice(start, end);
    results.set(piece, viewOf(piece.dtype, bytes.buffer, 0, piece.values.length) as Values);
  }
  return results;
}

function agrees(piece: Piece, expected: number, found: number, i: number): boolean {
  if (piece.allowed === "anything") return true;
  if (piece.role === "out" && expected === UNWRITTEN) return Number.isNaN(found);
  const rounded = piece.dtype === "f32" ? Math.fround(expected) : expected;
  if (Object.is(rounded, found)) return true;
  if (piece.allowed === "bits" || Number.isNaN(expected) || !Number.isFinite(rounded)) return false;
  return Math.abs(found - expected) <= piece.allowed(expected, i) + 2 ** -149;
}

/** Says where a result is not the expected one, or nothing. */
export function disagreement(call: Call, expected: Results, found: Results): string | undefined {
  for (const piece of outputsOf(call)) {
    const [wanted, got] = [expected.get(piece)!, found.get(piece)!];
    for (let i = 0; i < got.length; i++)
      if (!agrees(piece, wanted[i]!, got[i]!, i)) {
        const margin = typeof piece.allowed === "string" ? "exactly" : `within ${piece.allowed(wanted[i]!, i)}`;
        return `argument ${call.args.indexOf(piece)}, element ${i} of ${got.length}: expected ${wanted[i]} ${margin}, found ${got[i]}`;
      }
  }
  return undefined;
}

/** The first output that is not the same to the bit. */
export function difference(call: Call, first: Results, second: Results): string | undefined {
  for (const piece of outputsOf(call)) {
    const [a, b] = [first.get(piece)!, second.get(piece)!];
    if (equalBytes(new Uint8Array(a.buffer), new Uint8Array(b.buffer))) continue;
    const at = a.findIndex((value, i) => !Object.is(value, b[i]));
    return `argument ${call.args.indexOf(piece)}, element ${at} of ${a.length}: ${a[at]} and ${b[at]}`;
  }
  return undefined;
}

/** A call in one line: scalars as they are, pointers by length, role and offset. */
export const describeCall = ({ kernel, args }: Call): string =>
  `${kernel}(${args.map((arg, i) => (isPiece(arg) ? (args.indexOf(arg) < i ? `=${args.indexOf(arg)}` : `${arg.role}[${arg.values.length}]${arg.offset ? `+${arg.offset}` : ""}`) : String(arg))).join(", ")})`;
