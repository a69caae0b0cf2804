import { StrutError } from "../errors.ts";
import type { Block } from "./backends/backend.ts";
import { bytesOf, viewOf, type DType, type TypedArray } from "./dtype.ts";
import { engine, kernels } from "./engine.ts";
import type { Handle } from "./memory.ts";
import type { Node } from "./tape.ts";

/** What a tensor is made from: nested numbers are flattened in row-major order. */
export type Numbers = ArrayLike<number> | ArrayLike<bigint>;

export const sizeOf = (shape: readonly number[]): number => shape.reduce((product, n) => product * n, 1);

/** Row-major strides, in elements. */
export function contiguousStrides(shape: readonly number[]): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = step;
    step *= shape[i]!;
  }
  return strides;
}

/** An n-dimensional array: a buffer, an offset, a shape and strides (in elements). Operations are functions. */
export class Tensor {
  readonly dtype: DType;
  shape: readonly number[];
  strides: readonly number[];
  offset: number;
  handle: Handle;
  /** The operation that made it, if a gradient flows through it. */
  node: Node | undefined;

  constructor(handle: Handle, dtype: DType, shape: readonly number[], strides: readonly number[] = contiguousStrides(shape), offset = 0) {
    this.handle = handle;
    this.dtype = dtype;
    this.shape = shape;
    this.strides = strides;
    this.offset = offset;
  }

  get size(): number {
    return sizeOf(this.shape);
  }

  get block(): Block {
    const { block } = this.handle;
    if (block) return block;
    throw new StrutError("freed", `a tensor of shape [${this.shape}] was used after its memory was returned`, {
      hint: "Temporaries end with their scope, and intermediates with backward(): call keep(tensor) on those you need longer.",
    });
  }

  /** Whether its elements lie in row-major order without gaps. */
  get contiguous(): boolean {
    let step = 1;
    for (let i = this.shape.length - 1; i >= 0; i--) {
      if (this.shape[i] !== 1 && this.strides[i] !== step) return false;
      step *= this.shape[i]!;
    }
    return true;
  }

  /** The elements in row-major order, as a copy the caller owns. bf16 and f16 come as f32. */
  async data(): Promise<TypedArray> {
    return hostNumbers(this);
  }

  /** The only element of a tensor with one element. */
  async item(): Promise<number> {
    if (this.size !== 1) throw new StrutError("shape", `item() needs one element, this tensor has shape [${this.shape}]`);
    return Number((await this.data())[0]);
  }
}

/**
 * A named leaf of a model. `trainable` parameters get gradients. Its memory outlives every scope.
 * Training writes it in place; `assign` gives it another value, also of another shape.
 */
export class Parameter extends Tensor {
  name: string;
  trainable: boolean;

  constructor(value: Tensor, name = "", trainable = true) {
    const source = value.contiguous ? value : copyOf(value);
    engine().pool.keep(source.handle);
    super(source.handle, source.dtype, source.shape, source.strides, source.offset);
    this.name = name;
    this.trainable = trainable;
  }

  /** Takes over the memory of `value`; the old memory is left to the garbage collector. */
  assign(value: Tensor): void {
    if (value.dtype !== this.dtype) throw new StrutError("dtype", `${this.name} is ${this.dtype}; it cannot become ${value.dtype}`);
    const source = value.contiguous ? value : copyOf(value);
    engine().pool.keep(source.handle);
    this.handle = source.handle;
    this.shape = source.shape;
    this.strides = source.strides;
    this.offset = source.offset;
  }
}

/** A typed view on the tensor's memory, valid until the next allocation: inside operations only. */
export function hostView(tensor: Tensor): TypedArray {
  const { buffer, byteOffset } = engine().backend.locate(tensor.block);
  const last = tensor.size === 0 ? 0 : 1 + tensor.shape.reduce((sum, n, i) => sum + (n - 1) * tensor.strides[i]!, 0);
  return viewOf(tensor.dtype, buffer, byteOffset + tensor.offset * bytesOf(tensor.dtype), last);
}

/** `data()` for operations that cannot wait; a copy. */
export function hostNumbers(tensor: Tensor): TypedArray {
  if (tensor.dtype === "bf16" || tensor.dtype === "f16") {
    const wide = empty(tensor.shape, "f32");
    const source = copyOf(tensor);
    kernels()[tensor.dtype === "bf16" ? "bf16_to_f32" : "f16_to_f32"](wide, source, tensor.size);
    return hostView(wide).slice();
  }
  return hostView(tensor.contiguous ? tensor : copyOf(tensor)).slice();
}

/** Uninitialised memory of the given shape. */
export function empty(shape: readonly number[], dtype: DType = "f32"): Tensor {
  for (const n of shape)
    if (!Number.isInteger(n) || n < 0) throw new StrutError("shape", `[${shape}] is not a shape: every extent must be a whole number of at least 0`);
  const bytes = sizeOf(shape) * bytesOf(dtype);
  if (bytes > 2 ** 32) throw new StrutError("shape", `a tensor of shape [${shape}] needs ${bytes} bytes; one tensor may have 4 GiB`);
  return new Tensor(engine().pool.allocate(bytes), dtype, shape);
}

