import type { WriteOptions } from "./files.ts";
import { type FileDType, type SafetensorsHeader, type TensorEntry, byteLength, isFileDType, rankOf, refusal } from "./safetensors-header.ts";

/** A tensor to write; `bytes` is called when its turn has come, so only one need be in memory. */
export interface TensorToWrite {
  readonly name: string;
  readonly dtype: FileDType;
  readonly shape: readonly number[];
  bytes(): Promise<Uint8Array> | Uint8Array;
}

export interface LayoutOptions {
  metadata?: Readonly<Record<string, string>>;
  /** A file that these tensors were read from: if names, dtypes, shapes and metadata are the same, its header and order are kept. */
  template?: SafetensorsHeader & { readonly headerText: string };
}

interface Layout<T> {
  header: Uint8Array;
  /** The tensors as they follow each other in the file, and the bytes that each takes. */
  order: readonly T[];
  sizes: ReadonlyMap<string, number>;
}

type Described = Pick<TensorToWrite, "name" | "dtype" | "shape">;

const compareUtf8 = (a: string, b: string): number => {
  const left = Array.from(a);
  const right = Array.from(b);
  for (let i = 0; i < left.length && i < right.length; i++) if (left[i] !== right[i]) return left[i]!.codePointAt(0)! - right[i]!.codePointAt(0)!;
  return left.length - right.length;
};

/** Plans a file as the reference library does: dtypes of higher rank first, then by name, the header padded to 8 bytes. */
function layout<T extends Described>(tensors: readonly T[], path: string, { metadata, template }: LayoutOptions = {}): Layout<T> {
  const sizes = new Map<string, number>();
  for (const { name, dtype, shape } of tensors) {
    const quoted = JSON.stringify(name);
    if (name === "__metadata__" || name === "__proto__" || /\p{Surrogate}/u.test(name))
      throw refusal(path, `a tensor cannot be named ${quoted} in a safetensors file`, "Rename the tensor.");
    if (sizes.has(name)) throw refusal(path, `two tensors are named ${quoted}`, "Give each tensor a name of its own.");
    if (!isFileDType(dtype)) throw refusal(path, `tensor ${quoted} has the dtype ${String(dtype)}, which safetensors does not know`, "Convert it to F32.");
    if (!shape.every((size) => Number.isSafeInteger(size) && size >= 0))
      throw refusal(path, `tensor ${quoted} has the shape [${shape.join(", ")}], expected whole numbers of 0 or more`, "Check how it was made.");
    sizes.set(
      name,
      byteLength(dtype, shape, (problem) => {
        throw refusal(path, `tensor ${quoted}: ${problem}`, "Write it in another dtype or shape.");
      }),
    );
  }
  const kept = template !== undefined && unchanged(tensors, metadata, template);
  const order = kept
    ? tensors.toSorted((a, b) => byRange(template.entries.get(a.name)!, template.entries.get(b.name)!))
    : tensors.toSorted((a, b) => rankOf(b.dtype) - rankOf(a.dtype) || compareUtf8(a.name, b.name));
  const text = kept ? template.headerText : headerText(order, sizes, metadata ?? template?.metadata, path);
  const body = new TextEncoder().encode(text);
  const header = new Uint8Array(8 + body.length);
  new DataView(header.buffer).setBigUint64(0, BigInt(body.length), true);
  header.set(body, 8);
  return { header, order, sizes };
}

const byRange = (a: TensorEntry, b: TensorEntry): number => a.begin - b.begin || a.end - b.end;

function unchanged(tensors: readonly Described[], metadata: LayoutOptions["metadata"], template: SafetensorsHeader): boolean {
  const before = template.metadata;
  const given = Object.entries(metadata ?? before);
  return (
    given.length === Object.keys(before).length &&
    given.every(([key, value]) => before[key] === value) &&
    tensors.length === template.entries.size &&
    tensors.every(({ name, dtype, shape }) => {
      const entry = template.entries.get(name);
      return entry?.dtype === dtype && entry.shape.join() === shape.join();
    })
  );
}

function headerText(order: readonly Described[], sizes: ReadonlyMap<string, number>, metadata: LayoutOptions["metadata"], path: string): string {
  const members: string[] = [];
  const pairs = Object.entries(metadata ?? {});
  for (const [key, value] of pairs)
    if (key === "__proto__" || typeof value !== "string" || /\p{Surrogate}/u.test(key + value))
      throw refusal(path, `the metadata ${JSON.stringify(key)} must be a string of valid Unicode under an ordinary name`, "Turn the value into a string.");
  if (pairs.length > 0) members.push(`"__metadata__":{${pairs.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join()}}`);
  let at = 0;
  for (const { name, dtype, shape } of order) {
    const begin = at;
    at += sizes.get(name)!;
    members.push(`${JSON.stringify(name)}:{"dtype":"${dtype}","shape":[${shape.join()}],"data_offsets":[${begin},${at}]}`);
  }
  const text = `{${members.join()}}`;
  const bytes = new TextEncoder().encode(text).length;
  return text + " ".repeat((8 - (bytes % 8)) % 8);
}

async function write(plan: Layout<TensorToWrite>, path: string, sink: (bytes: Uint8Array) => Promise<void>): Promise<void> {
  await sink(plan.header);
  for (const tensor of plan.order) {
    const { name, dtype, shape } = tensor;
    const content = await tensor.bytes();
    const expected = plan.sizes.get(name);
    if (content.length !== expected)
      throw refusal(
        path,
        `tensor ${JSON.stringify(name)} of shape [${shape.join(", ")}] and ${dtype} needs ${expected} bytes, but ${content.length} were given`,
        "Check how its bytes were made.",
      );
    await sink(content);
  }
}

/**
 * Writes a safetensors file whole or not at all, one tensor in memory at a time.
 *
 * @example
 * const weight = { name: "weight", dtype: "F32", shape: [2], bytes: () => new Uint8Array(8) } as const;
 * await writeSafetensors("model.safetensors", [weight], { metadata: { format: "pt" } });
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorToWrite> | AsyncIterable<TensorToWrite>,
  { openFile, ...options }: LayoutOptions & WriteOptions = {},
): Promise<void> {
  const { writeAtomically } = await import("./files.ts");
  const all: TensorToWrite[] = [];
  for await (const tensor of tensors) all.push(tensor);
  const plan = layout(all, path, options);
  await writeAtomically(path, (sink) => write(plan, path, sink), openFile === undefined ? {} : { openFile });
}

/** The bytes of a safetensors file, for places without a file system; `name` stands in messages. */
export async function safetensorsBytes(tensors: Iterable<TensorToWrite>, name: string, options: LayoutOptions = {}): Promise<Uint8Array<ArrayBuffer>> {
  const plan = layout([...tensors], name, options);
  const bytes = new Uint8Array([...plan.sizes.values()].reduce((sum, size) => sum + size, plan.header.length));
  let at = 0;
  await write(plan, name, async (piece) => {
    bytes.set(piece, at);
    at += piece.length;
  });
  return bytes;
}
