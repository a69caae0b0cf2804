import { StrutError } from "../../errors.ts";
import { kernels } from "../engine.ts";
import { needsGradient, record } from "../tape.ts";
import { empty, hostView, tensor, type Tensor } from "../tensor.ts";
import { contiguous, transpose } from "./shape.ts";

/** Where the elements of a sparse rows×cols matrix stand, in order of rows. All tensors are i32. */
export interface Pattern {
  readonly rows: number;
  readonly cols: number;
  readonly pointers: Tensor;
  readonly columns: Tensor;
  /** Which value stands at each place; without it the values lie in this order. */
  readonly order: Tensor | null;
}

/** Whole numbers below 2³¹ in a contiguous i32 tensor, as a copy. */
function wholeNumbers(x: Tensor, name: string): Int32Array {
  if (x.dtype !== "i32") throw new StrutError("dtype", `${name} must be i32, got ${x.dtype}`);
  return (hostView(contiguous(x)) as Int32Array).slice();
}

/** The pattern of elements given by a row and a column each, sorted by row; elements of one row keep their order. */
function sorted(rowOf: Int32Array, columnOf: Int32Array, rows: number, cols: number): Pattern {
  const pointers = new Int32Array(rows + 1);
  for (let k = 0; k < rowOf.length; k++) pointers[rowOf[k]! + 1]!++;
  for (let r = 0; r < rows; r++) pointers[r + 1]! += pointers[r]!;
  const next = pointers.slice(0, rows);
  const [columns, order] = [new Int32Array(rowOf.length), new Int32Array(rowOf.length)];
  for (let k = 0; k < rowOf.length; k++) {
    const at = next[rowOf[k]!]!++;
    columns[at] = columnOf[k]!;
    order[at] = k;
  }
  return {
    rows,
    cols,
    pointers: tensor(pointers, [rows + 1], "i32"),
    columns: tensor(columns, [columns.length], "i32"),
    order: tensor(order, [order.length], "i32"),
  };
}

/** A pattern with what its gradients need: its transpose, and the row and column of each value. */
export interface SparseIndex {
  readonly forward: Pattern;
  readonly backward: Pattern;
  readonly rowOf: Tensor;
  readonly columnOf: Tensor;
}

function checkColumns(columns: Int32Array, cols: number): void {
  for (let k = 0; k < columns.length; k++)
    if (!(columns[k]! >= 0 && columns[k]! < cols)) throw new StrutError("range", `column ${columns[k]} of element ${k} does not lie in 0…${cols - 1}`);
}

/** Index of compressed rows: row r holds the elements pointers[r] … pointers[r+1] − 1. */
export function csrIndex(pointers: Tensor, columns: Tensor, cols: number): SparseIndex {
  const [starts, places] = [wholeNumbers(pointers, "rowPointers"), wholeNumbers(columns, "columns")];
  const rows = starts.length - 1;
  if (rows < 0 || starts[0] !== 0 || starts[rows] !== places.length || starts.some((start, r) => r > 0 && start < starts[r - 1]!))
    throw new StrutError("range", `rowPointers must rise from 0 to the ${places.length} elements there are`);
  checkColumns(places, cols);
  const rowOf = new Int32Array(places.length);
  for (let r = 0; r < rows; r++) rowOf.fill(r, starts[r], starts[r + 1]);
  const [forward, rowTensor] = [{ rows, cols, pointers, columns, order: null }, tensor(rowOf, [rowOf.length], "i32")];
  return { forward, backward: sorted(places, rowOf, cols, rows), rowOf: rowTensor, columnOf: columns };
}

/** Index of elements at row·cols + column, in any order; elements at one place add up. */
export function flatIndex(flat: Tensor, rows: number, cols: number): SparseIndex {
  const places = wholeNumbers(flat, "flat indices");
  places.forEach((at, k) => {
    if (!(at >= 0 && at < rows * cols)) throw new StrutError("range", `index ${at} of element ${k} does not lie in 0…${rows * cols - 1}`);
  });
  const [rowOf, columnOf] = [places.map((at) => Math.floor(at / cols)), places.map((at) => at % cols)];
  const [rowTensor, columnTensor] = [tensor(rowOf, [rowOf.length], "i32"), tensor(columnOf, [rowOf.length], "i32")];
  return { forward: sorted(rowOf, columnOf, rows, cols), backward: sorted(columnOf, rowOf, cols, rows), rowOf: rowTensor, columnOf: columnTensor };
}

function multiply(pattern: Pattern, values: Tensor, x: Tensor): Tensor {
  const dim = x.shape[1]!;
  const out = empty([pattern.rows, dim], x.dtype);
  kernels().csr_product(out, values, pattern.order, pattern.columns, pattern.pointers, x, pattern.rows, pattern.cols, values.size, dim);
  return out;
}

/** S·X for a sparse S rows×cols with values at an index, and X cols×dim; differentiable in both. */
export function sparseMatmul(index: SparseIndex, values: Tensor, x: Tensor, transposed = false): Tensor {
  const { forward, backward } = transposed ? { forward: index.backward, backward: index.forward } : index;
  if (x.shape.length !== 2 || x.shape[0] !== forward.cols || x.dtype !== values.dtype || values.size !== index.rowOf.size)
    throw new StrutError(
      "shape",
      `a sparse ${forward.rows}×${forward.cols} matrix of ${index.rowOf.size} elements got ${values.dtype}[${values.shape}] values and x ${x.dtype}[${x.shape}]`,
    );
  const [source, elements] = [contiguous(x), contiguous(values)];
  const out = multiply(forward, elements, source);
  return record(out, [elements, source], (gradient) => {
    const g = contiguous(gradient);
    const dx = needsGradient(source) ? multiply(backward, elements, g) : null;
    let dv: Tensor | null = null;
    if (needsGradient(elements)) {
      const [a, b] = transposed ? [source, g] : [g, source];
      kernels().sampled_product(
        (dv = empty(values.shape, values.dtype)),
        index.rowOf,
        index.columnOf,
        a,
        b,
        values.size,
        a.shape[0]!,
        b.shape[0]!,
        g.shape[1]!,
      );
    }
    return [dv, dx];
  });
}

/** x·Sᵀ (or x·S where `transposed`) for x rows×dim. */
export const sparseLinear = (index: SparseIndex, values: Tensor, x: Tensor, transposed = false): Tensor =>
  transpose(sparseMatmul(index, values, transpose(x), transposed));
