import { StrutError } from "../../errors.ts";
import { bytesOf, isReal, type DType, type Real } from "../dtype.ts";
import type { ArgumentType } from "./signature.ts";
import { signatures, type KernelName } from "./signatures.ts";

export type BackendName = "native" | "wasm" | "reference";

/** A piece of memory of one backend: an ArrayBuffer of its own, or an address in a heap. */
export interface Block {
  readonly bytes: number;
  readonly buffer?: ArrayBuffer;
  readonly address: number;
}

/** What a kernel needs to know of a tensor: where its elements start. `block` throws once the memory was freed. */
export interface Memory {
  readonly dtype: DType;
  readonly block: Block;
  /** in elements */
  readonly offset: number;
}

type Value<T extends ArgumentType> = T extends "i32" | "f64" ? number : T extends `${string}?` ? Memory | null : Memory;
type Values<A extends readonly ArgumentType[]> = { [I in keyof A]: Value<A[I]> };

export type Kernels = { readonly [K in KernelName]: (...values: Values<(typeof signatures)[K]["types"]>) => void };

export interface Backend {
  readonly name: BackendName;
  /** CPU variant in use: avx512, avx2, baseline, simd128 or typescript. */
  readonly variant: string;
  readonly threads: number;
  readonly kernels: Kernels;
  allocate(bytes: number): Block;
  /** The buffer that holds a block now and the block's start in it; valid until the next allocation. */
  locate(block: Block): { buffer: ArrayBufferLike; byteOffset: number };
  stop(): void;
}

const allowed: Record<string, readonly DType[]> = {
  real: ["f32", "f64"],
  f32: ["f32"],
  f64: ["f64"],
  i32: ["i32"],
  i8: ["i8"],
  u8: ["u8", "bool"],
  u16: ["bf16", "f16"],
};

/** Checks every argument of a call against the signature table, since the foreign side checks nothing, and passes them on. */
export function bindKernels(call: (name: KernelName, real: Real, values: readonly (number | Memory | null)[]) => void): Kernels {
  const bind = (name: KernelName) => {
    const { types, extents } = signatures[name];
    // the words of a random stream are any 32 bits; every other whole number is an extent, stride, flag or operation
    const signed = name.startsWith("random_") || name === "dropout";
    const scalarAt = types.flatMap((type, i) => (type === "i32" || type === "f64" ? [i] : []));
    const pointers = types.flatMap((type, i) => (type === "i32" || type === "f64" ? [] : [{ i, kind: type.split("*")[0]!, optional: type.endsWith("?") }]));
    return (...values: (number | Memory | null)[]) => {
      if (values.length !== types.length) throw fault(name, `takes ${types.length} arguments, got ${values.length}`);
      const scalars: number[] = [];
      for (const i of scalarAt) {
        const value = values[i];
        if (typeof value !== "number" || (types[i] === "i32" && (value | 0) !== value))
          throw fault(name, `argument ${i} must be ${types[i]}, got ${String(value)}`);
        if (types[i] === "i32" && value < 0 && !signed) throw fault(name, `argument ${i} must not be negative, got ${value}`);
        scalars.push(value);
      }
      const needed = (extents as (...scalars: number[]) => readonly number[])(...scalars);
      let real: Real | undefined;
      for (let p = 0; p < pointers.length; p++) {
        const { i, kind, optional } = pointers[p]!;
        const value = values[i] as Memory | null;
        if (value === null) {
          if (!optional) throw fault(name, `argument ${i} must not be null`);
          continue;
        }
        if (!allowed[kind]!.includes(value.dtype)) throw fault(name, `argument ${i} must be ${kind}, got ${value.dtype}`);
        if (kind === "real" && isReal(value.dtype)) {
          if (real !== undefined && real !== value.dtype) throw fault(name, `mixes f32 and f64`);
          real = value.dtype;
        }
        const has = value.block.bytes / bytesOf(value.dtype) - value.offset;
        if (!(needed[p]! >= 0) || has < needed[p]! || value.offset < 0) throw fault(name, `argument ${i} needs ${needed[p]} elements, has ${has}`);
      }
      call(name, real ?? "f32", values);
    };
  };
  return Object.fromEntries(Object.keys(signatures).map((name) => [name, bind(name as KernelName)])) as unknown as Kernels;
}

const fault = (name: string, what: string) => new StrutError("kernel", `kernel ${name} ${what}`, { hint: "This is a mistake in strut: please report it." });
