import { StrutError } from "../errors.ts";
import { copyOf, empty, Tensor } from "../tensor/tensor.ts";
import { multiplyInto, turned } from "./blocks.ts";
import { extents } from "./numbers.ts";

/** A matrix known only by what it does to others. */
export interface ProductOperator {
  readonly rows: number;
  readonly cols: number;
  /** A·x for x cols×k, of its dtype (f32 or f64); rows×k. */
  multiply(x: Tensor): Tensor;
  /** Aᵀ·x for x rows×k; cols×k. */
  multiplyTransposed(x: Tensor): Tensor;
}

/** Products with rows: x·Aᵀ and x·A for x k×cols and k×rows. */
export interface RowProducts {
  rows: number;
  cols: number;
  dtype: "f32" | "f64";
  forward(x: Tensor): Tensor;
  backward(x: Tensor): Tensor;
}

function checked(y: Tensor, rows: number, x: Tensor, what: string): Tensor {
  if (y.shape.length === 2 && y.shape[0] === rows && y.shape[1] === x.shape[0]) return y;
  throw new StrutError("shape", `${what} returned a tensor of shape [${y.shape}]; it must be ${rows}×${x.shape[0]}`);
}

export function rowProducts(a: Tensor | ProductOperator, what: string): RowProducts {
  if (!(a instanceof Tensor)) {
    const { rows, cols } = a;
    return {
      rows,
      cols,
      dtype: "f32",
      forward: (x) => copyOf(turned(checked(a.multiply(turned(x)), rows, x, "multiply"))),
      backward: (x) => copyOf(turned(checked(a.multiplyTransposed(turned(x)), cols, x, "multiplyTransposed"))),
    };
  }
  const [rows, cols] = extents(a, what);
  const into = (x: Tensor, matrix: Tensor): Tensor => {
    const out = empty([x.shape[0]!, matrix.shape[1]!], a.dtype);
    multiplyInto(out, x, matrix);
    return out;
  };
  return { rows, cols, dtype: a.dtype as "f32" | "f64", forward: (x) => into(x, turned(a)), backward: (x) => into(x, a) };
}
