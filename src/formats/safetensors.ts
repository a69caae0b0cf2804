import { type SafetensorsHeader, findEntry, parseHeader, refusal } from "./safetensors-header.ts";
import { strictText } from "./safetensors-json.ts";

export type { FileDType, TensorEntry } from "./safetensors-header.ts";

/** Where bytes are read from: a file, a buffer, a download. `read` returns exactly `length` bytes that the caller owns. */
export interface ByteSource {
  readonly size: number;
  read(offset: number, length: number): Promise<Uint8Array>;
  close?(): Promise<void>;
}

/** A source over bytes in memory. */
export function bytesSource(bytes: Uint8Array): ByteSource {
  return { size: bytes.length, read: async (offset, length) => bytes.slice(offset, offset + length) };
}

/** An open safetensors file: its header is in memory, its tensors are read one at a time. */
export interface SafetensorsFile extends SafetensorsHeader {
  readonly name: string;
  /** The header exactly as it stands in the file, padding included, so that an unchanged file is saved byte-equal. */
  readonly headerText: string;
  /** The bytes of one tensor, little-endian and row-major, in a buffer of their own. */
  read(tensor: string): Promise<Uint8Array>;
  close(): Promise<void>;
}

const longestHeader = 100_000_000;

/**
 * Opens a safetensors file; throws a `StrutError` with code "safetensors" unless every byte of it is accounted for.
 * `name` stands in messages. The format: https://github.com/huggingface/safetensors.
 *
 * @example
 * const file = await openSafetensors(bytesSource(bytes), "model.safetensors");
 * for (const [name, { dtype, shape }] of file.entries) console.log(name, dtype, shape);
 */
export async function openSafetensors(source: ByteSource, name: string): Promise<SafetensorsFile> {
  const short = "The file is cut off or is not a safetensors file; download or export it again.";
  if (source.size < 8) throw refusal(name, `expected a safetensors file, which has at least 8 bytes, found ${source.size}`, short);
  const head = await source.read(0, 8);
  const length = new DataView(head.buffer, head.byteOffset, 8).getBigUint64(0, true);
  if (length > longestHeader) throw refusal(name, `the header claims ${length} bytes, expected at most ${longestHeader}`, short);
  const dataStart = 8 + Number(length);
  if (dataStart > source.size) throw refusal(name, `the header claims ${length} bytes, but only ${source.size - 8} follow its length`, short);

  const headerText = strictText(await source.read(8, Number(length)), (problem, cause) => refusal(name, `the header cannot be read: ${problem}`, short, cause));
  const header = parseHeader(headerText, source.size - dataStart, name);
  return {
    ...header,
    name,
    headerText,
    async read(tensor) {
      const entry = findEntry(header.entries, tensor, name);
      return entry.begin === entry.end ? new Uint8Array(0) : source.read(dataStart + entry.begin, entry.end - entry.begin);
    },
    close: async () => source.close?.(),
  };
}
