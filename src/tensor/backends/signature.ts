/**
 * The one table of kernels. The native and WebAssembly bindings, the C header and the types of the reference backend
 * are all made from it. `f32*` … are pointers to contiguous elements; `real*` is f32 or f64 (all of one call agree);
 * a trailing `?` allows null. `extents` gives the elements each pointer must have, in order of the pointers.
 * In C: int32_t, double and pointers only; a `real*` kernel NAME has the f32 form NAME and, if `wide`, the f64 form NAME_f64.
 * A `real*` kernel that is not wide runs in f64 on the reference backend.
 */
export type ArgumentType = "i32" | "f64" | Pointer | `${Pointer}?`;
type Pointer = "real*" | "f32*" | "f64*" | "i32*" | "i8*" | "u8*" | "u16*";

export interface Signature<A extends readonly ArgumentType[] = readonly ArgumentType[]> {
  readonly types: A;
  readonly extents: (...values: number[]) => readonly number[];
  readonly wide: boolean;
}

/** `extents` gets the scalar arguments only, in order. */
export const signature = <const A extends readonly ArgumentType[]>(
  types: A,
  extents: (...scalars: number[]) => readonly number[],
  form?: "wide",
): Signature<A> => ({ types, extents, wide: form === "wide" });

/** Elements touched by a strided walk: 1 + Σ (n−1)·stride, or 0 if any n is 0. */
export const span = (...pairs: readonly (readonly [number, number])[]): number =>
  pairs.some(([n]) => n === 0) ? 0 : 1 + pairs.reduce((sum, [n, stride]) => sum + (n - 1) * stride, 0);

/** Floats of packing space that `gemm` may use; one buffer of this size is made when the engine starts. */
export const SCRATCH_FLOATS = 1 << 22;