/** A contiguous copy outside the tape, of any dtype. */
export function copyOf(source: Tensor): Tensor {
  const out = empty(source.shape, source.dtype);
  const to = hostView(out);
  const from = hostView(source);
  if (source.contiguous) {
    to.set(from as never);
    return out;
  }
  if (source.dtype === "f32" || source.dtype === "f64") {
    stridedCopy(out, source);
    return out;
  }
  const index = new Array<number>(source.shape.length).fill(0);
  for (let i = 0; i < out.size; i++) {
    to[i] = from[index.reduce((sum, at, axis) => sum + at * source.strides[axis]!, 0)] as never;
    for (let axis = index.length - 1; axis >= 0 && ++index[axis]! === source.shape[axis]; axis--) index[axis] = 0;
  }
  return out;
}

/** Merges neighbouring axes that step together, for one or two operands of one shape; at least four axes come back. */
export function collapse(shape: readonly number[], ...operands: (readonly number[])[]): { shape: number[]; strides: number[][] } {
  const out: number[] = [];
  const strides: number[][] = operands.map(() => []);
  for (let axis = 0; axis < shape.length; axis++) {
    const n = shape[axis]!;
    if (n === 1) continue;
    const merges = out.length > 0 && operands.every((s, o) => strides[o]!.at(-1) === s[axis]! * n);
    if (merges) {
      out[out.length - 1]! *= n;
      operands.forEach((s, o) => (strides[o]![out.length - 1] = s[axis]!));
    } else {
      out.push(n);
      operands.forEach((s, o) => strides[o]!.push(s[axis]!));
    }
  }
  while (out.length < 4) {
    out.unshift(1);
    strides.forEach((s) => s.unshift(0));
  }
  return { shape: out, strides };
}

/** Runs `visit` for every index of the axes before the last four, with the offset of each operand there. */
export function outerLoop(shape: readonly number[], strides: readonly (readonly number[])[], visit: (position: number, offsets: number[]) => void): void {
  const outer = shape.length - 4;
  const count = sizeOf(shape.slice(0, outer));
  for (let i = 0; i < count; i++) {
    const offsets = strides.map(() => 0);
    let rest = i;
    for (let axis = outer - 1; axis >= 0; axis--) {
      const at = rest % shape[axis]!;
      rest = Math.floor(rest / shape[axis]!);
      strides.forEach((s, o) => (offsets[o]! += at * s[axis]!));
    }
    visit(i, offsets);
  }
}

const at = (tensor: Tensor, extra: number) => ({ dtype: tensor.dtype, block: tensor.block, offset: tensor.offset + extra });

function stridedCopy(out: Tensor, source: Tensor): void {
  const { shape, strides } = collapse(source.shape, source.strides);
  const [n0, n1, n2, n3] = shape.slice(-4) as [number, number, number, number];
  const [s0, s1, s2, s3] = strides[0]!.slice(-4) as [number, number, number, number];
  const inner = n0 * n1 * n2 * n3;
  outerLoop(shape, strides, (i, [offset]) => kernels().copy(at(out, i * inner), at(source, offset!), n0, n1, n2, n3, s0, s1, s2, s3));
}

/**
 * A tensor from numbers in row-major order.
 *
 * @example
 * const x = tensor([1, 2, 3, 4], [2, 2]);
 */
export function tensor(values: Numbers, shape: readonly number[] = [values.length], dtype: DType = "f32"): Tensor {
  if (values.length !== sizeOf(shape)) throw new StrutError("shape", `${values.length} values do not fill shape [${shape}], which has ${sizeOf(shape)}`);
  if (dtype === "bf16" || dtype === "f16") {
    const out = empty(shape, dtype);
    kernels()[dtype === "bf16" ? "f32_to_bf16" : "f32_to_f16"](out, tensor(values, shape), out.size);
    return out;
  }
  const out = empty(shape, dtype);
  const view = hostView(out);
  if (dtype === "i64") (view as BigInt64Array).set(Array.from(values as ArrayLike<number | bigint>, BigInt));
  else view.set(values as never);
  return out;
}

/** A tensor around raw little-endian bytes, as they stand in a safetensors file. */
export function fromBytes(bytes: Uint8Array, shape: readonly number[], dtype: DType): Tensor {
  const out = empty(shape, dtype);
  if (bytes.length !== out.size * bytesOf(dtype)) throw new StrutError("shape", `${bytes.length} bytes do not fill a ${dtype} tensor of shape [${shape}]`);
  const view = hostView(out);
  new Uint8Array(view.buffer, view.byteOffset, bytes.length).set(bytes);
  return out;
}

/** The tensor's bytes in row-major order, as a copy. */
export function toBytes(source: Tensor): Uint8Array {
  const view = hostView(source.contiguous ? source : copyOf(source));
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice();
}

export function full(shape: readonly number[], value: number, dtype: DType = "f32"): Tensor {
  const out = empty(shape, dtype);
  if (dtype === "f32" || dtype === "f64") kernels().fill(out, value, out.size);
  else hostView(out).fill((dtype === "i64" ? BigInt(value) : value) as never);
  return out;
}

export const zeros = (shape: readonly number[], dtype: DType = "f32"): Tensor => full(shape, 0, dtype);
export const ones = (shape: readonly number[], dtype: DType = "f32"): Tensor => full(shape, 1, dtype);
