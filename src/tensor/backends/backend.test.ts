import { describe, expect, it } from "vitest";
import { StrutError } from "../../errors.ts";
import { bytesOf, type DType } from "../dtype.ts";
import { bindKernels, type Memory } from "./backend.ts";
import type { ArgumentType } from "./signature.ts";
import { f64Kernels, signatures, type KernelName } from "./signatures.ts";

type Value = number | Memory | null;

const memory = (dtype: DType, elements: number, offset = 0): Memory => ({ dtype, offset, block: { bytes: (elements + offset) * bytesOf(dtype), address: 0 } });

const dtypeOf: Record<string, DType> = { real: "f32", f32: "f32", f64: "f64", i32: "i32", u8: "u8", u16: "bf16" };
const isScalar = (type: ArgumentType): boolean => type === "i32" || type === "f64";

/** Arguments of a call that is right, with every pointer exactly as long as it must be. */
function rightCall(name: KernelName): { types: readonly ArgumentType[]; values: Value[] } {
  const { types, extents } = signatures[name];
  const scalars = types.filter(isScalar).map((type) => (type === "i32" ? 2 : 0.5));
  const needed = [...(extents as (...scalars: number[]) => readonly number[])(...scalars)];
  const values = types.map((type): Value => {
    if (type === "i32") return 2;
    if (type === "f64") return 0.5;
    return memory(dtypeOf[type.split("*")[0]!]!, needed.shift()!, 3);
  });
  return { types, values };
}

/** The kernels bound to a list of what was called. */
function bound() {
  const calls: string[] = [];
  return { calls, kernels: bindKernels((name, real) => void calls.push(`${name} ${real}`)) as unknown as Record<KernelName, (...values: unknown[]) => void> };
}

function refused(name: KernelName, values: readonly unknown[], what: RegExp): void {
  const { calls, kernels } = bound();
  let error: unknown;
  try {
    kernels[name](...values);
  } catch (caught) {
    error = caught;
  }
  expect(error, `${name}(${values.map(String).join(", ")})`).toBeInstanceOf(StrutError);
  expect((error as StrutError).code).toBe("kernel");
  expect((error as StrutError).message).toMatch(what);
  expect((error as StrutError).message).toContain(name);
  expect(calls).toEqual([]);
}

const names = Object.keys(signatures) as KernelName[];

describe.each(names)("binding of %s", (name) => {
  const { types, values } = rightCall(name);
  const changed = (at: number, value: unknown): unknown[] => values.map((old, i) => (i === at ? value : old));
  const pointers = types.flatMap((type, i) => (isScalar(type) ? [] : [{ type, i }]));

  it("passes a right call on, with null where the table allows it", () => {
    const { calls, kernels } = bound();
    kernels[name](...values);
    for (const { type, i } of pointers) if (type.endsWith("?")) kernels[name](...changed(i, null));
    expect(new Set(calls)).toEqual(new Set([`${name} f32`]));
  });

  it("refuses missing and additional arguments", () => {
    refused(name, values.slice(0, -1), /arguments, got/);
    refused(name, [...values, 0], /arguments, got/);
  });

  it("refuses an i32 that is no whole number of 32 bits, and an f64 that is no number", () => {
    types.forEach((type, i) => {
      if (type === "i32")
        for (const wrong of [1.5, 2 ** 31, -(2 ** 31) - 1, NaN, Infinity, "2", null, undefined]) refused(name, changed(i, wrong), /must be i32/);
      if (type === "f64") for (const wrong of ["1", null, undefined, 1n]) refused(name, changed(i, wrong), /must be f64/);
    });
  });

  it("refuses null elsewhere, other dtypes and short or misplaced memory", () => {
    for (const { type, i } of pointers) {
      const right = values[i] as Memory;
      const elements = right.block.bytes / bytesOf(right.dtype) - right.offset;
      if (!type.endsWith("?")) refused(name, changed(i, null), /must not be null/);
      for (const dtype of ["i64", "i8", type.startsWith("i32") ? "f32" : "i32", type.startsWith("u16") ? "f32" : "bf16"] as DType[])
        refused(name, changed(i, memory(dtype, 1000)), /must be|needs/);
      refused(name, changed(i, memory(right.dtype, elements - 1)), /needs \d+ elements, has/);
      refused(name, changed(i, { ...right, offset: right.offset + 1 }), /needs \d+ elements, has/);
      refused(name, changed(i, { ...right, offset: -1 }), /needs/);
    }
  });

  it("refuses sizes below zero", () => {
    types.forEach((type, i) => {
      // a negative stride, flag, operation, key or counter asks for less memory, never for more
      const { extents } = signatures[name];
      if (type !== "i32") return;
      const scalars = values.flatMap((value, at) => (isScalar(types[at]!) ? [at === i ? -1 : (value as number)] : []));
      if ((extents as (...scalars: number[]) => readonly number[])(...scalars).some((needed) => needed < 0))
        refused(name, changed(i, -1), /needs -\d+ elements|must not be negative/);
    });
  });

  it("refuses f32 and f64 in one call", () => {
    const reals = pointers.filter(({ type }) => type.startsWith("real"));
    if (reals.length < 2) return;
    for (const { i } of reals) refused(name, changed(i, memory("f64", 5000)), /mixes f32 and f64/);
    const { calls, kernels } = bound();
    kernels[name](...values.map((value, at) => (types[at]!.startsWith("real") ? memory("f64", 5000) : value)));
    expect(calls).toEqual([`${name} f64`]);
  });
});

describe("the table", () => {
  it("lists f64 forms of kernels that it has", () => {
    for (const name of f64Kernels) expect(names).toContain(name);
  });

  it("needs no memory where an extent is 0, and all of a strided walk elsewhere", () => {
    expect(signatures.copy.extents(0, 5, 5, 5, 1, 1, 1, 1)).toEqual([0, 0]);
    expect(signatures.copy.extents(2, 3, 4, 5, 100, 20, 5, 1)).toEqual([120, 1 + 100 + 40 + 15 + 4]);
    expect(signatures.gemm.extents(1, 3, 5, 4, 1, 0, 4, 1, 0, 1, 4, 0, 0, 5).slice(0, 4)).toEqual([12, 20, 15, 5]);
  });
});
