import { StrutError } from "../../errors.ts";
import { engine, kernels } from "../engine.ts";
import { free } from "../scope.ts";
import { gradientsFlow, needsGradient, noGrad, record } from "../tape.ts";
import { copyOf, empty, sizeOf, Tensor } from "../tensor.ts";
import { broadcastShape, broadcastStrides, contiguous, reshape, sumAxes, sumTo, transpose } from "./shape.ts";

interface Product {
  alpha?: number;
  /** Factor of what `out` holds before; 0 does not read it. */
  beta?: number;
  bias?: Tensor | null;
}

/** out (contiguous, […, m, n]) = alpha·a·b + beta·out + bias; leading axes are batch and broadcast. Unrecorded. */
export function gemmInto(out: Tensor, a: Tensor, b: Tensor, { alpha = 1, beta = 0, bias = null }: Product = {}): void {
  const [m, k] = a.shape.slice(-2) as [number, number];
  const n = b.shape.at(-1)!;
  const batchShape = out.shape.slice(0, -2);
  const batch = sizeOf(batchShape);
  const [aBatch, bBatch] = [batchStride(a, batchShape), batchStride(b, batchShape)];
  const [aRow, aCol] = a.strides.slice(-2) as [number, number];
  const [bRow, bCol] = b.strides.slice(-2) as [number, number];
  kernels().gemm(batch, m, n, k, alpha, a, aBatch, aRow, aCol, b, bBatch, bRow, bCol, beta, out, m * n, n, bias, engine().scratch);
}

/** One stride that walks all batch axes, or NaN if there is none. */
function oneStride(x: Tensor, batchShape: readonly number[]): number {
  const strides = broadcastStrides(x, [...batchShape, ...x.shape.slice(-2)]).slice(0, batchShape.length);
  let stride: number | undefined;
  let step = 0;
  for (let axis = batchShape.length - 1; axis >= 0; axis--) {
    if (batchShape[axis] === 1) continue;
    if (stride === undefined) stride = strides[axis]!;
    else if (strides[axis] !== step) return NaN;
    step = strides[axis]! * batchShape[axis]!;
  }
  return stride ?? 0;
}

function batchStride(x: Tensor, batchShape: readonly number[]): number {
  const stride = oneStride(x, batchShape);
  if (Number.isNaN(stride)) throw new StrutError("shape", `matmul cannot walk a batch of shape [${x.shape}] and strides [${x.strides}]`);
  return stride;
}

function walkable(x: Tensor, batchShape: readonly number[]): Tensor {
  if (!Number.isNaN(oneStride(x, batchShape))) return x;
  const broadcast = [...batchShape, ...x.shape.slice(-2)];
  return copyOf(new Tensor(x.handle, x.dtype, broadcast, broadcastStrides(x, broadcast), x.offset));
}

function product(a: Tensor, b: Tensor): Tensor {
  const batchShape = broadcastShape(a.shape.slice(0, -2), b.shape.slice(0, -2));
  const out = empty([...batchShape, a.shape.at(-2)!, b.shape.at(-1)!], a.dtype);
  gemmInto(out, walkable(a, batchShape), walkable(b, batchShape));
  return out;
}

/** Matrix product over the last two axes; leading axes broadcast. */
export function matmul(a: Tensor, b: Tensor): Tensor {
  if (a.shape.length < 2 || b.shape.length < 2 || a.shape.at(-1) !== b.shape.at(-2) || a.dtype !== b.dtype)
    throw new StrutError("shape", `matmul of ${a.dtype}[${a.shape}] and ${b.dtype}[${b.shape}]: the inner extents and dtypes must agree`);
  return record(product(a, b), [a, b], (g) => [
    needsGradient(a) ? sumTo(product(g, transpose(b)), a.shape) : null,
    needsGradient(b) ? sumTo(product(transpose(a), g), b.shape) : null,
  ]);
}

/** A contiguous x as one matrix [rows, cols]. */
const flat = (x: Tensor): Tensor => new Tensor(x.handle, x.dtype, [sizeOf(x.shape.slice(0, -1)), x.shape.at(-1)!], undefined, x.offset);

const transposed = (w: Tensor): Tensor => new Tensor(w.handle, w.dtype, [w.shape[1]!, w.shape[0]!], [w.strides[1]!, w.strides[0]!], w.offset);

/** x·Wᵀ + bias for x […, in] and W out×in of any strides. */
export function linear(x: Tensor, weight: Tensor, bias: Tensor | null = null): Tensor {
  return addLinear(null, x, weight, 1, bias);
}

/** y + alpha·x·Wᵀ (+ bias); y may be null for 0. */
export function addLinear(y: Tensor | null, x: Tensor, weight: Tensor, alpha = 1, bias: Tensor | null = null): Tensor {
  return linearOnto(y, x, weight, { alpha, bias });
}

/**
 * add(y, linear(x, weight, bias)) to the same bits, without keeping what is added. With `again`, which computes x once more, the memory
 * of x goes back to the pool until the backward pass: nothing else may need it.
 */
export const residualLinear = (y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | null = null, again?: () => Tensor): Tensor =>
  linearOnto(y, x, weight, { alpha: 1, bias, last: true, again });

interface Onto {
  readonly alpha: number;
  readonly bias: Tensor | null;
  /** y comes after the product, not in its sums. */
  readonly last?: boolean;
  readonly again?: (() => Tensor) | undefined;
}

function linearOnto(y: Tensor | null, x: Tensor, weight: Tensor, { alpha, bias, last = false, again }: Onto): Tensor {
  const inner = x.shape.at(-1) ?? 0;
  if (weight.shape.length !== 2 || inner !== weight.shape[1] || x.dtype !== weight.dtype)
    throw new StrutError(
      "shape",
      `linear: x is ${x.dtype}[${x.shape}], the weight ${weight.dtype}[${weight.shape}]; x must end in the weight's second extent, with the same dtype`,
    );
  const shape = [...x.shape.slice(0, -1), weight.shape[0]!];
  const source = contiguous(x);
  const first = last ? null : y;
  const out = first ? copyOf(first) : empty(shape, x.dtype);
  gemmInto(flat(out), flat(source), transposed(weight), { alpha, beta: first ? 1 : 0, bias });
  if (y && last) kernels().axpby(out, 1, contiguous(y), 1, out.size);
  const inputs = [source, weight, ...(y ? [y] : []), ...(bias ? [bias] : [])];
  if (again && gradientsFlow()) free(source);
  return record(out, inputs, (gradient) => {
    const g = flat(contiguous(gradient));
    const input = (): Tensor => flat(again ? noGrad(() => contiguous(again())) : source);
    let dx: Tensor | null = null;
    if (needsGradient(source)) gemmInto(flat((dx = empty(source.shape, x.dtype))), g, weight, { alpha });
    let dw: Tensor | null = null;
    if (needsGradient(weight)) {
      // a weight kept in×out gets its gradient in that layout
      if (weight.strides[0] === 1 && weight.strides[1] !== 1)
        gemmInto(transposed((dw = transposed(empty([weight.shape[1]!, weight.shape[0]!], x.dtype)))), transposed(input()), g, { alpha });
      else gemmInto((dw = empty(weight.shape, x.dtype)), transposed(g), input(), { alpha });
    }
    return [dx, dw, ...(y ? [gradient] : []), ...(bias ? [needsGradient(bias) ? reshape(sumAxes(g, [0]), bias.shape) : null] : [])];
  });
}
