/** Types strut computes with or stores; names are torch's and safetensors', in lower case. */
export type DType = "f64" | "f32" | "bf16" | "f16" | "i64" | "i32" | "u8" | "i8" | "bool";

/** Floating types that operations compute in. */
export type Real = "f32" | "f64";

export type TypedArray =
  | Float64Array<ArrayBufferLike>
  | Float32Array<ArrayBufferLike>
  | Uint16Array<ArrayBufferLike>
  | BigInt64Array<ArrayBufferLike>
  | Int32Array<ArrayBufferLike>
  | Uint8Array<ArrayBufferLike>
  | Int8Array<ArrayBufferLike>;

type ArrayConstructor = new (buffer: ArrayBufferLike, byteOffset: number, length: number) => TypedArray;

const arrays: Record<DType, ArrayConstructor & { BYTES_PER_ELEMENT: number }> = {
  f64: Float64Array,
  f32: Float32Array,
  bf16: Uint16Array,
  f16: Uint16Array,
  i64: BigInt64Array,
  i32: Int32Array,
  u8: Uint8Array,
  i8: Int8Array,
  bool: Uint8Array,
};

/** Bytes of one element. */
export const bytesOf = (dtype: DType): number => arrays[dtype].BYTES_PER_ELEMENT;

/** A typed view on `length` elements of `buffer` from `byteOffset`; bf16 and f16 appear as their 16 bits. */
export const viewOf = (dtype: DType, buffer: ArrayBufferLike, byteOffset: number, length: number): TypedArray => new arrays[dtype](buffer, byteOffset, length);

export const isReal = (dtype: DType): dtype is Real => dtype === "f32" || dtype === "f64";
